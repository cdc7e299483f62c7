//! Promise: hapilot is a good first process, and its exit status says what happened.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use lab::network::BALANCER4;
use std::os::unix::fs::PermissionsExt;

use lab::{Host, Instance, Lab, Pid, SHORT, get, haproxy_cfg, until};
use nix::sys::signal::Signal;

fn start(lab: &Lab, pid: Pid) -> Instance {
    let config = lab.balancer.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "v1"));
    lab.balancer.container("hapilot").config(&config).pid(pid).start().serving()
}

/// Makes an orphan in the container and returns it as the host knows it.
fn make_orphan(hapilot: &Instance) -> u32 {
    let others = hapilot.processes();
    let made = hapilot.exec(&["sh", "-c", "sleep 1000 >/dev/null 2>&1 & exit"]);
    assert!(made.status.success(), "{made:?}");
    let orphan = until(SHORT, "the orphan", || {
        let all = hapilot.processes().into_iter();
        let mut fresh = all.filter(|pid| !others.contains(pid));
        fresh.find(|pid| lab::process::name(*pid).as_deref() == Some("sleep"))
    });
    until(SHORT, "hapilot is its parent", || {
        (lab::process::field(orphan, "PPid")? == hapilot.pid().to_string()).then_some(())
    });
    orphan
}

/// A `PATH` with a `haproxy` that leaves a process behind at its first start and then becomes the real one.
fn haproxy_that_leaves_an_orphan(lab: &Lab) -> String {
    let path = std::env::var("PATH").unwrap();
    let real = std::env::split_paths(&path).map(|dir| dir.join("haproxy")).find(|p| p.exists());
    let directory = lab.balancer.path("wrapped");
    std::fs::create_dir(&directory).unwrap();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *-x*) ;; *-db*) (sleep 1000 >/dev/null 2>&1 &) ;; esac\nexec {} \"$@\"\n",
        real.unwrap().display()
    );
    let program = directory.join("haproxy");
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{path}", directory.display())
}

fn await_reaped(orphan: u32) {
    until(SHORT, "the zombie is reaped", || (!lab::process::exists(orphan)).then_some(()));
}

#[test]
fn an_orphans_zombie_is_reaped() {
    let lab = Lab::new();
    let mut hapilot = start(&lab, Pid::One);
    for _ in 0..3 {
        let orphans = [0; 5].map(|_| make_orphan(&hapilot));
        for orphan in orphans {
            lab::process::kill(orphan, Signal::SIGKILL);
        }
        orphans.into_iter().for_each(await_reaped);
    }
    hapilot.stop();
}

#[test]
fn no_tool_loses_its_exit_status_to_the_reaper() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config =
        lab.balancer.write("haproxy.cfg", &haproxy_cfg::transparent(":80", ":::80 v6only"));
    for _ in 0..3 {
        let mut hapilot = lab.balancer.container("hapilot").config(&config).start();
        // orphans that end all the time, while the tools of start, reload and stop run
        let storm = "i=0; while [ $i -lt 150 ]; do (true &); i=$((i+1)); done";
        until(SHORT, "the container is there", || {
            (lab::process::name(hapilot.pid())? == "hapilot").then_some(())
        });
        std::thread::scope(|scope| {
            let hapilot = &hapilot;
            let storm = scope.spawn(|| hapilot.exec(&["sh", "-c", storm]));
            let blown = storm.join().unwrap();
            assert!(blown.status.success(), "the orphans were made: {blown:?}");
        });
        hapilot.await_serving();
        assert_eq!(get(&lab.client, &format!("{BALANCER4}:80"), "/").body(), "10.1.0.2");
        std::thread::scope(|scope| {
            let storm = scope.spawn(|| hapilot.exec(&["sh", "-c", storm]));
            hapilot.reload();
            hapilot.signal(Signal::SIGTERM);
            // It may end with the container, but it must have begun.
            assert!(storm.join().is_ok());
        });
        assert_eq!(hapilot.wait(SHORT).code(), Some(0));
        for words in ["No child process", "ECHILD", "os error 10"] {
            assert_eq!(hapilot.log.count(words), 0, "{words}");
        }
        lab.balancer.state().assert_same_as(&before);
    }
}

#[test]
fn as_the_first_process_it_hears_term_and_leaves_nobody() {
    let lab = Lab::new();
    let mut hapilot = start(&lab, Pid::One);
    assert_eq!(lab::process::inner_pid(hapilot.pid()), Some(1));
    make_orphan(&hapilot);
    hapilot.stop();
    until(SHORT, "everybody is gone", || hapilot.processes().is_empty().then_some(()));
}

