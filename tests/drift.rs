//! Promise: what somebody removes from the host while hapilot serves is there again at once, without
//! a gap for what is still there, and is told.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test says so by panicking, and some print figures"
)]

use crate::lab;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lab::network::{BALANCER4, BALANCER6, CLIENT4, CLIENT6};
use lab::{
    Download, Happened, HostState, Instance, LONG, Lab, Load, Monitor, SHORT, get, haproxy_cfg,
    until,
};
use nix::sys::signal::Signal;

const PROMISED: Duration = Duration::from_millis(200);
const BACK: &str = "they are back";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Firewall {
    Nft,
    Legacy,
    Nftables,
}

/// A transparent hapilot, intercepting as well, and what the host was before and is with it.
struct World {
    hapilot: Instance,
    monitor: Monitor,
    before: HostState,
    whole: HostState,
    firewall: Firewall,
    lock: PathBuf,
    lab: Lab,
}

impl World {
    fn new(firewall: Firewall) -> Self {
        let lab = Lab::new();
        if firewall == Firewall::Legacy {
            // By it hapilot knows what this host uses.
            for program in ["iptables-legacy", "ip6tables-legacy"] {
                let rule = format!("{program} -w -A INPUT -p tcp --dport 9 -j DROP");
                lab.balancer.namespace.run(&rule);
            }
        }
        let before = lab.balancer.state();
        let config = haproxy_cfg::transparent(":80", ":::80 v6only");
        let config = lab.balancer.write("haproxy.cfg", &config);
        let taken = if firewall == Firewall::Nftables { "nftables" } else { "iptables" };
        let spec = lab.balancer.container("hapilot").config(&config);
        let settings = [
            ("HAPROXY_FIREWALL", taken),
            ("HAPROXY_METRICS", "127.0.0.1:9101"),
            ("HAPROXY_INTERCEPT", "81:80"),
        ];
        let hapilot = spec.envs(&settings).start().serving();
        // As with `-v /run/xtables.lock:/run/xtables.lock`.
        let lock = lab.balancer.path("run-hapilot/xtables.lock");
        let legacy = (firewall == Firewall::Legacy).then_some(lock.as_path());
        let monitor = Monitor::of(&lab.balancer.namespace, legacy);
        let whole = lab.balancer.state().in_no_order();
        Self { hapilot, monitor, before, whole, firewall, lock, lab }
    }

    fn run(&self, line: &str) {
        run_with(&self.lab, &self.lock, line);
    }

    /// What a firewall that is restarted does.
    fn flush(&self) {
        self.run(match self.firewall {
            Firewall::Nft | Firewall::Nftables => "nft flush ruleset",
            Firewall::Legacy => "iptables-legacy -w -t mangle -F",
        });
    }

    /// Waits until the host is as it was while hapilot served.
    fn await_whole(&self) {
        let deadline = Instant::now() + SHORT;
        loop {
            let difference = self.lab.balancer.state().in_no_order().difference(&self.whole);
            if difference.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "not whole again:\n{difference}");
        }
    }

    fn assert_transparent(&self) {
        for (address, client) in [(BALANCER4, CLIENT4), (BALANCER6, CLIENT6)] {
            assert_eq!(get(&self.lab.client, &format!("{address}:80"), "/").body(), client);
        }
    }

    fn put_back(&self) -> usize {
        self.hapilot.log.count(BACK)
    }

    fn stop(mut self) {
        self.hapilot.stop();
        self.lab.balancer.state().assert_same_as(&self.before);
    }
}

/// A command line as a shell takes it, which must succeed.
fn run_with(lab: &Lab, lock: &Path, line: &str) {
    let mut command = Command::new("sh");
    command.args(["-ec", line]).env("XTABLES_LOCKFILE", lock);
    let output = lab.balancer.namespace.output(&mut command);
    assert!(output.status.success(), "{line}: {output:?}");
}

fn back_in_time(firewall: Firewall) {
    const SESSIONS: usize = 20;
    const FLUSHES: usize = 5;
    let world = World::new(firewall);
    let lab = &world.lab;
    let begin = |_| Download::begin(&lab.client, &format!("{BALANCER4}:80"), "/slow");
    let sessions: Vec<Download> = (0..SESSIONS).map(begin).collect();
    let load = Load::start(&lab.client, &format!("{BALANCER4}:80"));
    let mut gaps = Vec::new();
    for flushes in 1..=FLUSHES {
        let answered = load.answered();
        until(LONG, "there is load", || (load.answered() > answered + 100).then_some(()));
        world.monitor.take();
        world.flush();
        let told = || (world.put_back() >= flushes).then_some(());
        until(SHORT, "it is told that something is back", told);
        world.await_whole();
        gaps.push(world.monitor.gap());
    }
    world.assert_transparent();
    lab.origin.open_gate();
    let tally = load.finish();
    let finished = sessions.into_iter().map(Download::finish);
    let lost = finished.filter(|outcome| !outcome.is_answered()).count();
    eprintln!(
        "{firewall:?}: {FLUSHES} flushes under load: back after {gaps:?}; lost {lost} of {SESSIONS} \
         sessions, and {} of {} new ones; the slowest took {:?}",
        tally.failed.len(),
        tally.answered + tally.failed.len(),
        tally.slowest,
    );
    assert!(gaps.iter().all(|gap| *gap <= PROMISED), "{gaps:?}");
    assert_eq!(world.put_back(), FLUSHES, "once for each flush: {}", world.hapilot.log.text());
    world.stop();
}

