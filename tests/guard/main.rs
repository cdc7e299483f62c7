//! What a reload does not share loses nothing under a guard, and a guard outlives nobody.
//!
//! A real HAProxy (the one in PATH) and a real kernel: client and balancer are network namespaces
//! with a wire between them. Needs root, the iptables programs, iproute2 and util-linux.
//!
//! A wire without delay hides half-open connections, so the tests make them: the client's ACKs to
//! one address get lost until the test lets them pass.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a helper that cannot go on fails the test"
)]

mod load;
mod world;

use std::time::{Duration, Instant};

use load::{HalfOpen, Load, burst, connects};
use world::{LISTENERS, Serving, World, until};

/// The same address with another `bind` option gets a socket of its own.
const PLAIN: &str = "";
const OTHER: &str = "transparent";

const SHORT: Duration = Duration::from_secs(5);
/// Two cores that others use too.
const SLACK: Duration = Duration::from_millis(300);
/// The client's first retransmission of a SYN.
const RETRANSMISSION: Duration = Duration::from_secs(1);

fn reload_back_and_forth(serving: &Serving, times: usize) -> Vec<serde_json::Value> {
    let configure = |turn: usize| {
        serving.configure(if turn.is_multiple_of(2) { OTHER } else { PLAIN });
        let receipt = serving.reload();
        assert_eq!(
            receipt["listeners"]["not_shared"].as_array().unwrap().len(),
            LISTENERS,
            "{receipt}"
        );
        receipt
    };
    (0..times).map(configure).collect()
}

/// Steady connects and half-open ones over reloads that share nothing; the slowest, and the
/// longest window.
fn loses_nothing(setting: &str, guard: &str, migrate: &str) -> (Duration, Duration) {
    let world = World::new();
    world.balancer.set_sysctl("net.ipv4.tcp_migrate_req", migrate);
    let serving = world.serve(PLAIN, &[("HAPROXY_RELOAD_GUARD", setting)]);
    let before = world.rules();
    let load = Load::start(&world.client, Duration::from_millis(5));
    let mut receipts = reload_back_and_forth(&serving, 3);
    let half_open = HalfOpen::connect(&world.client, 20);
    serving.configure(PLAIN);
    let reload = serving.begin_reload();
    if guard == "migrate" {
        // The old sockets are gone, with their handshakes half done.
        until(SHORT, "the old listeners are gone", || {
            (world.rules().contains("-GUARD") && world.listeners() == LISTENERS).then_some(())
        });
    } else {
        until(SHORT, "the guard is up", || world.rules().contains("-GUARD").then_some(()));
    }
    half_open.finish();
    receipts.push(reload());
    let slowest = load.stop();
    for receipt in &receipts {
        eprintln!("{receipt}");
        assert_eq!(receipt["guard"], guard, "{receipt}");
        assert_eq!(receipt["verdict"], "taken", "{receipt}");
        assert_eq!(receipt["warnings"].as_array().unwrap().len(), 0, "{receipt}");
    }
    assert_eq!(receipts[0]["doubts"].as_array().unwrap().len(), 0, "{}", receipts[0]);
    assert_eq!(world.rules(), before, "{setting}: something was left");
    assert_eq!(world.balancer.sysctl("net.ipv4.tcp_migrate_req"), migrate);
    let window =
        |r: &serde_json::Value| Duration::from_secs_f64(r["window_ms"].as_f64().unwrap() / 1e3);
    let longest = receipts.iter().map(window).max().unwrap();
    eprintln!("{setting}: slowest {slowest:?}, longest window {longest:?}");
    (slowest, longest)
}

#[test]
fn under_migrate_nothing_is_lost_and_nobody_waits() {
    let (slowest, _) = loses_nothing("auto", "migrate", "0");
    assert!(slowest < SLACK, "{slowest:?}");
}

#[test]
fn under_hold_nothing_is_lost_and_nobody_waits_longer_than_the_window() {
    let (slowest, window) = loses_nothing("hold", "hold", "0");
    assert!(slowest < window + SLACK, "{slowest:?} with a window of {window:?}");
}

#[test]
fn under_drop_nothing_is_lost_and_nobody_waits_longer_than_one_retransmission() {
    let (slowest, _) = loses_nothing("drop", "drop", "0");
    assert!(slowest < RETRANSMISSION + SLACK, "{slowest:?}");
}

/// Otherwise the three tests above would show nothing.
#[test]
fn without_a_guard_half_open_connections_are_lost_and_the_receipt_says_so() {
    let world = World::new();
    let serving = world.serve(PLAIN, &[("HAPROXY_RELOAD_GUARD", "none")]);
    let half_open = HalfOpen::connect(&world.client, 20);
    serving.configure(OTHER);
    let receipt = serving.reload();
    assert_eq!(receipt["guard"], "none", "{receipt}");
    assert_ne!(receipt["doubts"].as_array().unwrap().len(), 0, "{receipt}");
    assert!(half_open.count_lost() > 0);
}