#[test]
fn beside_the_hosts_processes_it_adopts_and_reaps_what_haproxy_leaves() {
    let lab = Lab::new();
    let config = lab.balancer.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "v1"));
    let spec = lab.balancer.container("hapilot").config(&config).pid(Pid::OfTheHost);
    let mut hapilot = spec.env("PATH", &haproxy_that_leaves_an_orphan(&lab)).start().serving();
    assert_ne!(lab::process::inner_pid(hapilot.pid()), Some(1));
    let parent = hapilot.pid().to_string();
    let orphan = until(SHORT, "hapilot has adopted the orphan", || {
        let named = |pid: &u32| lab::process::name(*pid).as_deref() == Some("sleep");
        let orphan = hapilot.processes().into_iter().find(named)?;
        (lab::process::field(orphan, "PPid")? == parent).then_some(orphan)
    });
    lab::process::kill(orphan, Signal::SIGKILL);
    await_reaped(orphan);
    hapilot.reload();
    assert_eq!(get(&lab.client, &format!("{BALANCER4}:80"), "/").body(), "10.2.0.1");
    hapilot.stop();
    assert_eq!(hapilot.processes(), Vec::<u32>::new());
}

#[test]
fn below_a_shell_it_says_what_that_keeps_from_it_and_reaps_what_haproxy_leaves() {
    let lab = Lab::new();
    let config = lab.balancer.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "v1"));
    let spec = lab.balancer.container("hapilot").config(&config);
    // With a command behind it the shell does not become hapilot.
    let spec = spec.wrapped(&["sh", "-c", "\"$@\"; exit $?", "-"]);
    let spec = spec.env("PATH", &haproxy_that_leaves_an_orphan(&lab));
    let mut container = spec.start().serving();
    assert_eq!(lab::process::inner_pid(container.pid()), Some(1));
    let told = container.log.await_line("the container's first process");
    assert!(told.contains("passes no signal on") && told.contains("exec"), "{told}");
    let find = |name: &str| {
        let mut all = container.processes().into_iter();
        all.find(|pid| lab::process::name(*pid).as_deref() == Some(name))
    };
    let hapilot = find("hapilot").unwrap();
    let orphan = until(SHORT, "hapilot has adopted the orphan", || {
        find("sleep").filter(|pid| lab::process::field(*pid, "PPid") == Some(hapilot.to_string()))
    });
    lab::process::kill(orphan, Signal::SIGKILL);
    await_reaped(orphan);
    lab::process::kill(hapilot, Signal::SIGTERM);
    assert_eq!(container.wait(SHORT).code(), Some(0), "{}", container.log.text());
}

#[test]
fn haproxys_output_never_blocks_it_and_each_line_tells_its_generation() {
    let lab = Lab::new();
    let config = haproxy_cfg::proxy(":80", "v1")
        .replace("mode http\n", "mode http\n  log stdout format raw local0\n  option httplog\n");
    let config = lab.balancer.write("haproxy.cfg", &config);
    let mut hapilot = lab.balancer.container("hapilot").config(&config).start().serving();
    let path = format!("/?{}", "long".repeat(500));
    for _ in 0..60 {
        get(&lab.client, &format!("{BALANCER4}:80"), &path);
    }
    hapilot.log.await_line("longlong");
    assert!(get(&lab.client, &format!("{BALANCER4}:80"), "/").is_answered());
    hapilot.stop();
}

#[test]
fn a_first_start_without_a_listener_ends_and_says_so() {
    let host = Host::alone();
    let before = host.state();
    let empty = host.write("haproxy.cfg", "");
    let spec = host.container("hapilot").config(&empty);
    spec.finish().assert_code(1).assert_says(&["listen on nothing"]);
    host.state().assert_same_as(&before);
}

#[test]
fn a_first_start_with_a_broken_configuration_ends_with_haproxys_words_and_status() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = lab.balancer.write("haproxy.cfg", haproxy_cfg::BROKEN);
    let ended = lab.balancer.container("hapilot").config(&config).finish();
    ended.assert_code(1).assert_says(&[haproxy_cfg::BROKEN_WORD, "[ALERT]"]);
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_first_start_that_only_fails_at_the_bind_ends_with_haproxys_words_and_status() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let _holder =
        lab.balancer.namespace.enter(|| std::net::TcpListener::bind("0.0.0.0:80").unwrap());
    let config = lab.balancer.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "v1"));
    let ended = lab.balancer.container("hapilot").config(&config).finish();
    ended.assert_code(1).assert_says(&["cannot bind socket"]);
    lab.balancer.state().assert_same_as(&before);
}

/// A `PATH` with every tool of this machine except `haproxy`.
fn tools_without_haproxy(host: &Host) -> PathBuf {
    let dir = host.path("tools");
    std::fs::create_dir(&dir).unwrap();
    for from in ["/usr/sbin", "/usr/bin", "/sbin", "/bin"] {
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != "haproxy" {
                let _ = symlink(entry.path(), dir.join(entry.file_name()));
            }
        }
    }
    dir
}

#[test]
fn without_haproxy_it_ends_with_127_and_with_one_that_cannot_run_with_126() {
    let host = Host::alone();
    let before = host.state();
    let tools = tools_without_haproxy(&host);
    let config = host.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "v1"));
    let spec = || host.container("hapilot").config(&config);
    spec().env("PATH", tools.to_str().unwrap()).finish().assert_code(127).assert_says(&["haproxy"]);

    let broken = host.path("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("haproxy"), "no program at all").unwrap();
    let path = format!("{}:{}", broken.display(), tools.display());
    spec().env("PATH", &path).finish().assert_code(126).assert_says(&["haproxy"]);
    host.state().assert_same_as(&before);
}
