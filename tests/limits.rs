//! Promise: a limit that is full, of processes, descriptors, memory or disk, costs a reload and says so;
//! HAProxy serves on, and all is well when the limit is lifted.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test says so by panicking, and what it came to in its output"
)]

use crate::lab;

use std::time::Duration;

use lab::cgroup::Cgroup;
use lab::haproxy_cfg::DEFAULTS;
use lab::network::BALANCER4;
use lab::{Generation, Host, HostState, Instance, LONG, Lab, Load, SHORT, get, haproxy_cfg, until};
use nix::sys::signal::Signal;
use serde_json::Value;

fn web() -> String {
    format!("{BALANCER4}:80")
}

/// One that serves under a limit, and whoever comes all the time.
struct Scene {
    // dropped first: the group must be empty
    instance: Instance,
    /// Its first HAProxy.
    serving: Generation,
    haproxy: u32,
    load: Load,
    before: HostState,
    lab: Lab,
}

impl Scene {
    fn begin(wrapper: &[String], settings: &[(&str, &str)]) -> Self {
        let lab = Lab::new();
        let before = lab.balancer.state();
        let config = haproxy_cfg::proxy(":80", "one");
        let config = lab.balancer.write("haproxy.cfg", &format!("global\n  nbthread 2\n{config}"));
        let words: Vec<_> = wrapper.iter().map(String::as_str).collect();
        let spec = lab.balancer.container("hapilot").config(&config).envs(settings);
        let instance = spec.wrapped(&words).start().serving();
        let serving = instance.current();
        let haproxy = instance.process_of(&serving);
        let load = Load::start(&lab.client, &web());
        Self { instance, serving, haproxy, load, before, lab }
    }

    /// Asks for a reload, and waits for what becomes of it.
    fn reload(&self) -> Reloaded {
        let outcomes = || ["reload taken", "reload refused"].map(|w| self.instance.log.count(w));
        let before = outcomes();
        self.instance.signal(Signal::SIGHUP);
        until(LONG, "an outcome of the reload", || {
            let [taken, refused] = outcomes();
            match (taken > before[0], refused > before[1]) {
                (true, _) => Some(Reloaded::Taken),
                (_, true) => Some(Reloaded::Refused),
                _ => None,
            }
        })
    }

    /// Nobody has noticed anything; and now all is as it was.
    fn end(mut self, refusals: usize, words: &str) {
        let text = self.instance.log.text();
        let named = text.lines().filter(|line| {
            let told = ["HAProxy could not be started", "was killed while it started"];
            told.iter().any(|words| line.contains(words))
        });
        let named = named.filter(|line| line.contains(words)).count();
        assert!(named >= refusals, "{named} of {refusals} name {words}");
        assert!(!text.contains("panicked"), "a panic");
        let answered = self.load.answered();
        until(SHORT, "more are answered", || (self.load.answered() > answered + 5).then_some(()));
        let tally = self.load.finish();
        assert_eq!(tally.failed, [], "of {}", tally.answered);
        self.instance.stop();
        self.lab.balancer.state().assert_same_as(&self.before);
    }
}

/// For one HAProxy more, and what hapilot may run beside it.
const ROOM: u64 = 12;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Reloaded {
    Taken,
    Refused,
}

#[test]
fn a_full_pids_limit_refuses_reloads_and_nothing_else() {
    let group = Cgroup::new("pids");
    let scene = Scene::begin(&group.wrapper(), &[]);
    let there = group.number("pids.current");
    let (mut refused, mut last) = (0, Reloaded::Taken);
    for limit in (1..=there + ROOM).rev() {
        until(LONG, "the replaced one has ended", || {
            (group.number("pids.current") <= there).then_some(())
        });
        group.set("pids.max", &limit.to_string());
        last = scene.reload();
        refused += usize::from(last == Reloaded::Refused);
        scene.instance.status();
        if limit == there + ROOM {
            assert_eq!(last, Reloaded::Taken, "there is room for one more");
        }
    }
    assert_eq!(last, Reloaded::Refused, "there is room for none");
    assert!(refused >= usize::try_from(there).unwrap(), "{refused} of {there}");
    group.set("pids.max", "max");
    assert_eq!(scene.reload(), Reloaded::Taken);
    assert_ne!(scene.instance.current().id, scene.serving.id);
    assert_eq!(scene.instance.status()["crashes"], 0);
    scene.end(refused, "--pids-limit");
    drop(group);
}

