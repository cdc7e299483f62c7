//! Promise: a crash of HAProxy refuses nobody, and one of hapilot leaves nothing for good.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::time::{Duration, Instant};

use lab::client::{connect, finish};
use lab::network::BALANCER4;
use lab::spec::Spec;
use lab::{
    Download, HalfOpen, HostState, Instance, LONG, Lab, Load, Outcome, Pid, SHORT, get, haproxy_cfg,
};
use nix::sys::signal::Signal;

fn web() -> String {
    format!("{BALANCER4}:80")
}

fn start_with(settings: &[(&str, &str)], pid: Pid) -> (Lab, Instance, HostState) {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = haproxy_cfg::transparent(":80", ":::80 v6only");
    let config = lab.balancer.write("haproxy.cfg", &config);
    let spec = lab.balancer.container("hapilot").config(&config).pid(pid);
    let hapilot = spec.envs(settings).start().serving();
    (lab, hapilot, before)
}

fn kill_haproxy(hapilot: &Instance) -> lab::Generation {
    let current = hapilot.current();
    lab::process::kill(hapilot.process_of(&current), Signal::SIGKILL);
    current
}

#[test]
fn a_killed_haproxy_is_replaced_and_no_connection_is_refused_meanwhile() {
    let (lab, mut hapilot, before) = start_with(&[], Pid::One);
    let killed = kill_haproxy(&hapilot);
    // whoever comes while nobody accepts waits in the kernel's queue
    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let outcome = get(&lab.client, &web(), "/");
        assert_eq!(outcome.body(), "10.1.0.2");
        let Outcome::Answered(answer) = outcome else { unreachable!() };
        slowest = slowest.max(answer.latency);
    }
    assert!(slowest < Duration::from_secs(3), "one waited {slowest:?}");
    let successor = hapilot.await_successor(&killed);
    assert_ne!(successor.pid, killed.pid);
    assert_eq!(hapilot.status()["crashes"], 1);
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn connections_that_wait_to_be_accepted_when_haproxy_dies_are_served_by_the_next() {
    let (lab, mut hapilot, before) = start_with(&[], Pid::One);
    let current = hapilot.current();
    let haproxy = hapilot.process_of(&current);
    lab::process::freeze(haproxy);
    let begun = Instant::now();
    let waiting: Vec<_> =
        lab.client.enter(|| (0..20).map(|_| connect(&web(), LONG).unwrap()).collect());
    lab::process::kill(haproxy, Signal::SIGKILL);
    for stream in waiting {
        assert_eq!(finish(stream, "/", begun).body(), "10.1.0.2");
    }
    hapilot.await_successor(&current);
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

/// What waits at the listeners of the dead one would be lost with them, if the next one had others.
#[test]
fn connections_that_wait_when_haproxy_dies_are_served_though_the_bind_on_disk_is_another() {
    let (lab, mut hapilot, before) = start_with(&[], Pid::One);
    let current = hapilot.current();
    let haproxy = hapilot.process_of(&current);
    lab::process::freeze(haproxy);
    let begun = Instant::now();
    let waiting: Vec<_> =
        lab.client.enter(|| (0..20).map(|_| connect(&web(), LONG).unwrap()).collect());
    let other = haproxy_cfg::transparent(":80 interface b0", ":::80 v6only");
    lab.balancer.write("haproxy.cfg", &other);
    lab::process::kill(haproxy, Signal::SIGKILL);
    for stream in waiting {
        assert_eq!(finish(stream, "/", begun).body(), "10.1.0.2");
    }
    hapilot.log.await_line("a reload to the one on disk follows");
    hapilot.log.await_line("reload taken");
    hapilot.await_successor(&current);
    assert_eq!(get(&lab.client, &web(), "/").body(), "10.1.0.2");
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_crash_beside_a_broken_configuration_is_answered_with_the_last_good_one() {
    let (lab, mut hapilot, before) = start_with(&[], Pid::One);
    lab.balancer.write("haproxy.cfg", "frontend broken\n  no-such-keyword\n");
    assert!(!hapilot.command(&["reload"]).status.success());
    let killed = kill_haproxy(&hapilot);
    assert_eq!(get(&lab.client, &web(), "/").body(), "10.1.0.2", "waited and was served");
    let successor = hapilot.await_successor(&killed);
    assert_ne!(successor.pid, killed.pid);
    hapilot.log.await_line("last good one");
    let config = haproxy_cfg::transparent(":80", ":::80 v6only");
    lab.balancer.write("haproxy.cfg", &config);
    hapilot.reload();
    assert_eq!(get(&lab.client, &web(), "/").body(), "10.1.0.2");
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

/// Without a question to hapilot first, which takes a while on a busy machine.
fn kill_each_haproxy_at_once(hapilot: &Instance) {
    let named = |pid: &u32| lab::process::name(*pid).as_deref() == Some("haproxy");
    let all: Vec<u32> = hapilot.processes().into_iter().filter(named).collect();
    assert!(!all.is_empty(), "no HAProxy to kill");
    for pid in &all {
        lab::process::kill(*pid, Signal::SIGKILL);
    }
    // Until then it may still accept.
    lab::until(SHORT, "each is dead", || {
        let dead =
            |pid: &u32| lab::process::field(*pid, "State").is_none_or(|s| s.starts_with('Z'));
        all.iter().all(dead).then_some(())
    });
}

#[test]
fn five_crashes_in_a_row_back_off_and_still_refuse_nobody() {
    let (lab, mut hapilot, before) = start_with(&[], Pid::One);
    let mut pauses = Vec::new();
    for _ in 1..=5 {
        let begun = Instant::now();
        kill_each_haproxy_at_once(&hapilot);
        let begun_client = lab.client.enter(|| connect(&web(), LONG)).expect("queued, not refused");
        assert_eq!(finish(begun_client, "/", begun).body(), "10.1.0.2");
        pauses.push(begun.elapsed());
    }
    hapilot.await_serving();
    assert_eq!(hapilot.status()["crashes"], 5);
    assert!(pauses[3] >= Duration::from_millis(500), "the fourth waits for 0.5 s: {pauses:?}");
    assert!(pauses[4] >= Duration::from_secs(1), "the fifth waits for 1 s: {pauses:?}");
    let at_once = hapilot.log.count("restart_in_ms=0");
    assert_eq!(at_once, 3, "the first three come at once: {pauses:?}");
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

/// Twelve kills, each straight after two reloads: no single generation serves for long, but clients
/// are served all the time in between.
#[test]
fn kills_between_reloads_that_serve_are_not_in_a_row() {
    let (lab, mut hapilot, before) = start_with(&[], Pid::One);
    for crash in 1..=12 {
        hapilot.reload();
        std::thread::sleep(Duration::from_millis(350));
        hapilot.reload();
        let killed = kill_haproxy(&hapilot);
        hapilot.await_successor(&killed);
        assert_eq!(hapilot.status()["crashes"], crash);
    }
    assert_eq!(hapilot.log.count("in_a_row=1 restart_in_ms=0"), 12, "each is the first");
    assert_eq!(get(&lab.client, &web(), "/").body(), "10.1.0.2");
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

/// Milliseconds between a refused start and the next launch: as announced, and as they came.
fn waits(log: &str) -> Vec<(u64, i64)> {
    let at = |line: &str| {
        let time = line.split_whitespace().next().unwrap();
        let time = humantime::parse_rfc3339(time).unwrap();
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap();
        i64::try_from(since.as_millis()).unwrap()
    };
    let mut waits = Vec::new();
    let mut announced = None;
    for line in log.lines() {
        let mut words = line.split_whitespace();
        if let Some(word) = words.find_map(|word| word.strip_prefix("again_in_ms=")) {
            announced = Some((word.parse().unwrap(), at(line)));
        } else if line.contains("started HAProxy")
            && let Some((wait, from)) = announced.take()
        {
            waits.push((wait, at(line) - from));
        }
    }
    waits
}

#[test]
fn a_name_that_is_away_is_no_crash_and_each_wait_is_as_announced() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let known = "10.2.0.2 app.internal\n";
    let hosts = lab.balancer.write("hosts", known);
    // No name server answers.
    let resolver = lab.balancer.write("resolv.conf", "nameserver 127.0.0.1\n");
    let config = [
        haproxy_cfg::DEFAULTS.to_owned(),
        haproxy_cfg::frontend("web", &[":80"], "hapilot", "origin"),
        haproxy_cfg::backend("origin", "", "app.internal"),
    ];
    let config = lab.balancer.write("haproxy.cfg", &config.concat());
    let spec = lab.balancer.container("hapilot").config(&config);
    let spec = spec.bind(&hosts, "/etc/hosts").bind(&resolver, "/etc/resolv.conf");
    let mut hapilot = spec.start().serving();

    std::fs::write(&hosts, "").unwrap();
    kill_haproxy(&hapilot);
    // The third wait that is no turn of the last good configuration.
    hapilot.log.await_line("again_in_ms=4000");
    let waiting = lab.client.enter(|| connect(&web(), LONG)).expect("queued, not refused");
    std::fs::write(&hosts, known).unwrap();
    assert_eq!(finish(waiting, "/", Instant::now()).body(), "10.2.0.1");
    hapilot.await_serving();
    assert_eq!(hapilot.status()["crashes"], 1, "HAProxy refused to start; it did not crash");

    let waits = waits(&hapilot.log.text());
    let announced: Vec<_> = waits.iter().map(|(announced, _)| *announced).collect();
    assert_eq!(announced, [0, 0, 0, 1000, 0, 4000]);
    for (announced, came) in waits {
        assert!(came + 5 >= i64::try_from(announced).unwrap(), "{announced} ms became {came}");
    }
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

/// The connections that HAProxy itself has, not only the kernel.
fn accepted(lab: &Lab) -> usize {
    let sockets = lab.balancer.namespace.run("ss -Htane exclude listening sport = :80");
    let owned = |line: &&str| {
        line.split_whitespace().any(|word| word.starts_with("ino:") && word != "ino:0")
    };
    sockets.lines().filter(owned).count()
}

/// `scripts/bench killed` makes twenty, over a round trip.
#[test]
fn eight_kills_under_load_refuse_nobody_and_cost_only_who_was_inside() {
    let (lab, mut hapilot, before) = start_with(&[], Pid::One);
    let load = Load::start(&lab.client, &web());
    let mut inside = 0;
    for _ in 0..8 {
        let half_open = HalfOpen::connect(&lab.client, 80, 10);
        let current = hapilot.current();
        let haproxy = hapilot.process_of(&current);
        // Whoever is inside now is inside when it dies.
        lab::process::freeze(haproxy);
        inside += accepted(&lab);
        lab::process::kill(haproxy, Signal::SIGKILL);
        for outcome in half_open.finish() {
            assert_eq!(outcome.body(), "10.1.0.2");
        }
        hapilot.await_successor(&current);
        // One that serves for less than half a second dies in a row with the last one.
        std::thread::sleep(Duration::from_millis(600));
    }
    let tally = load.finish();
    let died = |outcome: &Outcome| matches!(outcome, Outcome::Reset | Outcome::CutShort(_));
    assert!(tally.failed.iter().all(died), "{:?}", tally.failed);
    assert!(tally.failed.len() <= inside, "{} of {inside}: {:?}", tally.failed.len(), tally.failed);
    assert!(tally.answered > 200, "too few to prove anything: {}", tally.answered);
    assert_eq!(hapilot.status()["crashes"], 8);
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_crash_that_is_to_end_us_ends_with_its_status_and_a_clean_host() {
    let (lab, mut hapilot, before) = start_with(&[("HAPROXY_ON_CRASH", "exit")], Pid::One);
    kill_haproxy(&hapilot);
    assert_eq!(hapilot.wait(SHORT).code(), Some(137));
    lab.balancer.state().assert_same_as(&before);
    assert_eq!(get(&lab.client, &web(), "/"), Outcome::Refused);
}

#[test]
fn a_reload_still_works_after_a_crash() {
    let (lab, mut hapilot, before) = start_with(&[], Pid::One);
    let killed = kill_haproxy(&hapilot);
    let second = hapilot.await_successor(&killed);
    hapilot.reload();
    let third = hapilot.await_successor(&second);
    assert_eq!(get(&lab.client, &web(), "/").body(), "10.1.0.2");
    assert!(third.id > second.id);
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_stop_while_haproxy_is_being_replaced_is_clean() {
    let (lab, mut hapilot, before) = start_with(&[], Pid::One);
    for _ in 0..3 {
        let killed = kill_haproxy(&hapilot);
        hapilot.await_successor(&killed);
    }
    kill_haproxy(&hapilot);
    hapilot.signal(Signal::SIGTERM);
    assert_eq!(hapilot.wait(SHORT).code(), Some(0));
    lab.balancer.state().assert_same_as(&before);
}

/// Kills hapilot, and says what it left.
fn kill_hapilot(pid: Pid) -> (Lab, HostState) {
    let (lab, mut hapilot, before) = start_with(&[], pid);
    hapilot.signal(Signal::SIGKILL);
    hapilot.wait(SHORT);
    drop(hapilot);
    let left = lab.balancer.state();
    assert!(left.part("iptables-save").contains("HAPILOT-"), "else there is nothing to clean");
    assert_eq!(left.part("leases"), "", "the lease died with its holder");
    assert!(!left.difference(&before).is_empty());
    (lab, before)
}

#[test]
fn what_a_killed_hapilot_left_is_swept_on_demand() {
    let (lab, before) = kill_hapilot(Pid::One);
    let swept = lab.balancer.container("hapilot").args(&["sweep"]).finish();
    swept.assert_code(0);
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn what_a_killed_hapilot_left_is_gone_after_the_next_start_and_stop_in_its_container() {
    let (lab, before) = kill_hapilot(Pid::One);
    let config = lab.balancer.path("haproxy.cfg");
    let mut next = lab.balancer.container("hapilot").config(&config).start().serving();
    assert_eq!(get(&lab.client, &web(), "/").body(), "10.1.0.2");
    let chains = |state: &HostState| state.part("iptables-save").matches("\n:HAPILOT-").count();
    assert_eq!(chains(&lab.balancer.state()), 1, "the dead one's chain is gone already");
    next.reload();
    next.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn what_a_killed_hapilot_left_is_gone_after_a_start_and_stop_in_another_container() {
    let (lab, before) = kill_hapilot(Pid::OfTheHost);
    let config = lab.balancer.path("haproxy.cfg");
    let spec = lab.balancer.container("successor").config(&config).pid(Pid::OfTheHost);
    let mut next = spec.start().serving();
    assert_eq!(get(&lab.client, &web(), "/").body(), "10.1.0.2");
    next.stop();
    lab.balancer.state().assert_same_as(&before);
}

/// As on a host: whoever starts in its place sees the same files, its own `/run/hapilot` too.
fn in_the_place_of<'l>(lab: &'l Lab, orphan: u32, pids: &str) -> Spec<'l> {
    let orphan = orphan.to_string();
    let spec = lab.balancer.container("hapilot").config(&lab.balancer.path("haproxy.cfg"));
    let there = ["nsenter", "--target", &orphan, "--mount", "--"];
    spec.pid(Pid::OfTheHost).env("HAPROXY_PIDS", pids).wrapped(&there)
}

/// A HAProxy with a download under way, whose hapilot is killed; and its PID.
fn orphan() -> (Lab, Instance, HostState, Download, u32) {
    let (lab, mut hapilot, before) = start_with(&[], Pid::OfTheHost);
    hapilot.reload();
    let orphan = hapilot.process_of(&hapilot.current());
    let download = Download::begin(&lab.client, &web(), "/slow");
    hapilot.signal(Signal::SIGKILL);
    hapilot.wait(SHORT);
    (lab, hapilot, before, download, orphan)
}

#[test]
fn what_outlives_a_killed_hapilot_on_a_host_is_relieved_by_its_runtime_socket() {
    let (lab, killed, before, download, orphan) = orphan();
    let load = Load::start(&lab.client, &web());
    let half_open = HalfOpen::connect(&lab.client, 80, 10);
    let mut next = in_the_place_of(&lab, orphan, "auto").start();
    let status = next.await_status("a take-over is written down", |status| {
        status["state"] == "serving" && !status["last_takeover"].is_null()
    });
    let receipt = &status["last_takeover"];
    assert_eq!(receipt["predecessors"][0]["name"], format!("HAProxy {orphan}"), "{receipt}");
    assert_eq!(receipt["predecessors"][0]["rung"], "stats-socket", "{receipt}");
    assert_eq!(receipt["strategy"], "shared", "{receipt}");
    assert_eq!(receipt["doubts"], serde_json::json!([]), "{receipt}");
    for outcome in half_open.finish() {
        assert_eq!(outcome.body(), "10.1.0.2");
    }
    let told = next.log.await_line("of a hapilot that was killed");
    assert!(told.contains(&format!("HAProxy {orphan} ")) && told.contains("relieved"), "{told}");
    lab.origin.open_gate();
    assert!(download.finish().is_answered());
    next.await_status("it is gone", |status| {
        status["last_takeover"]["predecessors"][0]["state"] == "gone"
    });
    next.reload();
    let tally = load.finish();
    assert_eq!(tally.failed, [], "of {}", tally.answered);
    next.stop();
    drop(killed);
    lab.balancer.state().assert_same_as(&before);
}

/// Also by one who started beside it, and whose own first generation has its runtime socket's name.
#[test]
fn who_was_not_asked_to_relieve_it_says_how_and_the_next_one_does() {
    let (lab, killed, before, download, orphan) = orphan();
    let mut beside = in_the_place_of(&lab, orphan, "").start().serving();
    let told = beside.log.await_line(&format!("HAProxy {orphan} of a hapilot that was killed"));
    for words in ["HAPROXY_PIDS=auto", &format!("kill -USR1 {orphan}")] {
        assert!(told.contains(words), "{told}");
    }
    beside.stop();
    assert!(lab::process::exists(orphan));
    let mut next = in_the_place_of(&lab, orphan, "auto").start();
    next.await_status("it relieves", |status| !status["last_takeover"].is_null());
    lab.origin.open_gate();
    assert!(download.finish().is_answered());
    next.await_status("it is gone", |status| {
        status["last_takeover"]["predecessors"][0]["state"] == "gone"
    });
    assert_eq!(get(&lab.client, &web(), "/").body(), "10.1.0.2");
    next.stop();
    drop(killed);
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn the_rules_that_a_killed_hapilot_leaves_disturb_no_other_traffic() {
    let (lab, _) = kill_hapilot(Pid::One);
    let origin = get(&lab.client, "10.2.0.2:8000", "/");
    assert_eq!(origin.body(), "10.1.0.2", "forwarded as ever");
    assert_eq!(get(&lab.client, &web(), "/"), Outcome::Refused, "at once, not after a time-out");
}
