//! Promise: a HAProxy without hapilot is relieved without a connection lost, whichever way is to be
//! had; one whose successor cannot start serves on.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use lab::client::Download;
use lab::haproxy_cfg::{BROKEN, BROKEN_WORD, proxy};
use lab::network::BALANCER4;
use lab::reborn::Reborn;
use lab::spec::Spec;
use lab::takeover::{assert_all_answered, assert_none_lost, receipt};
use lab::turnstile::Turnstile;
use lab::{
    Finished, HalfOpen, HostState, Instance, LONG, Lab, Load, Pid, Plain, SHORT, process, until,
};
use nix::sys::signal::Signal;
use rustix::net::{AddressFamily, SocketType, bind, socket};
use serde_json::Value;

const EXPOSED: &str = "stats socket /run/admin.sock level admin expose-fd listeners";
const CHANGED_USER: &str = "user haproxy\n  group haproxy\n  chroot /var/lib/haproxy";
/// What a container does not have unless it is asked for.
const NO_PTRACE: &str = "-sys_admin,-sys_ptrace";
const PTRACE: &str = "-sys_admin";

fn address() -> String {
    format!("{BALANCER4}:8080")
}

fn old_config(global: &[&str]) -> String {
    format!("global\n  {}\n{}", global.join("\n  "), proxy(":8080", "old"))
}

/// As with `--pid=host`.
fn successor<'l>(lab: &'l Lab, config: &str, pids: &str) -> Spec<'l> {
    let config = lab.balancer.write("new.cfg", config);
    let spec = lab.balancer.container("new").config(&config).pid(Pid::OfTheHost);
    spec.env("HAPROXY_PIDS", pids).env("HAPROXY_PORTS", "8080")
}

/// A plain HAProxy under load, with connections half open and a download under way.
struct Scene {
    lab: Lab,
    old: Plain,
    before: HostState,
    load: Load,
    half_open: Option<HalfOpen>,
    download: Download,
}

impl Scene {
    fn new(global: &[&str], arguments: &str) -> Self {
        let lab = Lab::new();
        let before = lab.balancer.state();
        let old = Plain::start(&lab.balancer, "old", arguments, &old_config(global));
        let download = Download::begin(&lab.client, &address(), "/slow");
        let load = Load::start(&lab.client, &address());
        let half_open = Some(HalfOpen::connect(&lab.client, 8080, 20));
        Self { lab, old, before, load, half_open, download }
    }

    fn guard_is_up(&self) -> bool {
        self.lab.balancer.namespace.run("iptables-nft-save -t mangle").contains("-GUARD")
    }

    /// Everything that was begun ends well, the old one with 0, and the host is as it was. The
    /// slowest of those that connected meanwhile.
    fn ends_well(mut self, mut new: Instance) -> Duration {
        let slowest = assert_none_lost(self.load);
        assert!(self.download.is_open() && self.old.is_running());
        self.lab.origin.open_gate();
        assert!(self.download.finish().is_answered());
        self.old.wait_gone();
        new.await_status("the old one is gone", |status| {
            status["last_takeover"]["predecessors"][0]["state"] == "gone"
        });
        assert_eq!(via(&self.lab), "new");
        assert!(!new.log.text().contains("as it should"), "{}", new.log.text());
        new.stop();
        self.before.assert_same_as(&self.lab.balancer.state());
        slowest
    }
}

fn via(lab: &Lab) -> String {
    let lab::Outcome::Answered(answer) = lab::get(&lab.client, &address(), "/") else {
        panic!("no answer");
    };
    let line = answer.head.lines().find_map(|line| line.strip_prefix("x-via: "));
    line.unwrap_or_else(|| panic!("{}", answer.head)).to_owned()
}

