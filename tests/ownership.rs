//! Promise: nobody else is touched, and instances on one host never undo each other.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

mod lab;

use lab::network::{BALANCER4, BALANCER6, CLIENT4, CLIENT6};
use lab::{Host, HostState, Instance, Lab, get, haproxy_cfg};

fn start(lab: &Lab, name: &str, port: u16) -> Instance {
    let config = haproxy_cfg::transparent(&format!(":{port}"), &format!(":::{port} v6only"));
    let config = lab.balancer.write(&format!("{name}.cfg"), &config);
    lab.balancer.container(name).config(&config).start().serving()
}

fn assert_transparent(lab: &Lab, port: u16) {
    for (address, client) in [(BALANCER4, CLIENT4), (BALANCER6, CLIENT6)] {
        assert_eq!(get(&lab.client, &format!("{address}:{port}"), "/").body(), client);
    }
}

/// How many chains of ours there are, both families counted.
fn chains(state: &HostState) -> usize {
    let chain = |line: &&str| line.starts_with(":HAPILOT-");
    ["iptables-save", "ip6tables-save"]
        .map(|dump| state.part(dump).lines().filter(chain).count())
        .into_iter()
        .sum()
}

fn assert_either_may_stop_first(first: &str, last: &str) {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let instances = [("one", 80), ("two", 81)].map(|(name, port)| (start(&lab, name, port), port));
    let both = chains(&lab.balancer.state());
    assert!(both >= 4, "each has chains of its own, not {both} together");
    for (_, port) in &instances {
        assert_transparent(&lab, *port);
    }

    let [one, two] = instances;
    let (mut stopped, mut stays) = if first == "one" { (one, two) } else { (two, one) };
    stopped.0.stop();
    assert_transparent(&lab, stays.1);
    let state = lab.balancer.state();
    assert_eq!(chains(&state), both / 2, "{last}'s chains, and only those");
    for sysctl in ["net.ipv4.ip_nonlocal_bind", "net.ipv6.ip_nonlocal_bind"] {
        assert_eq!(lab.balancer.namespace.sysctl(sysctl), "1", "{last} still wants {sysctl}");
    }
    stays.0.reload();
    assert_transparent(&lab, stays.1);
    stays.0.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn the_older_of_two_instances_stops_and_the_younger_goes_on() {
    assert_either_may_stop_first("one", "two");
}

#[test]
fn the_younger_of_two_instances_stops_and_the_older_goes_on() {
    assert_either_may_stop_first("two", "one");
}

#[test]
fn an_instance_that_starts_or_sweeps_leaves_the_living_alone() {
    let lab = Lab::new();
    let one = start(&lab, "one", 80);
    let with_one = lab.balancer.state();
    lab.balancer.container("broom").args(&["sweep"]).finish().assert_code(0);
    lab.balancer.state().assert_same_as(&with_one);
    let mut two = start(&lab, "two", 81);
    two.stop();
    lab.balancer.state().assert_same_as(&with_one);
    assert_transparent(&lab, 80);
    drop(one);
}

/// What others may well have on a host: the mark, table, priority and chain that everybody takes.
const FOREIGN: [&str; 12] = [
    "iptables -w -t mangle -N DIVERT",
    "iptables -w -t mangle -A DIVERT -j MARK --set-mark 1",
    "iptables -w -t mangle -A DIVERT -j ACCEPT",
    "iptables -w -t mangle -A PREROUTING -p udp -m socket -j DIVERT",
    "ip6tables -w -t mangle -A PREROUTING -p udp -m comment --comment hapilot -j MARK --set-mark 1",
    "iptables -w -A INPUT -p tcp --dport 9 -j DROP",
    "ip rule add fwmark 1 lookup 100 priority 200",
    "ip -6 rule add fwmark 1 lookup 100 priority 200",
    "ip route add local default dev lo table 100",
    "ip -6 route add local default dev lo table 100",
    "nft add table inet others",
    "nft add chain inet others guard { type filter hook input priority 5; policy accept; }",
];

#[test]
fn what_someone_else_had_before_is_still_there_after() {
    let lab = Lab::new();
    for line in FOREIGN {
        lab.balancer.namespace.run(line);
    }
    let before = lab.balancer.state();
    let mut hapilot = start(&lab, "hapilot", 80);
    assert_transparent(&lab, 80);
    let difference = lab.balancer.state().difference(&before);
    assert!(
        !difference.lines().any(|line| line.starts_with("  - ") && !line.contains("/proc/sys")),
        "something was there and is gone:\n{difference}"
    );
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[derive(Clone, Copy, PartialEq)]
enum Others {
    Alone,
    BesideUs,
}

#[test]
fn what_someone_else_adds_meanwhile_is_still_there_after() {
    let after = |others: Others| {
        let lab = Lab::new();
        // rules that go at once leave chains: the order of nft's list is that in which they came
        for chain in ["ip -t mangle PREROUTING", "ip6 -t mangle PREROUTING", "ip -t filter INPUT"] {
            let (family, chain) = chain.split_once(' ').unwrap();
            let (table, chain) = chain.rsplit_once(' ').unwrap();
            for verb in ["-A", "-D"] {
                let line = format!("{family}tables -w {table} {verb} {chain} -j ACCEPT");
                lab.balancer.namespace.run(&line);
            }
        }
        let hapilot = (others == Others::BesideUs).then(|| start(&lab, "hapilot", 80));
        for line in FOREIGN {
            lab.balancer.namespace.run(line);
        }
        if let Some(mut hapilot) = hapilot {
            hapilot.stop();
        }
        lab.balancer.state()
    };
    after(Others::BesideUs).assert_same_as(&after(Others::Alone));
}

#[test]
fn nonlocal_bind_that_was_on_stays_on() {
    let lab = Lab::new();
    lab.balancer.namespace.set_sysctl("net.ipv4.ip_nonlocal_bind", "1");
    let before = lab.balancer.state();
    let mut hapilot = start(&lab, "hapilot", 80);
    assert_eq!(lab.balancer.namespace.sysctl("net.ipv6.ip_nonlocal_bind"), "1");
    hapilot.stop();
    assert_eq!(lab.balancer.namespace.sysctl("net.ipv4.ip_nonlocal_bind"), "1");
    assert_eq!(lab.balancer.namespace.sysctl("net.ipv6.ip_nonlocal_bind"), "0");
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_mark_and_a_table_that_are_asked_for_are_taken() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = haproxy_cfg::transparent(":80", ":::80 v6only");
    let config = lab.balancer.write("haproxy.cfg", &config);
    let spec = lab.balancer.container("hapilot").config(&config);
    let spec = spec.env("HAPROXY_MARK", "0x400/0x400").env("HAPROXY_TABLE", "321");
    let mut hapilot = spec.start().serving();
    assert_transparent(&lab, 80);
    let during = lab.balancer.state();
    for (part, words) in [
        ("ip rule show", "fwmark 0x400/0x400 lookup 321"),
        ("ip -6 rule show", "fwmark 0x400/0x400 lookup 321"),
        ("ip route show table all", "local default dev lo table 321"),
        ("ip -6 route show table all", "local default dev lo table 321"),
        ("iptables-save", "--set-xmark 0x400/0x400"),
    ] {
        assert!(during.part(part).contains(words), "{part}: {words:?} is missing");
    }
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_sweep_where_nothing_is_left_changes_nothing() {
    let host = Host::alone();
    host.namespace.run("ip rule add fwmark 1 lookup 100 priority 200");
    host.namespace.run("iptables -w -t mangle -N HAPILOTS-NEIGHBOUR");
    let before = host.state();
    host.container("broom").args(&["sweep"]).finish().assert_code(0);
    host.state().assert_same_as(&before);
}