#[test]
fn nft_a_flush_under_load_is_put_back_in_time() {
    back_in_time(Firewall::Nft);
}

#[test]
fn legacy_a_flush_under_load_is_put_back_in_time_where_the_lock_is_shared() {
    back_in_time(Firewall::Legacy);
}

#[test]
fn nftables_a_flush_under_load_is_put_back_in_time() {
    back_in_time(Firewall::Nftables);
}

/// Each line removes what is then named in the log.
fn back_and_named(world: &World, lines: &[(&str, &str)]) {
    for (line, name) in lines {
        let told = world.put_back();
        world.monitor.take();
        world.run(line);
        until(SHORT, line, || (world.put_back() > told).then_some(()));
        world.await_whole();
        let gap = world.monitor.gap();
        eprintln!("{line}: back after {gap:?}");
        assert!(gap <= PROMISED, "{line}: {gap:?}");
        let log = world.hapilot.log.text();
        let last = log.lines().rfind(|line| line.contains(BACK)).unwrap();
        assert!(last.contains(name), "{line}: {last}");
        assert_eq!(last.contains("by=\"nft\""), line.starts_with("nft"), "{last}");
    }
}

#[test]
fn a_policy_rule_or_a_route_is_back_in_time_and_named() {
    for firewall in [Firewall::Nft, Firewall::Nftables] {
        let world = World::new(firewall);
        back_and_named(
            &world,
            &[
                ("ip rule del priority 170", "ip rule 170"),
                ("ip -6 rule del priority 170", "ip -6 rule 170"),
                ("ip route flush table 29000", "ip route in table 29000"),
                ("ip -6 route flush table 29000", "ip -6 route in table 29000"),
            ],
        );
        let metrics = get(&world.lab.balancer.namespace, "127.0.0.1:9101", "/metrics");
        assert!(metrics.body().contains("\nhapilot_host_put_back_total 4\n"), "{metrics:?}");
        world.stop();
    }
}

#[test]
fn a_jump_a_chain_or_a_table_is_back_in_time_and_named() {
    let world = World::new(Firewall::Nft);
    let chain = "chain=$(iptables -t mangle -S | sed -n 's/^-N \\(HAPILOT-........\\)$/\\1/p')";
    let jump = "rule in PREROUTING (ip6tables-nft -t mangle)";
    back_and_named(
        &world,
        &[
            ("ip6tables -t mangle -D PREROUTING 1", jump),
            (&format!("{chain}; iptables -t mangle -F $chain"), "rules in chain HAPILOT-"),
            ("nft delete table ip mangle", "chain HAPILOT-"),
        ],
    );
    // Nothing is removed by that, so nobody looks, and it does no harm until a reload.
    let jump = "-p tcp -m socket --transparent -j $chain";
    world.run(&format!("{chain}; iptables -t mangle -A PREROUTING {jump}"));
    world.hapilot.reload();
    world.await_whole();
    world.stop();
}

#[test]
fn what_is_still_there_is_in_force_all_the_time() {
    let world = World::new(Firewall::Nft);
    let lab = &world.lab;
    let load = Load::start(&lab.client, &format!("{BALANCER6}:80"));
    for flushes in 1..=5 {
        let answered = load.answered();
        until(LONG, "there is load", || (load.answered() > answered + 100).then_some(()));
        // The interception jump, the record and the other family's way; what diverts IPv6 stays.
        world.run(
            "ip6tables -t mangle -D PREROUTING 2; iptables -t mangle -F; ip rule del priority 170",
        );
        until(SHORT, "it is back", || (world.put_back() >= flushes).then_some(()));
        world.await_whole();
    }
    let tally = load.finish();
    assert_eq!(tally.failed, [], "of {}", tally.answered);
    world.stop();
}

/// What processes of it and their children have used.
fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let ticks = |at: usize| rest.split(' ').nth(at).unwrap().parse::<u64>().unwrap();
    Duration::from_millis((11..15).map(ticks).sum::<u64>() * 10)
}