/// The listeners are shared: half-open connections need nothing but time.
fn shared(global: &[&str], arguments: &str, rights: &str, rung: &str) {
    let mut scene = Scene::new(global, arguments);
    let pid = scene.old.pid().to_string();
    let new = successor(&scene.lab, &proxy(":8080", "new"), &pid).without_capabilities(rights);
    let mut new = new.start();
    let receipt = receipt(&mut new);
    let predecessor = &receipt["predecessors"][0];
    assert_eq!(predecessor["rung"], rung, "{receipt}");
    assert_eq!((&receipt["strategy"], &receipt["guard"]), (&"shared".into(), &"none".into()));
    assert_eq!(receipt["doubts"].as_array().unwrap().len(), 0, "{receipt}");
    // The download, at least.
    assert!(predecessor["sessions"].as_u64().unwrap() >= 1, "{receipt}");
    assert_all_answered(scene.half_open.take().unwrap());
    scene.ends_well(new);
}

#[test]
fn by_its_stats_socket_nobody_is_lost() {
    shared(&[EXPOSED], "-db", NO_PTRACE, "stats-socket");
}

#[test]
fn by_its_stats_socket_nobody_is_lost_though_it_changed_its_user() {
    shared(&[EXPOSED, CHANGED_USER], "-db", PTRACE, "stats-socket");
}

#[test]
fn a_master_and_its_worker_are_relieved_as_one() {
    shared(&[EXPOSED, CHANGED_USER], "-W -db", NO_PTRACE, "stats-socket");
}

#[test]
fn out_of_its_table_of_descriptors_nobody_is_lost() {
    shared(&[CHANGED_USER], "-db", PTRACE, "pidfd-getfd");
}

/// Both listen: what is half open at the old one's sockets needs a guard.
fn separate(setting: &str, guard: &str) -> (Duration, Value) {
    let mut scene = Scene::new(&[CHANGED_USER], "-db");
    let pid = scene.old.pid().to_string();
    let new = successor(&scene.lab, &proxy(":8080", "new"), &pid);
    let new = new.without_capabilities(NO_PTRACE).env("HAPROXY_RELOAD_GUARD", setting);
    let mut new = new.start();
    let listeners = || scene.lab.balancer.namespace.run("ss -Htln sport = :8080").lines().count();
    until(LONG, "the guard is up", || {
        let gone = guard != "migrate" || listeners() == 1;
        (scene.guard_is_up() && gone).then_some(())
    });
    assert_all_answered(scene.half_open.take().unwrap());
    let receipt = receipt(&mut new);
    let predecessor = &receipt["predecessors"][0];
    assert_eq!(predecessor["rung"], "separate", "{receipt}");
    assert!(predecessor["notes"].to_string().contains("SYS_PTRACE"), "{receipt}");
    assert_eq!((&receipt["strategy"], &receipt["guard"]), (&"separate".into(), &guard.into()));
    (scene.ends_well(new), receipt)
}

/// Two cores that others use too.
const SLACK: Duration = Duration::from_millis(400);

#[test]
fn with_sockets_of_its_own_nobody_is_lost_under_migrate() {
    let (slowest, _) = separate("auto", "migrate");
    assert!(slowest < SLACK, "{slowest:?}");
}

#[test]
fn with_sockets_of_its_own_nobody_is_lost_under_hold_and_who_waits_waits_for_the_window() {
    let (slowest, receipt) = separate("hold", "hold");
    let window = Duration::from_secs_f64(receipt["window_ms"].as_f64().unwrap() / 1e3);
    assert!(slowest < window + SLACK, "{slowest:?} with a window of {window:?}");
}

#[test]
fn with_sockets_of_its_own_nobody_is_lost_under_drop_and_who_waits_waits_a_second() {
    let (slowest, _) = separate("drop", "drop");
    assert!(slowest < Duration::from_secs(1) + SLACK, "{slowest:?}");
}

const NOT_SHARED: &str = "noreuseport";