/// HAProxy itself waits for threads that it cannot have, for ever and without a word.
#[test]
fn a_haproxy_that_cannot_have_its_threads_is_not_waited_for() {
    let group = Cgroup::new("pids");
    let scene = Scene::begin(&group.wrapper(), &[]);
    let config = haproxy_cfg::proxy(":80", "greedy");
    scene.lab.balancer.write("haproxy.cfg", &format!("global\n  nbthread 40\n{config}"));
    group.set("pids.max", &(group.number("pids.current") + 20).to_string());
    assert_eq!(scene.reload(), Reloaded::Refused);
    let line = scene.instance.log.await_line("HAProxy waits for threads that it cannot have");
    assert!(line.contains("--pids-limit"), "{line}");
    group.set("pids.max", "max");
    assert_eq!(scene.reload(), Reloaded::Taken);
    assert_eq!(scene.instance.status()["crashes"], 0);
    scene.end(0, "");
    drop(group);
}

#[test]
fn a_first_haproxy_that_cannot_have_its_threads_ends_with_the_reason() {
    let group = Cgroup::new("pids");
    let host = Host::alone();
    let config = haproxy_cfg::proxy(":80", "greedy");
    let config = host.write("haproxy.cfg", &format!("global\n  nbthread 40\n{config}"));
    group.set("pids.max", "30");
    let wrapper = group.wrapper();
    let words: Vec<_> = wrapper.iter().map(String::as_str).collect();
    let finished = host.container("hapilot").config(&config).wrapped(&words).finish();
    finished.assert_code(1).assert_says(&["--pids-limit", "nbthread"]);
    drop(group);
}

