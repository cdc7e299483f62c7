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

mod intercepted;
mod load;
mod overflow;
mod refused;
mod world;

use std::time::{Duration, Instant};

use load::{HalfOpen, Load, Waited, burst, connects};
use world::{LISTENERS, World, until};

/// The same address with another `bind` option gets a socket of its own.
const PLAIN: &str = "";
const OTHER: &str = "transparent";
/// And one that the kernel does not let migrate.
const OTHER_BIND: &str = "interface b0";

const SHORT: Duration = Duration::from_secs(5);
/// Two cores that others use too.
const SLACK: Duration = Duration::from_millis(300);

/// Steady connects and half-open ones over reloads that share nothing; the most that anybody
/// waited, and the longest window.
fn loses_nothing(setting: &str, guard: &str, firewall: &str) -> (Waited, Duration) {
    let world = World::new();
    let migrate = "0";
    world.balancer.set_sysctl("net.ipv4.tcp_migrate_req", migrate);
    let settings = [("HAPROXY_RELOAD_GUARD", setting), ("HAPROXY_FIREWALL", firewall)];
    let serving = world.serve(PLAIN, &settings);
    let before = world.rules();
    let each = Duration::from_millis(5);
    // A load for each reload: what one drops is sent again after a second, and shall be through
    // before the next one drops it once more.
    let mut waited = Vec::new();
    let mut receipts = Vec::new();
    for option in [OTHER, PLAIN, OTHER] {
        let load = Load::start(&world.client, each);
        serving.configure(option);
        receipts.push(serving.reload());
        waited.push(load.stop());
    }
    let load = Load::start(&world.client, each);
    let half_open = HalfOpen::connect(&world.client, 20);
    serving.configure(PLAIN);
    let reload = serving.begin_reload();
    if guard == "migrate" {
        // The old sockets are gone, with their handshakes half done.
        until(SHORT, "the old listeners are gone", || {
            (world.guard_is_up() && world.listeners() == LISTENERS).then_some(())
        });
    } else {
        until(SHORT, "the guard is up", || world.guard_is_up().then_some(()));
    }
    half_open.finish();
    receipts.push(reload());
    waited.push(load.stop());
    let slowest = Waited {
        handshake: waited.iter().map(|waited| waited.handshake).max().unwrap(),
        resent: waited.iter().map(|waited| waited.resent).max().unwrap(),
    };
    for receipt in &receipts {
        eprintln!("{receipt}");
        assert_eq!(receipt["listeners"]["not_shared"].as_array().unwrap().len(), LISTENERS);
        assert_eq!(receipt["guard"], guard, "{receipt}");
        assert_eq!(receipt["verdict"], "taken", "{receipt}");
        assert_eq!(receipt["warnings"].as_array().unwrap().len(), 0, "{receipt}");
    }
    assert_eq!(receipts[0]["doubts"].as_array().unwrap().len(), 0, "{}", receipts[0]);
    assert_eq!(world.rules(), before, "{setting}: something was left");
    assert_eq!(world.balancer.sysctl("net.ipv4.tcp_migrate_req"), migrate);
    let longest = receipts.iter().map(window).max().unwrap();
    eprintln!("{setting}: {slowest:?}, longest window {longest:?}");
    (slowest, longest)
}

fn window(receipt: &serde_json::Value) -> Duration {
    Duration::from_secs_f64(receipt["window_ms"].as_f64().unwrap() / 1e3)
}

fn under_migrate(firewall: &str) {
    let (slowest, _) = loses_nothing("auto", "migrate", firewall);
    assert!(slowest.resent == 0 && slowest.handshake < SLACK, "{slowest:?}");
}

fn under_hold(firewall: &str) {
    let (slowest, window) = loses_nothing("hold", "hold", firewall);
    assert_eq!(slowest.resent, 0, "{slowest:?}");
    assert!(slowest.handshake < window + SLACK, "{slowest:?} with a window of {window:?}");
}

/// The kernel's first retransmission comes after a second, its next after two more.
fn under_drop(firewall: &str) {
    let (slowest, _) = loses_nothing("drop", "drop", firewall);
    assert_eq!(slowest.resent, 1, "{slowest:?}");
}

#[test]
fn under_migrate_nothing_is_lost_and_nobody_waits() {
    under_migrate("iptables");
}

#[test]
fn under_hold_nothing_is_lost_and_nobody_waits_longer_than_the_window() {
    under_hold("iptables");
}

#[test]
fn under_drop_nothing_is_lost_and_nobody_waits_longer_than_one_retransmission() {
    under_drop("iptables");
}

#[test]
fn with_nftables_the_same_under_migrate() {
    under_migrate("nftables");
}

#[test]
fn with_nftables_the_same_under_hold() {
    under_hold("nftables");
}

