//! Promise: a stop drains, ends within its deadline whatever HAProxy does, and leaves nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::client::get_within;
use lab::network::BALANCER4;
use lab::origin::HALF;
use lab::{Download, HostState, Instance, LONG, Lab, Outcome, SHORT, get, haproxy_cfg, until};
use nix::sys::signal::Signal;

fn start(settings: &[(&str, &str)]) -> (Lab, Instance, HostState) {
    Lab::serving(&haproxy_cfg::transparent(":80", ":::80 v6only"), settings)
}

fn web() -> String {
    format!("{BALANCER4}:80")
}

/// Waits until new connections are refused, as they must be soon after the stop began.
fn await_refusal(lab: &Lab) {
    until(SHORT, "a new connection is refused", || {
        let outcome = get_within(&lab.client, &web(), "/", SHORT / 5);
        assert!(!matches!(outcome, Outcome::TimedOut), "refused, not left to wait");
        (outcome == Outcome::Refused).then_some(())
    });
}

#[test]
fn a_download_begun_before_the_stop_finishes_while_new_connections_are_refused() {
    let (lab, mut hapilot, before) = start(&[]);
    let mut download = Download::begin(&lab.client, &web(), "/slow");
    hapilot.signal(Signal::SIGTERM);
    await_refusal(&lab);
    assert!(hapilot.is_running(), "it waits for the download");
    assert_eq!(hapilot.status()["state"], "stopping");
    assert!(download.is_open());

    lab.origin.open_gate();
    assert_eq!(download.finish().body().len(), 2 * HALF);
    let last_session = Instant::now();
    assert_eq!(hapilot.wait(SHORT).code(), Some(0));
    assert!(last_session.elapsed() < SHORT / 2, "nothing is left to wait for");
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn the_stop_command_drains_like_the_signal() {
    let (lab, mut hapilot, before) = start(&[]);
    let download = Download::begin(&lab.client, &web(), "/slow");
    std::thread::scope(|scope| {
        let command = scope.spawn(|| hapilot.command(&["stop"]));
        await_refusal(&lab);
        lab.origin.open_gate();
        assert_eq!(download.finish().body().len(), 2 * HALF);
        let output = command.join().unwrap();
        // with its container it may end before it can say so
        let cut_off = output.status.signal() == Some(Signal::SIGKILL as i32);
        assert!(output.status.success() || cut_off, "{output:?}");
    });
    assert_eq!(hapilot.wait(SHORT).code(), Some(0));
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn with_a_deadline_of_five_seconds_a_stuck_session_ends_with_a_clean_host_inside_them() {
    let (lab, mut hapilot, before) = start(&[("HAPROXY_STOP_DEADLINE", "5s")]);
    let download = Download::begin(&lab.client, &web(), "/hang");
    let begun = Instant::now();
    hapilot.signal(Signal::SIGTERM);
    let status = hapilot.wait(Duration::from_secs(8));
    let took = begun.elapsed();
    assert_eq!(status.code(), Some(0));
    lab.balancer.state().assert_same_as(&before);
    assert!(took <= Duration::from_secs(5), "it took {took:?}");
    assert!(took >= Duration::from_secs(2), "it gave the session only {took:?}");
    assert!(!download.finish().is_answered());
}

#[test]
fn a_haproxy_that_is_frozen_is_gone_inside_the_deadline_too() {
    let (lab, mut hapilot, before) = start(&[("HAPROXY_STOP_DEADLINE", "3s")]);
    let haproxy = hapilot.process_of(&hapilot.current());
    lab::process::freeze(haproxy);
    let begun = Instant::now();
    hapilot.signal(Signal::SIGTERM);
    let status = hapilot.wait(Duration::from_secs(6));
    let took = begun.elapsed();
    assert_eq!(status.code(), Some(0));
    assert!(took <= Duration::from_secs(3), "it took {took:?}");
    assert!(!lab::process::exists(haproxy));
    lab.balancer.state().assert_same_as(&before);
}

/// No handler for the two signals that end HAProxy: it goes on ignoring them, as it was started.
const DEAF: &str = r"
#include <signal.h>
int __sigaction(int, const struct sigaction *, struct sigaction *);
int sigaction(int signal, const struct sigaction *wanted, struct sigaction *former) {
    return __sigaction(signal, signal == SIGUSR1 || signal == SIGTERM ? 0 : wanted, former);
}
void (*signal(int signal, void (*handler)(int)))(int) {
    struct sigaction former, wanted = { .sa_handler = handler, .sa_flags = SA_RESTART };
    return sigaction(signal, &wanted, &former) ? SIG_ERR : former.sa_handler;
}
";

/// A `PATH` with a HAProxy that ignores USR1 and TERM.
fn deaf_haproxy(lab: &Lab) -> String {
    let path = std::env::var("PATH").unwrap();
    let bin = lab.balancer.path("bin");
    std::fs::create_dir(&bin).unwrap();
    let (source, library) = (lab.balancer.write("deaf.c", DEAF), bin.join("deaf.so"));
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-nostdlib", "-o"]).arg(&library).arg(&source);
    let output = lab::bounded::output(&mut compile, LONG);
    assert!(output.status.success(), "{output:?}");
    let real = std::env::split_paths(&path).map(|dir| dir.join("haproxy")).find(|p| p.exists());
    let script = format!(
        "#!/bin/sh\ntrap '' USR1 TERM\nLD_PRELOAD={} exec {} \"$@\"\n",
        library.display(),
        real.unwrap().display()
    );
    lab.balancer.write("bin/haproxy", &script);
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(bin.join("haproxy"), executable).unwrap();
    format!("{}:{path}", bin.display())
}

#[test]
fn a_haproxy_that_ignores_usr1_and_term_is_gone_inside_the_deadline_too() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = haproxy_cfg::transparent(":80", ":::80 v6only");
    let config = lab.balancer.write("haproxy.cfg", &config);
    let spec = lab.balancer.container("hapilot").config(&config).env("PATH", &deaf_haproxy(&lab));
    let mut hapilot = spec.env("HAPROXY_STOP_DEADLINE", "5s").start().serving();
    let old = hapilot.process_of(&hapilot.current());
    let download = Download::begin(&lab.client, &web(), "/hang");
    hapilot.reload();
    let haproxies = [old, hapilot.process_of(&hapilot.current())];
    for haproxy in haproxies {
        let mask = lab::process::field(haproxy, "SigIgn").unwrap();
        let mask = u64::from_str_radix(&mask, 16).unwrap();
        let ignores = |signal: Signal| mask & (1 << (signal as u32 - 1)) != 0;
        assert!(ignores(Signal::SIGUSR1) && ignores(Signal::SIGTERM), "{mask:x}");
    }
    let begun = Instant::now();
    hapilot.signal(Signal::SIGTERM);
    let status = hapilot.wait(Duration::from_secs(8));
    let took = begun.elapsed();
    assert_eq!(status.code(), Some(0));
    assert!(took <= Duration::from_secs(5), "it took {took:?}");
    assert!(!haproxies.into_iter().any(lab::process::exists));
    lab.balancer.state().assert_same_as(&before);
    drop(download);
}

#[test]
fn a_reload_during_the_drain_is_refused_and_does_not_reopen_the_service() {
    let (lab, mut hapilot, before) = start(&[]);
    let download = Download::begin(&lab.client, &web(), "/slow");
    let generation = hapilot.current();
    hapilot.signal(Signal::SIGTERM);
    await_refusal(&lab);
    hapilot.signal(Signal::SIGHUP);
    hapilot.signal(Signal::SIGUSR2);
    let refused = hapilot.command(&["reload"]);
    assert!(!refused.status.success(), "a reload while stopping is refused: {refused:?}");
    assert_eq!(get(&lab.client, &web(), "/"), Outcome::Refused);
    let status = hapilot.status();
    let ids: Vec<_> = lab::generations(&status).iter().map(|one| one.id).collect();
    assert_eq!(ids, [generation.id], "no generation came: {status}");
    lab.origin.open_gate();
    assert_eq!(download.finish().body().len(), 2 * HALF);
    assert_eq!(hapilot.wait(SHORT).code(), Some(0));
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_stop_says_what_it_waits_for_and_at_the_end_what_was_cut() {
    let (lab, mut hapilot, before) = start(&[("HAPROXY_STOP_DEADLINE", "16s")]);
    assert!(hapilot.log.text().contains("docker stop --time=21"), "Docker's own default is less");
    let old = Download::begin(&lab.client, &web(), "/hang");
    hapilot.reload();
    let new = [0, 1].map(|_| Download::begin(&lab.client, &web(), "/hang"));
    hapilot.signal(Signal::SIGTERM);
    let first = hapilot.log.await_line("waiting for");
    assert!(first.contains("generation 1: 1 session,"), "{first}");
    assert!(first.contains("generation 2: 2 sessions,"), "{first}");
    assert_eq!(hapilot.wait(LONG).code(), Some(0));
    lab.balancer.state().assert_same_as(&before);
    // 11.2 s are for the sessions: at the begin and after 10 s
    assert_eq!(hapilot.log.count("waiting for generation 1: 1 session"), 2);
    for (id, sessions) in [(1, "1 session,"), (2, "2 sessions,")] {
        let cut = hapilot.log.await_line(&format!("cut: generation {id}: {sessions}"));
        assert!(cut.contains("HAPROXY_STOP_DEADLINE=16s leaves 11.2s for them"), "{cut}");
        assert!(cut.contains("older_than=\"1"), "{cut}");
    }
    assert!(!old.finish().is_answered());
    drop(new);
}

#[test]
fn sessions_of_a_haproxy_that_may_not_be_looked_into_are_counted_too() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = format!("global\n  user nobody\n{}", haproxy_cfg::proxy(":80", "hapilot"));
    let config = lab.balancer.write("haproxy.cfg", &config);
    let spec = lab.balancer.container("hapilot").config(&config);
    let mut hapilot = spec.without_capabilities("-sys_ptrace").start().serving();
    let download = Download::begin(&lab.client, &web(), "/hang");
    hapilot.signal(Signal::SIGTERM);
    hapilot.log.await_line("waiting for generation 1: 1 session");
    hapilot.signal(Signal::SIGTERM);
    hapilot.log.await_line("cut: generation 1: 1 session");
    assert_eq!(hapilot.wait(SHORT).code(), Some(0));
    lab.balancer.state().assert_same_as(&before);
    drop(download);
}

/// Something is broken that a stop might lean on: it ends clean and inside its deadline all the same.
fn assert_stops_although(wrapper: &[&str], broken: &str) {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = haproxy_cfg::transparent(":80", ":::80 v6only");
    let config = lab.balancer.write("haproxy.cfg", &config);
    let spec = lab.balancer.container("hapilot").config(&config).wrapped(wrapper);
    let mut hapilot = spec.env("HAPROXY_STOP_DEADLINE", "5s").start().serving();
    let download = Download::begin(&lab.client, &web(), "/hang");
    let output = hapilot.exec(&["sh", "-c", broken]);
    assert!(output.status.success(), "{broken}: {output:?}");
    let begun = Instant::now();
    hapilot.signal(Signal::SIGTERM);
    let status = hapilot.wait(Duration::from_secs(8));
    assert!(begun.elapsed() <= Duration::from_secs(5), "{broken}: {:?}", begun.elapsed());
    assert_eq!(status.code(), Some(0), "{broken}");
    lab.balancer.state().assert_same_as(&before);
    drop(download);
}

#[test]
fn a_stop_leans_on_no_file() {
    for broken in [
        "rm -r /run/hapilot",
        "mount -o remount,ro,bind /run && ! touch /run/x",
        "mount -t tmpfs -o size=64k none /run && mkdir /run/hapilot && ! cat /dev/zero >/run/full",
    ] {
        assert_stops_although(&[], broken);
    }
}

#[test]
fn a_stop_leans_on_no_reader_of_its_words() {
    let closed = r#"exec "$@" >&- 2>&-"#;
    // There is a reader, who never reads, and no room for another byte.
    let blocked =
        r#"mkfifo /run/f && exec 3<>/run/f && head -c 65536 /dev/zero >&3 && exec "$@" >&3 2>&1"#;
    for script in [closed, blocked] {
        assert_stops_although(&["sh", "-c", script, "sh"], "true");
    }
}

/// A stuck session must not keep us once the stop is to be at once.
fn assert_ends_at_once((lab, mut hapilot, before): (Lab, Instance, HostState), last: Signal) {
    let begun = Instant::now();
    hapilot.signal(last);
    assert_eq!(hapilot.wait(SHORT).code(), Some(0), "after {:?}", begun.elapsed());
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_stop_that_is_asked_for_while_one_waits_is_now() {
    let (lab, mut hapilot, before) = start(&[]);
    let mut download = Download::begin(&lab.client, &web(), "/hang");
    hapilot.signal(Signal::SIGTERM);
    await_refusal(&lab);
    assert!(download.is_open(), "the first one waits");
    // It dies with its container if it is not quick enough to see the end.
    hapilot.command(&["stop"]);
    assert_eq!(hapilot.wait(SHORT).code(), Some(0));
    assert!(!download.is_open());
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_second_term_stops_now() {
    let (lab, mut hapilot, before) = start(&[]);
    let mut download = Download::begin(&lab.client, &web(), "/hang");
    hapilot.signal(Signal::SIGTERM);
    await_refusal(&lab);
    assert!(hapilot.is_running() && download.is_open(), "the first one waits");
    assert_ends_at_once((lab, hapilot, before), Signal::SIGTERM);
    assert!(!download.is_open());
}

#[test]
fn int_and_quit_stop_now() {
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let (lab, hapilot, before) = start(&[]);
        let mut download = Download::begin(&lab.client, &web(), "/hang");
        assert_ends_at_once((lab, hapilot, before), signal);
        assert!(!download.is_open());
    }
}

#[test]
fn usr1_drains_every_generation_that_still_has_sessions() {
    let (lab, mut hapilot, before) = start(&[]);
    let downloads = [0, 1].map(|_| {
        let download = Download::begin(&lab.client, &web(), "/slow");
        hapilot.reload();
        download
    });
    hapilot.signal(Signal::SIGUSR1);
    await_refusal(&lab);
    assert!(hapilot.is_running());
    lab.origin.open_gate();
    for download in downloads {
        assert_eq!(download.finish().body().len(), 2 * HALF);
    }
    assert_eq!(hapilot.wait(SHORT).code(), Some(0));
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_stop_before_anything_is_ready_ends_clean() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = haproxy_cfg::transparent(":80", ":::80 v6only");
    let config = lab.balancer.write("haproxy.cfg", &config);
    for _ in 0..5 {
        let mut hapilot = lab.balancer.container("hapilot").config(&config).start();
        until(SHORT, "it is hapilot by now", || {
            (lab::process::name(hapilot.pid())? == "hapilot").then_some(())
        });
        // PID 1 is deaf until it has subscribed: what is sent again is what arrives
        let status = until(SHORT, "it ends", || {
            hapilot.signal(Signal::SIGTERM);
            (!hapilot.is_running()).then(|| hapilot.wait(SHORT))
        });
        assert_eq!(status.code(), Some(0), "{status}");
        lab.balancer.state().assert_same_as(&before);
    }
}
