//! Promise: a crash of HAProxy refuses nobody, and one of hapilot leaves nothing for good.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

mod lab;

use std::time::{Duration, Instant};

use lab::client::{connect, finish};
use lab::network::BALANCER4;
use lab::{HostState, Instance, LONG, Lab, Outcome, Pid, SHORT, get, haproxy_cfg};
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

#[test]
fn five_crashes_in_a_row_back_off_and_still_refuse_nobody() {
    let (lab, mut hapilot, before) = start_with(&[], Pid::One);
    let mut pauses = Vec::new();
    for crash in 1..=5 {
        let begun = Instant::now();
        let killed = kill_haproxy(&hapilot);
        let begun_client = lab.client.enter(|| connect(&web(), LONG)).expect("queued, not refused");
        hapilot.await_successor(&killed);
        pauses.push(begun.elapsed());
        assert_eq!(finish(begun_client, "/", begun).body(), "10.1.0.2");
        assert_eq!(hapilot.status()["crashes"], crash);
    }
    assert!(pauses.is_sorted(), "each restart comes later than the one before: {pauses:?}");
    assert!(pauses[4] >= Duration::from_secs(3), "the fifth waits for 4 s: {pauses:?}");
    assert!(pauses[0] < Duration::from_secs(1), "the first comes at once: {pauses:?}");
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

#[test]
fn the_rules_that_a_killed_hapilot_leaves_disturb_no_other_traffic() {
    let (lab, _) = kill_hapilot(Pid::One);
    let origin = get(&lab.client, "10.2.0.2:8000", "/");
    assert_eq!(origin.body(), "10.1.0.2", "forwarded as ever");
    assert_eq!(get(&lab.client, &web(), "/"), Outcome::Refused, "at once, not after a time-out");
}