#[test]
fn with_nftables_the_same_under_drop() {
    under_drop("nftables");
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

#[test]
fn what_is_held_is_let_through_no_faster_than_the_backlog_takes_it() {
    let_through_no_faster_than_the_backlog("iptables");
}

#[test]
fn with_nftables_what_is_held_is_let_through_no_faster_than_the_backlog_takes_it() {
    let_through_no_faster_than_the_backlog("nftables");
}

/// Half-open connections keep the guard up while many more begin than the backlog takes at once.
fn let_through_no_faster_than_the_backlog(firewall: &str) {
    let world = World::new();
    let settings = [("HAPROXY_RELOAD_GUARD", "hold"), ("HAPROXY_FIREWALL", firewall)];
    let serving = world.serve("backlog 16", &settings);
    let half_open = HalfOpen::connect(&world.client, 8);
    serving.configure("backlog 16 transparent");
    let reload = serving.begin_reload();
    until(SHORT, "the guard is up", || world.guard_is_up().then_some(()));
    let burst = burst(&world.client, 150);
    until(SHORT, "many wait", || (world.queued() >= 100).then_some(()));
    half_open.finish();
    let receipt = reload();
    let slowest = burst.join().unwrap();
    eprintln!("{receipt}\nburst: slowest {slowest:?}");
    assert!(receipt["held"].as_u64().unwrap() >= 100, "{receipt}");
    assert_eq!(receipt["dropped"], 0, "{receipt}");
    // The kernel's own count of SYNs that found no room, which a busy machine does not change.
    assert_eq!(receipt["counters_after"], receipt["counters_before"], "a SYN was lost: {receipt}");
}

#[test]
fn a_listener_that_moves_to_an_interface_is_held() {
    let world = World::new();
    let serving = world.serve(PLAIN, &[]);
    let half_open = HalfOpen::connect(&world.client, 20);
    serving.configure(OTHER_BIND);
    let reload = serving.begin_reload();
    until(SHORT, "the guard is up", || world.guard_is_up().then_some(()));
    half_open.finish();
    let receipt = reload();
    assert_eq!(receipt["guard"], "hold", "{receipt}");
    assert_eq!(receipt["doubts"].as_array().unwrap().len(), 0, "{receipt}");
}

/// Where the host's own rules are in the legacy tables, ours go there too.
#[test]
fn with_iptables_legacy_nothing_is_lost_under_hold() {
    let world = World::new();
    world.balancer.run("iptables-legacy -A INPUT -j ACCEPT");
    let rules = || world.balancer.run("iptables-legacy-save -t mangle");
    let serving = world.serve(PLAIN, &[("HAPROXY_RELOAD_GUARD", "hold")]);
    let before = rules();
    let load = Load::start(&world.client, Duration::from_millis(5));
    let half_open = HalfOpen::connect(&world.client, 20);
    serving.configure(OTHER);
    let reload = serving.begin_reload();
    until(SHORT, "the guard is up", || rules().contains("-GUARD").then_some(()));
    half_open.finish();
    let receipt = reload();
    load.stop();
    assert_eq!(receipt["guard"], "hold", "{receipt}");
    assert_eq!(receipt["warnings"].as_array().unwrap().len(), 0, "{receipt}");
    let appended = |text: String| {
        let rules = text.lines().filter(|line| line.starts_with("-A"));
        rules.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(appended(rules()), appended(before));
    assert!(!world.rules().contains("HAPILOT"), "nothing of ours is in nf_tables");
}

#[test]
fn a_guard_that_was_asked_for_and_cannot_be_is_told_before_anything_is_changed() {
    let world = World::new();
    let line = format!(
        "HAPROXY_RELOAD_GUARD=hold setpriv --bounding-set -net_admin {} check 2>&1; echo status $?",
        env!("CARGO_BIN_EXE_hapilot")
    );
    let text = world.balancer.run(&line);
    assert!(text.contains("CAP_NET_ADMIN") && text.contains("status 69"), "{text}");
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

/// Its sockets stay in the kernel's group with the new ones: half of the clients would wait there.
fn a_stuck_one_gets_no_more_clients(setting: &str, guard: &str) {
    let world = World::new();
    let serving = world.serve(PLAIN, &[("HAPROXY_RELOAD_GUARD", setting)]);
    serving.freeze();
    let before = (guard == "migrate").then(|| burst(&world.client, 20));
    serving.configure(OTHER);
    let receipt = serving.reload();
    assert_eq!(receipt["guard"], guard, "{receipt}");
    assert!(receipt["warnings"].to_string().contains("hangs"), "{receipt}");
    assert_eq!(world.listeners(), LISTENERS, "the new ones only");
    burst(&world.client, 100).join().expect("every connection after the reload is answered");
    if let Some(before) = before {
        before.join().expect("and every one that waited for the stuck one");
    }
}

#[test]
fn a_stuck_haproxy_gets_no_more_clients_after_a_reload_that_shares_nothing() {
    a_stuck_one_gets_no_more_clients("hold", "hold");
}

#[test]
fn what_waited_for_a_stuck_haproxy_migrates() {
    a_stuck_one_gets_no_more_clients("auto", "migrate");
}

/// There is no table of ours for anything else then.
#[test]
fn with_nftables_and_without_transparent_proxying_a_guard_has_a_table_for_itself() {
    let world = World::new();
    let clean = world.rules();
    let settings = [
        ("HAPROXY_RELOAD_GUARD", "hold"),
        ("HAPROXY_FIREWALL", "nftables"),
        ("HAPROXY_TRANSPARENT", "off"),
    ];
    let serving = world.serve(PLAIN, &settings);
    let half_open = HalfOpen::connect(&world.client, 20);
    serving.configure(OTHER);
    let reload = serving.begin_reload();
    until(SHORT, "the guard is up", || world.guard_is_up().then_some(()));
    half_open.finish();
    let receipt = reload();
    assert_eq!(receipt["guard"], "hold", "{receipt}");
    assert_eq!(receipt["doubts"].as_array().unwrap().len(), 0, "{receipt}");
    assert_eq!(world.rules(), clean);
}

/// Its rule expires, though nobody takes it away.
#[test]
fn with_nftables_a_hapilot_that_is_stopped_under_a_guard_blocks_nobody() {
    for guard in ["drop", "hold"] {
        let world = World::new();
        let settings = [("HAPROXY_RELOAD_GUARD", guard), ("HAPROXY_FIREWALL", "nftables")];
        let serving = world.serve(PLAIN, &settings);
        let half_open = HalfOpen::connect(&world.client, 20);
        serving.configure(OTHER);
        let _reload = serving.begin_reload();
        until(SHORT, "the guard is up", || world.guard_is_up().then_some(()));
        serving.signal("STOP");
        let stopped_at = Instant::now();
        until(SHORT, "SYNs are accepted again", || connects(&world.client).then_some(()));
        assert!(stopped_at.elapsed() < Duration::from_secs(1), "{:?}", stopped_at.elapsed());
        assert!(world.guard_is_up(), "nobody has removed the rule");
        drop(half_open);
    }
}

#[test]
fn with_nftables_a_kill_under_a_guard_blocks_nobody_at_all() {
    for guard in ["drop", "hold"] {
        let world = World::new();
        let clean = world.rules();
        let settings = [("HAPROXY_RELOAD_GUARD", guard), ("HAPROXY_FIREWALL", "nftables")];
        let mut serving = world.serve(PLAIN, &settings);
        let _half_open = HalfOpen::connect(&world.client, 8);
        serving.configure(OTHER);
        let _reload = serving.begin_reload();
        until(SHORT, "the guard is up", || world.guard_is_up().then_some(()));
        serving.signal("KILL");
        serving.wait();
        assert!(!world.guard_is_up(), "the kernel has removed it");
        until(SHORT, "SYNs are accepted again", || connects(&world.client).then_some(()));
        serving.sweep();
        assert_eq!(world.rules(), clean);
    }
}

#[test]
fn a_stop_while_the_guard_is_up_lowers_it() {
    let world = World::new();
    let clean = world.rules();
    let mut serving = world.serve(PLAIN, &[("HAPROXY_RELOAD_GUARD", "hold")]);
    let _half_open = HalfOpen::connect(&world.client, 8);
    serving.configure(OTHER);
    let _reload = serving.begin_reload();
    until(SHORT, "the guard is up", || world.guard_is_up().then_some(()));
    serving.signal("INT");
    until(SHORT, "the guard is down", || (!world.guard_is_up()).then_some(()));
    serving.wait();
    assert_eq!(world.rules(), clean);
}

/// Handshakes are under way, so that the guard stays.
fn killed_under(guard: &str) {
    let world = World::new();
    let clean = world.rules();
    let mut serving = world.serve(PLAIN, &[("HAPROXY_RELOAD_GUARD", guard)]);
    let _half_open = HalfOpen::connect(&world.client, 8);
    serving.configure(OTHER);
    let _reload = serving.begin_reload();
    until(SHORT, "the guard is up", || world.guard_is_up().then_some(()));
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
    killed_under_migrate("iptables");
}

#[test]
fn with_nftables_a_kill_under_migrate_leaves_a_sysctl_that_the_sweep_restores() {
    killed_under_migrate("nftables");
}

fn killed_under_migrate(firewall: &str) {
    const MIGRATE: &str = "net.ipv4.tcp_migrate_req";
    let world = World::new();
    let clean = world.rules();
    let mut serving = world.serve(PLAIN, &[("HAPROXY_FIREWALL", firewall)]);
    let _half_open = HalfOpen::connect(&world.client, 8);
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