/// Ours gets the port only while the old one is paused.
fn not_shared(setting: &str, guard: &str, limit: impl Fn(Duration) -> Duration) {
    let mut scene = Scene::new(&[NOT_SHARED, CHANGED_USER], "-W -db");
    let pid = scene.old.pid().to_string();
    let new = successor(&scene.lab, &proxy(":8080", "new"), &pid);
    let new = new.without_capabilities(NO_PTRACE).env("HAPROXY_RELOAD_GUARD", setting);
    let mut new = new.start();
    until(LONG, "the guard is up", || scene.guard_is_up().then_some(()));
    assert_all_answered(scene.half_open.take().unwrap());
    let receipt = receipt(&mut new);
    let predecessor = &receipt["predecessors"][0];
    assert_eq!(predecessor["rung"], "separate", "{receipt}");
    assert!(predecessor["notes"].to_string().contains("it was paused"), "{receipt}");
    assert_eq!((&receipt["strategy"], &receipt["guard"]), (&"separate".into(), &guard.into()));
    assert_eq!(receipt["doubts"].as_array().unwrap().len(), 0, "{receipt}");
    let window = Duration::from_secs_f64(receipt["window_ms"].as_f64().unwrap() / 1e3);
    // HAProxy says that the port is taken; whoever has it is not to be ended by hand.
    let said = new.log.text();
    assert!(said.contains("Address already in use") && !said.contains("what to do:"), "{said}");
    let slowest = scene.ends_well(new);
    assert!(slowest < limit(window), "{slowest:?} with a window of {window:?}");
}

#[test]
fn one_that_does_not_share_its_port_makes_room_under_hold() {
    not_shared("auto", "hold", |window| window + SLACK);
}

#[test]
fn one_that_does_not_share_its_port_makes_room_under_drop() {
    not_shared("drop", "drop", |_| Duration::from_secs(1) + SLACK);
}

/// Half-open connections that do not finish before it must be paused. Waiting for them takes half of
/// the time, so on a busy machine the port may be given back: either way it is told.
#[test]
fn who_is_lost_with_a_port_that_is_not_shared_is_told() {
    let lab = Lab::new();
    let mut old =
        Plain::start(&lab.balancer, "old", "-db", &old_config(&[NOT_SHARED, CHANGED_USER]));
    let half_open = HalfOpen::connect(&lab.client, 8080, 3);
    let pid = old.pid().to_string();
    let new = successor(&lab, &proxy(":8080", "new"), &pid).without_capabilities(NO_PTRACE);
    let mut new = new.env("HAPROXY_RELOAD_GUARD", "hold").start();
    new.log.await_line("half open there: they are reset");
    let taken = until(LONG, "it took over or gave back", || {
        let taken = new.log.text().contains("INFO take-over");
        (taken || !new.is_running()).then_some(taken)
    });
    assert!(half_open.finish().iter().any(|outcome| !outcome.is_answered()));
    if taken {
        let receipt = receipt(&mut new);
        assert!(receipt["doubts"].to_string().contains("half open"), "{receipt}");
        old.wait_gone();
        new.stop();
    } else {
        assert_eq!(new.wait(LONG).code(), Some(1), "{}", new.log.text());
        assert!(old.is_running());
        assert_eq!(via(&lab), "old");
    }
}

