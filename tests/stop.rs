//! Promise: a stop drains, ends within its deadline whatever HAProxy does, and leaves nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

mod lab;

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use lab::client::get_within;
use lab::network::BALANCER4;
use lab::origin::HALF;
use lab::{Download, HostState, Instance, Lab, Outcome, SHORT, get, haproxy_cfg, until};
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
fn an_haproxy_that_ignores_term_is_gone_inside_the_deadline_too() {
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

/// A stuck session must not keep us once the stop is to be at once.
fn assert_ends_at_once((lab, mut hapilot, before): (Lab, Instance, HostState), last: Signal) {
    let begun = Instant::now();
    hapilot.signal(last);
    assert_eq!(hapilot.wait(SHORT).code(), Some(0), "after {:?}", begun.elapsed());
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
