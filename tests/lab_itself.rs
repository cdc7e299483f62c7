//! The lab proves itself, with HAProxy and hand-made rules only: it shows what it is meant to show.
//!
//! A test that passes because its lab is blind is worse than none.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::process::{Child, Command, Stdio};

use lab::network::{BALANCER4, BALANCER6, CLIENT4, CLIENT6, SERVER4};
use lab::{HalfOpen, Lab, Outcome, SHORT, get, haproxy_cfg, until};

struct Haproxy(Child);

impl Haproxy {
    fn start(lab: &Lab, arguments: &[&str]) -> Self {
        let config = lab.balancer.path("haproxy.cfg");
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(config).args(arguments).stderr(Stdio::null());
        Self(lab.balancer.namespace.enter(|| command.spawn().unwrap()))
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const RULES: [&str; 4] = [
    "-N LAB",
    "-A LAB -j MARK --set-xmark 0x1/0x1",
    "-A LAB -j ACCEPT",
    "-A PREROUTING -p tcp -m socket --transparent -j LAB",
];

fn set_up(lab: &Lab) {
    let host = &lab.balancer.namespace;
    for family in ["-4", "-6"] {
        host.run(&format!("ip {family} rule add fwmark 0x1/0x1 lookup 100"));
        host.run(&format!("ip {family} route add local default dev lo table 100"));
    }
    for iptables in ["iptables", "ip6tables"] {
        for rule in RULES {
            host.run(&format!("{iptables} -w -t mangle {rule}"));
        }
    }
}

fn tear_down(lab: &Lab) {
    let host = &lab.balancer.namespace;
    for iptables in ["iptables", "ip6tables"] {
        host.run(&format!(
            "{iptables} -w -t mangle -D PREROUTING -p tcp -m socket --transparent -j LAB"
        ));
        host.run(&format!("{iptables} -w -t mangle -F LAB"));
        host.run(&format!("{iptables} -w -t mangle -X LAB"));
    }
    for family in ["-4", "-6"] {
        host.run(&format!("ip {family} rule del fwmark 0x1/0x1 lookup 100"));
        host.run(&format!("ip {family} route del local default dev lo table 100"));
    }
}

fn answered(lab: &Lab, address: &str) {
    until(SHORT, "HAProxy answers", || get(&lab.client, address, "/").is_answered().then_some(()));
}

#[test]
fn transparent_proxying_made_by_hand_shows_the_client_and_its_removal_leaves_nothing() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    lab.balancer.write("haproxy.cfg", &haproxy_cfg::transparent(":80", ":::80 v6only"));
    let haproxy = Haproxy::start(&lab, &[]);
    let address = format!("{BALANCER4}:80");
    until(SHORT, "HAProxy listens", || {
        (lab::client::get_within(&lab.client, &address, "/", SHORT / 20) != Outcome::Refused)
            .then_some(())
    });
    let blind = lab::client::get_within(&lab.client, &address, "/", SHORT / 10);
    assert!(!blind.is_answered(), "without the rules the answers of the origin pass HAProxy by");

    set_up(&lab);
    answered(&lab, &address);
    assert_eq!(get(&lab.client, &address, "/").body(), CLIENT4);
    assert_eq!(get(&lab.client, &format!("{BALANCER6}:80"), "/").body(), CLIENT6);
    assert_ne!(lab.balancer.state().difference(&before), "", "the state must show the rules");

    drop(haproxy);
    tear_down(&lab);
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn every_kind_of_leftover_shows_in_the_host_state() {
    let lab = Lab::new();
    let host = &lab.balancer.namespace;
    let before = lab.balancer.state();
    let leftovers = [
        ("iptables -w -t mangle -N X", "iptables -w -t mangle -X X"),
        ("ip6tables -w -A INPUT -p tcp -j ACCEPT", "ip6tables -w -D INPUT -p tcp -j ACCEPT"),
        ("iptables-legacy -w -t mangle -N X", "iptables-legacy -w -t mangle -X X"),
        ("ip6tables-legacy -w -P INPUT DROP", "ip6tables-legacy -w -P INPUT ACCEPT"),
        ("nft add table inet x", "nft delete table inet x"),
        ("ip rule add fwmark 1 lookup 100", "ip rule del fwmark 1 lookup 100"),
        ("ip -6 rule add fwmark 1 lookup 100", "ip -6 rule del fwmark 1 lookup 100"),
        ("ip route add local default dev lo table 9", "ip route flush table 9"),
        ("ip -6 route add local default dev lo table 9", "ip -6 route flush table 9"),
        ("sysctl -q net.ipv4.ip_nonlocal_bind=1", "sysctl -q net.ipv4.ip_nonlocal_bind=0"),
        ("sysctl -q net.ipv6.ip_nonlocal_bind=1", "sysctl -q net.ipv6.ip_nonlocal_bind=0"),
    ];
    for (leave, remove) in leftovers {
        host.run(leave);
        assert_ne!(lab.balancer.state().difference(&before), "", "{leave} must show");
        host.run(remove);
        lab.balancer.state().assert_same_as(&before);
    }
}

#[test]
fn half_open_connections_tell_a_lossy_reload_from_a_lossless_one() {
    let lab = Lab::new();
    let socket = lab.balancer.path("x.sock");
    let socket = socket.to_str().unwrap();
    let global = format!("global\n  stats socket {socket} level admin expose-fd listeners\n");
    let config = |name: &str| global.clone() + &haproxy_cfg::proxy(":80", name);
    for (how, lossless) in [("-sf", false), ("-x", true)] {
        lab.balancer.write("haproxy.cfg", &config("old"));
        let mut old = Haproxy::start(&lab, &[]);
        answered(&lab, &format!("{BALANCER4}:80"));
        let connections = HalfOpen::connect(&lab.client, 80, 10);

        lab.balancer.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "new"));
        let pid = old.0.id().to_string();
        let arguments = ["-sf", &pid, "-x", socket];
        let new = Haproxy::start(&lab, &arguments[..if lossless { 4 } else { 2 }]);
        until(SHORT, "the old process ends", || old.0.try_wait().unwrap());
        let answered = connections.finish().iter().filter(|outcome| outcome.is_answered()).count();
        assert_eq!(answered == 10, lossless, "{how}: {answered} of 10 were answered");
        drop(new);
    }
}

#[test]
fn a_client_tells_refused_from_reset_from_hanging() {
    let lab = Lab::new();
    assert_eq!(get(&lab.client, &format!("{BALANCER4}:80"), "/"), Outcome::Refused);
    assert_eq!(get(&lab.client, &format!("{SERVER4}:80"), "/"), Outcome::Refused);
    lab.balancer.namespace.run("iptables -w -A INPUT -p tcp --dport 80 -j DROP");
    let dropped = lab::client::get_within(&lab.client, &format!("{BALANCER4}:80"), "/", SHORT / 10);
    assert_eq!(dropped, Outcome::TimedOut);
    let origin = format!("{SERVER4}:8000");
    assert_eq!(get(&lab.client, &origin, "/").body(), CLIENT4);
    let mut download = lab::Download::begin(&lab.client, &origin, "/slow");
    assert!(download.is_open());
    lab.origin.open_gate();
    assert!(download.finish().is_answered());
}