/// Ours can bind the port, once it is free, and not the other one, which is nobody's to free.
#[test]
fn one_that_does_not_share_its_port_serves_on_if_the_second_start_fails() {
    let lab = Lab::new();
    let mut old =
        Plain::start(&lab.balancer, "old", "-db", &old_config(&[NOT_SHARED, CHANGED_USER]));
    let _other = lab.balancer.namespace.enter(|| std::net::TcpListener::bind("127.0.0.1:8089"));
    let before = lab.balancer.state();
    let load = Load::start(&lab.client, &address());
    let half_open = HalfOpen::connect(&lab.client, 8080, 20);
    let config = proxy(":8080", "new").replace("bind :8080", "bind :8080\n  bind 127.0.0.1:8089");
    let pid = old.pid().to_string();
    let new = successor(&lab, &config, &pid).without_capabilities(NO_PTRACE);
    let mut new = new.env("HAPROXY_RELOAD_GUARD", "hold").start();
    let guard = || lab.balancer.namespace.run("iptables-nft-save -t mangle").contains("-GUARD");
    until(LONG, "the guard is up", || guard().then_some(()));
    assert_all_answered(half_open);
    assert_eq!(new.wait(LONG).code(), Some(1), "{}", new.log.text());
    assert!(new.log.text().contains("paused"), "{}", new.log.text());
    assert_eq!(new.log.count("what to do: another process has that port"), 1);
    assert_none_lost(load);
    assert!(old.is_running());
    assert_eq!(via(&lab), "old");
    before.assert_same_as(&lab.balancer.state());
}

/// The predecessor could make room, but not there: whoever bound that port does not even listen.
#[test]
fn a_port_that_is_nobodys_to_free_is_told_with_the_ways_out() {
    let lab = Lab::new();
    let mut old =
        Plain::start(&lab.balancer, "old", "-db", &old_config(&[NOT_SHARED, CHANGED_USER]));
    let _other = lab.balancer.namespace.enter(|| {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8089)).unwrap();
        socket
    });
    let config = proxy(":8080", "new").replace("bind :8080", "bind 127.0.0.1:8089");
    let pid = old.pid().to_string();
    let new = successor(&lab, &config, &pid).without_capabilities(NO_PTRACE);
    let ended = new.finish();
    ended.assert_code(1).assert_says(&["127.0.0.1:8089", "what to do: another process has that"]);
    assert!(old.is_running() && !ended.text.contains("paused"), "{}", ended.text);
    assert_eq!(via(&lab), "old");
}

#[test]
fn several_are_relieved_at_once_and_who_is_none_is_named() {
    let lab = Lab::new();
    let mut first = Plain::start(&lab.balancer, "first", "-W -db", &old_config(&[EXPOSED]));
    let other = old_config(&[]).replace(":8080", ":8081");
    let mut second = Plain::start(&lab.balancer, "second", "-db", &other);
    let load = Load::start(&lab.client, &address());
    let both = proxy(":8080", "new").replace("bind :8080", "bind :8080\n  bind :8081");
    let pids = format!("{} {}, {} 1", first.worker(), second.pid(), first.pid());
    let mut new = successor(&lab, &both, &pids).without_capabilities(PTRACE).start();
    let receipt = receipt(&mut new);
    let rungs = [0, 1].map(|at| receipt["predecessors"][at]["rung"].as_str().unwrap());
    assert_eq!(rungs, ["stats-socket", "pidfd-getfd"], "{receipt}");
    assert_eq!(receipt["listeners"]["shared"].as_array().unwrap().len(), 2, "{receipt}");
    first.wait_gone();
    second.wait_gone();
    assert_none_lost(load);
    assert!(new.log.text().contains("process 1 is"), "{}", new.log.text());
    new.stop();
}

#[test]
fn a_broken_configuration_leaves_the_old_one_serving() {
    let lab = Lab::new();
    let mut old = Plain::start(&lab.balancer, "old", "-db", &old_config(&[EXPOSED]));
    let before = lab.balancer.state();
    let load = Load::start(&lab.client, &address());
    let half_open = HalfOpen::connect(&lab.client, 8080, 20);
    let pid = old.pid().to_string();
    let refused = successor(&lab, BROKEN, &pid).finish();
    refused.assert_code(1).assert_says(&[BROKEN_WORD]);
    assert_all_answered(half_open);
    assert_none_lost(load);
    assert!(old.is_running());
    assert_eq!(via(&lab), "old");
    before.assert_same_as(&lab.balancer.state());
}

