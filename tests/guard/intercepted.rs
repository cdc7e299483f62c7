//! Clients that mean any address on an intercepted port: their SYNs wait as others do.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::load::{HalfOpen, Load};
use crate::world::{Serving, World, until};
use crate::{OTHER_BIND, PLAIN, SHORT, SLACK, window};

/// One for each protocol.
const LISTENERS: usize = 2;

fn frontend(option: &str) -> String {
    format!("bind 0.0.0.0:8080 transparent {option}\n  bind [::]:8080 transparent v6only {option}")
}

/// The client's way to everywhere leads through the balancer.
fn world() -> World {
    let world = World::new();
    world.client.run("ip route add 10.77.0.0/16 via 10.9.0.1");
    world.client.run("ip route add fd00:77::/64 via fd00:9::1");
    world
}

fn serve(world: &World, guard: &str, firewall: &str) -> Serving {
    let settings = [
        ("HAPROXY_INTERCEPT", "80:8080"),
        ("HAPROXY_RELOAD_GUARD", guard),
        ("HAPROXY_FIREWALL", firewall),
    ];
    world.serve_frontend(&frontend(PLAIN), LISTENERS, &settings)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn anywhere() -> Vec<SocketAddr> {
    (1..200)
        .flat_map(|n| [format!("10.77.0.{n}:80"), format!("[fd00:77::{n:x}]:80")])
        .map(|text| address(&text))
        .collect()
}

fn assert_held(receipt: &Value) {
    eprintln!("{receipt}");
    assert_eq!(receipt["guard"], "hold", "{receipt}");
    assert_eq!(receipt["verdict"], "taken", "{receipt}");
    assert_eq!(receipt["strategy"], "separate", "{receipt}");
    assert_eq!(receipt["warnings"].as_array().unwrap().len(), 0, "{receipt}");
}

fn loses_nothing(firewall: &str) {
    let world = world();
    let serving = serve(&world, "hold", firewall);
    let before = world.rules();
    let load = Load::to(&world.client, Duration::from_millis(5), anywhere());
    let configure = |turn: usize| {
        serving.configure_frontend(&frontend([OTHER_BIND, PLAIN][turn % 2]));
    };
    let reload = |turn| {
        configure(turn);
        serving.reload()
    };
    let mut receipts: Vec<_> = (0..3).map(reload).collect();
    let half_open = HalfOpen::to(&world.client, address("10.77.1.1:80"), 20);
    configure(3);
    let reload = serving.begin_reload();
    until(SHORT, "the guard is up", || world.guard_is_up().then_some(()));
    half_open.finish();
    receipts.push(reload());
    let slowest = load.stop();
    receipts.iter().for_each(assert_held);
    let held: u64 = receipts.iter().map(|receipt| receipt["held"].as_u64().unwrap()).sum();
    assert_ne!(held, 0, "nobody met the guard");
    assert_eq!(world.rules(), before, "something was left");
    let longest = receipts.iter().map(window).max().unwrap();
    assert_eq!(slowest.resent, 0, "{slowest:?}");
    assert!(slowest.handshake < longest + SLACK, "{slowest:?} with a window of {longest:?}");
}

#[test]
fn under_hold_no_intercepted_connection_is_lost_and_nobody_waits_longer_than_the_window() {
    loses_nothing("iptables");
}

#[test]
fn with_nftables_the_same_for_intercepted_connections_under_hold() {
    loses_nothing("nftables");
}

/// Otherwise the tests above would show nothing.
#[test]
fn without_a_guard_intercepted_half_open_connections_are_lost() {
    let world = world();
    let serving = serve(&world, "none", "iptables");
    let half_open = HalfOpen::to(&world.client, address("10.77.1.1:80"), 20);
    serving.configure_frontend(&frontend(OTHER_BIND));
    let receipt = serving.reload();
    assert_ne!(receipt["doubts"].as_array().unwrap().len(), 0, "{receipt}");
    assert!(half_open.count_lost() > 0);
}