/// A killed HAProxy whose place cannot be taken, until the limit is lifted.
fn replaced_when_lifted(scene: Scene, words: &str, lift: impl FnOnce(&Instance)) {
    let killed = scene.serving.clone();
    lab::process::kill(scene.haproxy, Signal::SIGKILL);
    let line = scene.instance.log.await_line("HAProxy could not be started");
    assert!(line.contains(words), "{line}");
    let Scene { mut instance, load, before, lab, .. } = scene;
    lift(&instance);
    let next = instance.await_successor(&killed);
    assert_ne!(next.pid, killed.pid);
    // What the killed one was serving may be cut.
    let tally = load.finish();
    assert!(tally.failed.len() <= 3, "{:?} of {}", tally.failed, tally.answered);
    assert!(tally.slowest < Duration::from_secs(5));
    instance.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn where_no_process_can_be_had_a_killed_haproxy_is_replaced_as_soon_as_one_can() {
    let group = Cgroup::new("pids");
    let scene = Scene::begin(&group.wrapper(), &[]);
    group.set("pids.max", "1");
    replaced_when_lifted(scene, "--pids-limit", |_| group.set("pids.max", "max"));
    drop(group);
}

#[test]
fn where_no_descriptor_can_be_had_a_killed_haproxy_is_replaced_as_soon_as_one_can() {
    let scene = Scene::begin(&[], &[]);
    set_descriptors(&scene.instance, 3);
    let lift = |hapilot: &Instance| set_descriptors(hapilot, 20_000);
    replaced_when_lifted(scene, "--ulimit nofile=", lift);
}

/// As `docker run --ulimit nofile=1024:HARD`.
fn limited(hard: u32) -> Vec<String> {
    let script = format!(
        "ulimit -S -n 1024 && ulimit -H -n {hard} && \
                          exec setpriv --bounding-set -sys_resource \"$@\""
    );
    ["sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
}

/// On loopback; an abstract socket beside them, if wanted.
fn many(listeners: u16, abstract_too: bool) -> String {
    let abns = if abstract_too { "\n  bind abns@many" } else { "" };
    format!(
        "{DEFAULTS}frontend web\n  bind 127.0.0.1:{FIRST}-{}{abns}\n  http-request return status 200\n",
        FIRST + listeners - 1
    )
}

const FIRST: u16 = 20_000;

fn with_many(listeners: u16, abstract_too: bool) {
    let host = Host::alone();
    let config = host.write("haproxy.cfg", &many(listeners, abstract_too));
    let limited = limited(8192);
    let words: Vec<_> = limited.iter().map(String::as_str).collect();
    let spec = host.container("hapilot").config(&config).wrapped(&words);
    let mut hapilot = spec.start().serving();
    let count = usize::from(listeners) + usize::from(abstract_too);
    for _ in 0..2 {
        let output = hapilot.command(&["reload", "--json"]);
        let receipt: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(receipt["verdict"], "taken", "{receipt}");
        assert_eq!(receipt["listeners"]["shared"].as_array().unwrap().len(), count, "{receipt}");
    }
    let killed = hapilot.current();
    let haproxy = hapilot.process_of(&killed);
    let limits = std::fs::read_to_string(format!("/proc/{haproxy}/limits")).unwrap();
    let open_files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!(open_files.contains(" 8192 "), "{open_files}");
    lab::process::kill(haproxy, Signal::SIGKILL);
    for port in (FIRST..FIRST + listeners).step_by(usize::from(listeners) / 100) {
        let answer = get(&host.namespace, &format!("127.0.0.1:{port}"), "/");
        assert!(answer.is_answered(), "port {port}: {answer:?}");
    }
    hapilot.await_successor(&killed);
    assert_eq!(hapilot.log.count("nofile"), 0, "nothing to warn of");
    hapilot.stop();
}

#[test]
fn six_hundred_listeners_are_shared_with_a_soft_limit_of_1024_descriptors() {
    with_many(600, false);
}

#[test]
fn twelve_hundred_listeners_are_shared_with_a_soft_limit_of_1024_descriptors() {
    with_many(1200, false);
}

#[test]
fn two_thousand_listeners_and_an_abstract_one_are_shared_with_a_soft_limit_of_1024_descriptors() {
    with_many(2020, true);
}

#[test]
fn listeners_that_do_not_fit_are_warned_of_and_a_reload_names_the_limit() {
    let host = Host::alone();
    let config = host.write("haproxy.cfg", &many(600, false));
    let limited = limited(1024);
    let words: Vec<_> = limited.iter().map(String::as_str).collect();
    let spec = host.container("hapilot").config(&config).wrapped(&words);
    let check = spec.clone().args(&["check"]).finish();
    check.assert_says(&["listens at 600 addresses", "--ulimit nofile=2048:2048"]);
    let mut hapilot = spec.start().serving();
    hapilot.log.await_line("--ulimit nofile=2048:2048");
    let serving = hapilot.current();
    // Refused or not, it serves on and says why.
    let output = hapilot.command(&["reload"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("--ulimit nofile="), "{said}");
    hapilot.await_status("a generation serves", |status| status["state"] == "serving");
    let answer = get(&host.namespace, &format!("127.0.0.1:{FIRST}"), "/");
    assert!(answer.is_answered(), "{serving:?}: {answer:?}");
    assert_eq!(hapilot.log.count("panicked"), 0);
    hapilot.stop();
}

/// Of hapilot alone: HAProxy gets the limit that hapilot was started with. With none at all `poll` itself
/// fails (poll(2)), also for the log.
fn set_descriptors(hapilot: &Instance, limit: u64) {
    let words = ["--pid", &hapilot.pid().to_string(), &format!("--nofile={limit}:")];
    let status = std::process::Command::new("prlimit").args(words).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_full_limit_of_descriptors_refuses_reloads_and_nothing_else() {
    let scene = Scene::begin(&[], &[]);
    let open = u64::try_from(lab::process::descriptors(scene.instance.pid())).unwrap();
    let mut refused = 0;
    for limit in
        [open + 200, open + 30, open + 20, open + 8, open + 4, open + 2, open + 1, open, 3, 1]
    {
        set_descriptors(&scene.instance, limit);
        let outcome = scene.reload();
        refused += usize::from(outcome == Reloaded::Refused);
        if limit > open + 100 {
            assert_eq!(outcome, Reloaded::Taken, "{limit} of {open}");
        }
        if limit <= open + 20 {
            assert_eq!(outcome, Reloaded::Refused, "{limit} of {open}");
        }
    }
    set_descriptors(&scene.instance, 20_000);
    assert_eq!(scene.reload(), Reloaded::Taken);
    assert_ne!(scene.instance.current().id, scene.serving.id);
    assert_eq!(scene.instance.status()["crashes"], 0);
    scene.end(refused, "--ulimit nofile=");
}

#[test]
fn a_full_limit_of_memory_refuses_reloads_and_nothing_else() {
    let group = Cgroup::new("memory");
    let scene = Scene::begin(&group.wrapper(), &[]);
    let (used, limit) = group.memory();
    let mut refused = 0;
    for more in [64 << 20, 8 << 20, 6 << 20, 4 << 20] {
        group.set(limit, &(group.number(used) + more).to_string());
        let outcome = scene.reload();
        eprintln!("{} KiB free: {outcome:?}", more >> 10);
        refused += usize::from(outcome == Reloaded::Refused);
        scene.instance.status();
    }
    assert!(refused > 0, "there was always enough");
    group.set(limit, &(1_u64 << 40).to_string());
    assert_eq!(scene.reload(), Reloaded::Taken);
    assert_ne!(scene.instance.current().id, scene.serving.id);
    assert_eq!(scene.instance.status()["crashes"], 0);
    scene.end(refused, "--memory");
    drop(group);
}

/// Its `/run` is a small tmpfs, which the test sees through it.
#[test]
fn a_full_disk_refuses_reloads_and_nothing_else() {
    let mount = "mount -t tmpfs -o size=256k none /run && exec \"$@\"";
    let wrapper = ["sh", "-c", mount, "sh"].map(str::to_owned);
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = haproxy_cfg::proxy(":80", "one");
    let saves = "mode http\n  load-server-state-from-file global\n";
    let config = lab.balancer.write("haproxy.cfg", &config.replace("mode http\n", saves));
    let words: Vec<_> = wrapper.iter().map(String::as_str).collect();
    let instance = lab.balancer.container("hapilot").config(&config).wrapped(&words).start();
    instance.log.await_line("INFO serving");
    let serving = instance.current();
    let haproxy = instance.process_of(&serving);
    let load = Load::start(&lab.client, &web());
    let scene = Scene { instance, serving, haproxy, load, before, lab };
    let mut refused = 0;
    for blocks in [8, 2, 1, 0] {
        let fill = format!(
            "rm -f /run/fill; n=$(stat -f -c %f /run); head -c $(((n - {blocks}) * 4096)) /dev/zero > /run/fill"
        );
        assert!(scene.instance.exec(&["sh", "-c", &fill]).status.success());
        let outcome = scene.reload();
        eprintln!("{blocks} blocks free: {outcome:?}");
        refused += usize::from(outcome == Reloaded::Refused);
        assert!(scene.instance.command(&["status"]).status.success());
    }
    assert!(refused > 0, "there was always enough");
    assert!(scene.instance.exec(&["rm", "/run/fill"]).status.success());
    assert_eq!(scene.reload(), Reloaded::Taken);
    assert_eq!(scene.instance.status()["crashes"], 0);
    scene.end(refused, "disk is full");
}