#[test]
fn without_the_pids_of_the_host_one_line_says_so() {
    let lab = Lab::new();
    let config = proxy(":8080", "new");
    let config = lab.balancer.write("new.cfg", &config);
    let spec = lab.balancer.container("new").config(&config).env("HAPROXY_PIDS", "4711");
    let mut new = spec.start().serving();
    let text = new.log.text();
    let lines: Vec<_> = text.lines().filter(|line| line.contains("process 4711 ")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert!(lines[0].contains("run it with --pid=host"), "{}", lines[0]);
    let alone = |line: &&str| {
        line.to_lowercase().contains("warn") && line.contains("this one starts alone")
    };
    assert_eq!(text.lines().filter(alone).count(), 1, "{text}");
    new.stop();
}

/// A pidfd is of the process, not of its number.
#[test]
fn whoever_got_its_pid_meanwhile_is_not_signalled() {
    let lab = Lab::new();
    let mut old = Plain::start(&lab.balancer, "old", "-db", &old_config(&[EXPOSED]));
    let (pid, turnstile) = (old.pid(), Turnstile::new(&lab));
    let spec = turnstile.within(&lab, "new", ":8080").pid(Pid::OfTheHost);
    let mut new = spec.env("HAPROXY_PIDS", &pid.to_string()).start();
    new.log.await_line("started HAProxy");
    old.signal(Signal::SIGKILL);
    old.wait(SHORT);
    // Called as the old one was, it would end by the signal.
    let haproxy = lab.balancer.path("haproxy");
    std::fs::copy("/usr/bin/sleep", &haproxy).unwrap();
    let mut somebody = Reborn::with_pid(pid, &haproxy, "600");
    assert_eq!(process::name(pid).as_deref(), Some("haproxy"));
    turnstile.open();
    let receipt = receipt(&mut new);
    assert_eq!(receipt["predecessors"][0]["name"], format!("HAProxy {pid}"), "{receipt}");
    new.await_status("the old one is gone", |status| {
        status["last_takeover"]["predecessors"][0]["state"] == "gone"
    });
    assert_eq!(via(&lab), "new");
    assert!(somebody.is_running());
    new.stop();
}

#[test]
fn one_that_died_meanwhile_is_no_obstacle() {
    let lab = Lab::new();
    let old = Plain::start(&lab.balancer, "old", "-db", &old_config(&[EXPOSED]));
    let pid = old.pid().to_string();
    drop(old);
    let mut new = successor(&lab, &proxy(":8080", "new"), &pid).start().serving();
    until(SHORT, "the new one answers", || (via(&lab) == "new").then_some(()));
    new.stop();
}

/// Half of the clients would meet the old configuration, for as long as nobody looks.
#[test]
fn one_that_its_own_supervisor_starts_again_is_told_of() {
    let lab = Lab::new();
    let for_ever = ["sh", "-c", "while :; do \"$@\"; done", "sh"];
    let old = Plain::wrapped(&lab.balancer, "old", &for_ever, "-db", &old_config(&[]));
    let mut new = successor(&lab, &proxy(":8080", "new"), "auto").start();
    let told = new.log.await_line("another process listens at 0.0.0.0:8080 as well");
    // hapilot has given away the right to look into it.
    assert!(told.contains("WARN") && told.contains("of user 0, socket inode"), "{told}");
    let status = new.await_status("it serves", |status| status["state"] == "serving");
    let other = &status["others_listening"][0];
    assert_eq!((&other["address"], &other["user"]), (&"0.0.0.0:8080".into(), &0.into()));
    let text = Finished::from(new.command(&["status"]));
    text.assert_code(0).assert_says(&["other processes that listen there too", "0.0.0.0:8080 by"]);
    new.reload();
    assert_eq!(new.log.count("another process listens at"), 1, "{}", new.log.text());
    drop(old);
    new.await_status("it is gone", |status| status["others_listening"] == serde_json::json!([]));
    new.stop();
}