#[test]
fn a_storm_of_other_peoples_changes_costs_little_and_hides_nothing() {
    let world = World::new(Firewall::Nft);
    let rules: Vec<String> =
        (0..2000).map(|n| format!("-A STORM -p udp --dport {n} -j ACCEPT")).collect();
    let storm = format!("*nat\n:STORM - [0:0]\n{}\nCOMMIT\n", rules.join("\n"));
    let file = world.lab.balancer.write("storm", &storm);
    let storm = format!(
        "iptables-restore --noflush < {0}; ip route add 192.0.2.0/24 dev lo; ip route del 192.0.2.0/24 dev lo",
        file.display()
    );
    let used = cpu_of(world.hapilot.pid());
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        world.run(&storm);
    }
    let (elapsed, used) = (begin.elapsed(), cpu_of(world.hapilot.pid()).saturating_sub(used));
    eprintln!("a storm of {elapsed:?} cost {used:?}");
    assert!(used < elapsed / 10, "{used:?} of {elapsed:?}");
    world.monitor.take();
    // Not beside it: each transaction of nf_tables waits for the one before.
    world.run(&format!("{storm}; iptables -t mangle -F"));
    until(SHORT, "it is told", || (world.put_back() == 1).then_some(()));
    let gap = world.monitor.gap();
    eprintln!("after it: back after {gap:?}");
    assert!(gap <= PROMISED, "{gap:?}");
    world.run("iptables -t nat -F STORM; iptables -t nat -X STORM");
    world.stop();
}

#[test]
fn who_removes_it_again_and_again_is_told_of_once_and_left_alone_for_a_while() {
    let world = World::new(Firewall::Nft);
    let begin = Instant::now();
    let mut fights = 0;
    while begin.elapsed() < Duration::from_secs(4) {
        world.monitor.take();
        world.run("iptables -t mangle -F PREROUTING");
        fights += 1;
        let back = || (world.monitor.count(Happened::Added) > 0).then_some(());
        until(SHORT, "it is back once more", back);
    }
    assert!((6..=9).contains(&fights), "five at once, then after 1 s, 2 s and 4 s: {fights}");
    assert_eq!(world.hapilot.log.count("again and again"), 1);
    let log = world.hapilot.log.text();
    let own = log.lines().filter(|line| line.contains("by=") && line.contains("restor"));
    assert_eq!(own.count(), 0, "our own programs are not who removed it: {log}");
    // A reload waits for no pause.
    world.run("iptables -t mangle -F PREROUTING");
    world.hapilot.reload();
    world.await_whole();
    world.stop();
}

#[test]
fn two_instances_put_back_their_own_and_do_not_fight() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let start = |name: &str, port: u16| {
        let config = haproxy_cfg::transparent(&format!(":{port}"), &format!(":::{port} v6only"));
        let config = lab.balancer.write(&format!("{name}.cfg"), &config);
        lab.balancer.container(name).config(&config).start().serving()
    };
    let [mut one, mut two] = [start("one", 80), start("two", 81)];
    let whole = lab.balancer.state().in_no_order();
    for flushes in 1..=3 {
        lab.balancer.namespace.run("nft flush ruleset");
        lab.balancer.namespace.run("ip rule del priority 170");
        for instance in [&one, &two] {
            let told = || (instance.log.count(BACK) >= flushes).then_some(());
            until(SHORT, "it is told", told);
        }
        until(SHORT, "all is there", || {
            // Which of the two was first is open.
            let same = lab.balancer.state().sorted().difference(&whole.clone().sorted());
            same.is_empty().then_some(())
        });
    }
    for instance in [&one, &two] {
        assert!(instance.log.count(BACK) <= 6, "{}", instance.log.text());
        assert_eq!(instance.log.count("again and again"), 0);
    }
    one.stop();
    two.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn nothing_is_put_back_while_stopping() {
    let mut world = World::new(Firewall::Nft);
    let session = Download::begin(&world.lab.client, &format!("{BALANCER6}:80"), "/slow");
    world.hapilot.signal(Signal::SIGTERM);
    world.hapilot.log.await_line("stopping");
    world.monitor.take();
    world.run("iptables -t mangle -F; ip rule del priority 170");
    world.lab.origin.open_gate();
    assert!(session.finish().is_answered(), "IPv6 was left alone");
    let status = world.hapilot.wait(LONG);
    assert_eq!(status.code(), Some(0));
    assert_eq!((world.monitor.count(Happened::Added), world.put_back()), (0, 0));
    world.lab.balancer.state().assert_same_as(&world.before);
}

#[test]
fn legacy_without_the_hosts_lock_a_reload_puts_it_back() {
    let world = World::new(Firewall::Legacy);
    let elsewhere = world.lab.balancer.path("the-hosts-lock");
    run_with(&world.lab, &elsewhere, "iptables-legacy -w -t mangle -F");
    world.hapilot.reload();
    world.hapilot.log.await_line(BACK);
    world.await_whole();
    world.stop();
}