/// Half-open connections keep the guard up while many more begin than the backlog takes at once.
#[test]
fn what_is_held_is_let_through_no_faster_than_the_backlog_takes_it() {
    let world = World::new();
    let serving = world.serve("backlog 16", &[("HAPROXY_RELOAD_GUARD", "hold")]);
    let half_open = HalfOpen::connect(&world.client, 8);
    serving.configure("backlog 16 transparent");
    let reload = serving.begin_reload();
    until(SHORT, "the guard is up", || world.rules().contains("-GUARD").then_some(()));
    let burst = burst(&world.client, 150);
    std::thread::sleep(Duration::from_millis(100));
    half_open.finish();
    let receipt = reload();
    let slowest = burst.join().unwrap();
    eprintln!("{receipt}\nburst: slowest {slowest:?}");
    assert!(receipt["held"].as_u64().unwrap() >= 100, "{receipt}");
    assert!(slowest < RETRANSMISSION, "{slowest:?}: a SYN was lost");
}

#[test]
fn a_listener_that_moves_to_an_interface_is_held() {
    let world = World::new();
    let serving = world.serve(PLAIN, &[]);
    let half_open = HalfOpen::connect(&world.client, 20);
    serving.configure("interface b0");
    let reload = serving.begin_reload();
    until(SHORT, "the guard is up", || world.rules().contains("-GUARD").then_some(()));
    half_open.finish();
    let receipt = reload();
    assert_eq!(receipt["guard"], "hold", "{receipt}");
    assert_eq!(receipt["doubts"].as_array().unwrap().len(), 0, "{receipt}");
}

#[test]
fn a_forced_guard_is_raised_on_every_reload() {
    let world = World::new();
    let serving = world.serve(PLAIN, &[("HAPROXY_RELOAD_GUARD", "drop")]);
    let before = world.rules();
    let receipt = serving.reload();
    assert_eq!((&receipt["guard"], &receipt["strategy"]), (&"drop".into(), &"shared".into()));
    assert_eq!(receipt["doubts"].as_array().unwrap().len(), 0, "{receipt}");
    assert_eq!(world.rules(), before);
}

#[test]
fn a_stop_while_the_guard_is_up_lowers_it() {
    let world = World::new();
    let clean = world.rules();
    let mut serving = world.serve(PLAIN, &[("HAPROXY_RELOAD_GUARD", "hold")]);
    serving.freeze();
    serving.configure(OTHER);
    let _reload = serving.begin_reload();
    until(SHORT, "the guard is up", || world.rules().contains("-GUARD").then_some(()));
    serving.signal("INT");
    until(SHORT, "the guard is down", || (!world.rules().contains("-GUARD")).then_some(()));
    serving.wait();
    assert_eq!(world.rules(), clean);
}

/// The old HAProxy is stopped, so that its listeners and with them the guard stay.
fn killed_under(guard: &str) {
    let world = World::new();
    let clean = world.rules();
    let mut serving = world.serve(PLAIN, &[("HAPROXY_RELOAD_GUARD", guard)]);
    serving.freeze();
    serving.configure(OTHER);
    let _reload = serving.begin_reload();
    until(SHORT, "the guard is up", || world.rules().contains("-GUARD").then_some(()));
    serving.signal("KILL");
    let killed_at = Instant::now();
    serving.wait();
    assert!(world.rules().contains("-GUARD"), "the kill came too late to show anything");
    // A new SYN each time: what counts is the first that is answered at once.
    until(SHORT, "SYNs are accepted again", || connects(&world.client).then_some(()));
    let after = killed_at.elapsed();
    eprintln!("{guard}: SYNs are accepted again {after:?} after kill -9");
    assert!(after < Duration::from_secs(2), "{after:?}");
    assert!(world.rules().contains("-GUARD"), "nobody has removed the rule");
    serving.sweep();
    assert_eq!(world.rules(), clean);
}

#[test]
fn a_kill_under_drop_blocks_nobody_for_two_seconds_and_the_sweep_removes_the_rest() {
    killed_under("drop");
}

#[test]
fn a_kill_under_hold_blocks_nobody_for_two_seconds_and_the_sweep_removes_the_rest() {
    killed_under("hold");
}

#[test]
fn a_kill_under_migrate_leaves_a_sysctl_that_the_sweep_restores() {
    const MIGRATE: &str = "net.ipv4.tcp_migrate_req";
    let world = World::new();
    let clean = world.rules();
    let mut serving = world.serve(PLAIN, &[]);
    serving.freeze();
    serving.configure(OTHER);
    let _reload = serving.begin_reload();
    until(SHORT, "the guard is up", || (world.balancer.sysctl(MIGRATE) == "1").then_some(()));
    serving.signal("KILL");
    serving.wait();
    assert_eq!(world.balancer.sysctl(MIGRATE), "1");
    serving.sweep();
    assert_eq!(world.balancer.sysctl(MIGRATE), "0");
    assert_eq!(world.rules(), clean);
}
