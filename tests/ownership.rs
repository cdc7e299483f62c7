//! Promise: nobody else is touched, and instances on one host never undo each other.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use lab::network::{BALANCER4, BALANCER6, CLIENT4, CLIENT6};
use lab::{Host, HostState, Instance, Lab, get, haproxy_cfg};

fn start(lab: &Lab, name: &str, port: u16) -> Instance {
    start_with(lab, name, port, "auto")
}

fn start_with(lab: &Lab, name: &str, port: u16, firewall: &str) -> Instance {
    let config = haproxy_cfg::transparent(&format!(":{port}"), &format!(":::{port} v6only"));
    let config = lab.balancer.write(&format!("{name}.cfg"), &config);
    let spec = lab.balancer.container(name).config(&config);
    spec.env("HAPROXY_FIREWALL", firewall).start().serving()
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
fn an_instance_of_nftables_and_one_of_iptables_may_stop_in_either_order() {
    for order in [["iptables", "nftables"], ["nftables", "iptables"], ["nftables", "nftables"]] {
        let lab = Lab::new();
        let before = lab.balancer.state();
        let mut first = start_with(&lab, "one", 80, order[0]);
        let mut second = start_with(&lab, "two", 81, order[1]);
        assert_transparent(&lab, 80);
        assert_transparent(&lab, 81);
        first.stop();
        assert_transparent(&lab, 81);
        second.stop();
        lab.balancer.state().assert_same_as(&before);
    }
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
    for firewall in ["iptables", "nftables"] {
        let mut hapilot = start_with(&lab, "hapilot", 80, firewall);
        assert_transparent(&lab, 80);
        let difference = lab.balancer.state().difference(&before);
        assert!(
            !difference.lines().any(|line| line.starts_with("  - ") && !line.contains("/proc/sys")),
            "something was there and is gone:\n{difference}"
        );
        hapilot.stop();
        lab.balancer.state().assert_same_as(&before);
    }
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

/// Docker's own bridge with a published port, kube-proxy's marks, and a VPN's: as they look on hosts.
const NEIGHBOURS: [&str; 22] = [
    "-t nat -N DOCKER",
    "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
    "-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
    "-t nat -A DOCKER ! -i docker0 -p tcp --dport 8081 -j DNAT --to-destination 172.17.0.2:80",
    "-N DOCKER-USER",
    "-N DOCKER",
    "-A FORWARD -j DOCKER-USER",
    "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A FORWARD -o docker0 -j DOCKER",
    "-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp --dport 80 -j ACCEPT",
    "-t mangle -N KUBE-KUBELET-CANARY",
    "-t nat -N KUBE-MARK-MASQ",
    "-t nat -N KUBE-POSTROUTING",
    "-t nat -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
    "-t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    "-t nat -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0",
    "-t nat -A POSTROUTING -j KUBE-POSTROUTING",
    "-N KUBE-FIREWALL",
    "-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP",
    "-A INPUT -j KUBE-FIREWALL",
    "-t mangle -A PREROUTING -i eth7 -j MARK --set-xmark 0x10000000/0x10000000",
    "-t mangle -A PREROUTING -i eth8 -j CONNMARK --restore-mark --nfmask 0xff0000 --ctmask 0xff0000",
];

/// `program` is who wrote what is there already; keepalived owns `ip_nonlocal_bind`.
fn assert_neighbours_stay(program: &str, firewall: &str) {
    let lab = Lab::new();
    let host = &lab.balancer.namespace;
    for line in NEIGHBOURS {
        host.run(&format!("{program} -w {line}"));
    }
    host.run("ip rule add fwmark 0x80000/0xff0000 lookup 52 priority 5230");
    host.run("ip rule add fwmark 0x20000000/0x20000000 lookup 29000 priority 170");
    host.set_sysctl("net.ipv4.ip_nonlocal_bind", "1");
    let before = lab.balancer.state();
    let sweep = |arguments: &[&str]| {
        let swept = lab.balancer.container("broom").args(arguments).finish();
        swept.assert_code(0);
        swept.text
    };

    let mut one = start_with(&lab, "one", 80, firewall);
    let mut two = start_with(&lab, "two", 81, firewall);
    let both = lab.balancer.state();
    let difference = both.difference(&before);
    let gone =
        |line: &&str| line.starts_with("  - ") && !line.contains("net/ipv6/ip_nonlocal_bind");
    assert_eq!(difference.lines().find(gone), None, "{difference}");
    for line in difference.lines().filter(|line| line.contains("fwmark")) {
        let taken = ["0x10000000/", "0x20000000/", "lookup 29000 ", "170:"];
        assert!(!taken.iter().any(|taken| line.contains(taken)), "somebody else's: {line}");
    }

    let mut dead = start_with(&lab, "dead", 82, firewall);
    let name = dead.status()["instance"].as_str().unwrap().to_owned();
    dead.signal(nix::sys::signal::Signal::SIGKILL);
    dead.wait(lab::SHORT);
    drop(dead);
    let left = lab.balancer.state();
    assert!(left.difference(&both).contains(&name), "else there is nothing to sweep");
    let told = sweep(&["sweep", "--dry-run"]);
    lab.balancer.state().assert_same_as(&left);
    let swept = sweep(&["sweep"]);
    for line in told.lines() {
        assert!(swept.contains(line), "told, but not done: {line}\n{swept}");
    }
    lab.balancer.state().assert_same_as(&both);
    assert_transparent(&lab, 80);
    assert_transparent(&lab, 81);

    one.reload();
    one.stop();
    assert_transparent(&lab, 81);
    two.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn nft_neighbours_stay_and_a_sweep_takes_what_the_dead_left_and_nothing_of_the_living() {
    assert_neighbours_stay("iptables-nft", "iptables");
}

#[test]
fn legacy_neighbours_stay_and_a_sweep_takes_what_the_dead_left_and_nothing_of_the_living() {
    assert_neighbours_stay("iptables-legacy", "iptables");
}

#[test]
fn nftables_neighbours_stay_and_a_sweep_takes_what_the_dead_left_and_nothing_of_the_living() {
    assert_neighbours_stay("iptables-nft", "nftables");
}
