//! Promise: a limit that is full, of processes, descriptors, memory or disk, costs a reload and says so;
//! HAProxy serves on, and all is well when the limit is lifted.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::time::Duration;

use lab::cgroup::Cgroup;
use lab::network::BALANCER4;
use lab::{HostState, Instance, LONG, Lab, Load, SHORT, haproxy_cfg, until};
use nix::sys::signal::Signal;

fn web() -> String {
    format!("{BALANCER4}:80")
}

/// One that serves under a limit, and whoever comes all the time.
struct Scene {
    // dropped first: the group must be empty
    instance: Instance,
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
        let load = Load::start(&lab.client, &web());
        Self { instance, load, before, lab }
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
            line.contains("reload refused") || line.contains("HAProxy could not be started")
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

#[derive(Clone, Copy, Debug, PartialEq)]
enum Reloaded {
    Taken,
    Refused,
}

#[test]
fn a_full_pids_limit_refuses_reloads_and_nothing_else() {
    let group = Cgroup::new("pids");
    let scene = Scene::begin(&group.wrapper(), &[]);
    let serving = scene.instance.current();
    let there = group.number("pids.current");
    let (mut refused, mut last) = (0, Reloaded::Taken);
    for limit in (1..=there + 5).rev() {
        until(LONG, "the replaced one has ended", || {
            (group.number("pids.current") <= there).then_some(())
        });
        group.set("pids.max", &limit.to_string());
        last = scene.reload();
        refused += usize::from(last == Reloaded::Refused);
        scene.instance.status();
        if limit == there + 5 {
            assert_eq!(last, Reloaded::Taken, "there is room for one more");
        }
    }
    assert_eq!(last, Reloaded::Refused, "there is room for none");
    assert!(refused >= usize::try_from(there).unwrap(), "{refused} of {there}");
    group.set("pids.max", "max");
    assert_eq!(scene.reload(), Reloaded::Taken);
    assert_ne!(scene.instance.current().id, serving.id);
    assert_eq!(scene.instance.status()["crashes"], 0);
    scene.end(refused, "--pids-limit");
    drop(group);
}

#[test]
fn where_no_process_can_be_had_a_killed_haproxy_is_replaced_as_soon_as_one_can() {
    let group = Cgroup::new("pids");
    let scene = Scene::begin(&group.wrapper(), &[]);
    let killed = scene.instance.current();
    group.set("pids.max", "1");
    lab::process::kill(scene.instance.process_of(&killed), Signal::SIGKILL);
    let line = scene.instance.log.await_line("HAProxy could not be started");
    assert!(line.contains("--pids-limit"), "{line}");
    scene.instance.status();
    group.set("pids.max", "max");
    let mut instance = scene.instance;
    let next = instance.await_successor(&killed);
    assert_ne!(next.pid, killed.pid);
    // What the killed one was serving may be cut.
    let tally = scene.load.finish();
    assert!(tally.failed.len() <= 3, "{:?} of {}", tally.failed, tally.answered);
    assert!(tally.slowest < Duration::from_secs(5));
    instance.stop();
    scene.lab.balancer.state().assert_same_as(&scene.before);
    drop(group);
}
