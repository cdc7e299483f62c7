//! Promise: a HAProxy that is a master and its worker (`master-worker`) finishes its sessions like any
//! other, and neither of the two is left behind.
#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

use crate::lab;

use lab::haproxy_cfg::proxy;
use lab::network::version;
use lab::origin::HALF;
use lab::process::{exists, field, kill};
use lab::versions::{await_gone, end, via, web};
use lab::{Download, HostState, Instance, LONG, Lab, SHORT, until};
use nix::sys::signal::Signal;

/// A program that no signal is meant for: SIGUSR1 ends it, and then its master ends everything.
const PROGRAM: &str = "program sleeper\n  command sleep 1000\n";

fn global(via: &str) -> String {
    let is_new = !["version 2.", "version 3.0."].iter().any(|old| version().contains(old));
    let deprecated = if is_new { "  expose-deprecated-directives\n" } else { "" };
    format!("global\n  master-worker\n{deprecated}{PROGRAM}{}", proxy(":80", via))
}

fn serving() -> (Lab, Instance, HostState) {
    Lab::serving(&global("v1"), &[])
}

/// The processes of that name below the one of the serving generation.
fn children(hapilot: &Instance, name: &str) -> Vec<u32> {
    let master = hapilot.process_of(&hapilot.current()).to_string();
    let is_child = |pid: &u32| field(*pid, "PPid").as_ref() == Some(&master);
    let is_named = |pid: &u32| lab::process::name(*pid).as_deref() == Some(name);
    hapilot.processes().into_iter().filter(is_child).filter(is_named).collect()
}

#[test]
fn a_worker_finishes_its_sessions_over_a_reload_though_a_program_dies_of_the_signal() {
    let (lab, mut hapilot, before) = serving();
    let old = hapilot.current();
    let mut download = Download::begin(&lab.client, &web(), "/slow");
    let status = hapilot.status();
    assert_eq!(status["generations"][0]["connections"], 1, "the worker's is counted: {status}");
    let programs = children(&hapilot, "sleep");
    assert_eq!(programs.len(), 1);

    lab.balancer.write("haproxy.cfg", &global("v2"));
    hapilot.reload();
    assert_eq!(via(&lab), "v2");
    assert!(download.is_open());
    lab.origin.open_gate();
    assert_eq!(download.finish().body().len(), 2 * HALF);
    await_gone(&mut hapilot, &old, SHORT);
    until(SHORT, "the old master's program is gone", || (!exists(programs[0])).then_some(()));
    end(&lab, hapilot, &before);
}

#[test]
fn a_worker_finishes_its_sessions_when_it_is_stopped() {
    let (lab, mut hapilot, before) = serving();
    let download = Download::begin(&lab.client, &web(), "/slow");
    hapilot.signal(Signal::SIGTERM);
    hapilot.log.await_line("draining");
    lab.origin.open_gate();
    assert_eq!(download.finish().body().len(), 2 * HALF);
    assert_eq!(hapilot.wait(LONG).code(), Some(0));
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_killed_worker_is_replaced_with_its_master() {
    let (lab, mut hapilot, before) = serving();
    let old = hapilot.current();
    kill(children(&hapilot, "haproxy")[0], Signal::SIGKILL);
    hapilot.await_successor(&old);
    assert_eq!(via(&lab), "v1");
    assert_eq!(hapilot.status()["crashes"], 1);
    end(&lab, hapilot, &before);
}

#[test]
fn a_worker_that_loses_its_master_serves_on_and_is_drained_by_the_next_reload() {
    let (lab, mut hapilot, before) = serving();
    let download = Download::begin(&lab.client, &web(), "/slow");
    let worker = children(&hapilot, "haproxy")[0];
    kill(hapilot.process_of(&hapilot.current()), Signal::SIGKILL);
    hapilot.log.await_line("supervises its worker from now on");
    assert_eq!(hapilot.process_of(&hapilot.current()), worker);
    assert_eq!(via(&lab), "v1");
    assert_eq!(hapilot.status()["crashes"], 0);

    let old = hapilot.current();
    lab.balancer.write("haproxy.cfg", &global("v2"));
    hapilot.reload();
    for _ in 0..20 {
        assert_eq!(via(&lab), "v2", "the old worker accepts no more");
    }
    lab.origin.open_gate();
    assert_eq!(download.finish().body().len(), 2 * HALF);
    await_gone(&mut hapilot, &old, SHORT);
    assert!(!exists(worker));
    end(&lab, hapilot, &before);
}

#[test]
fn a_master_that_would_stay_without_a_worker_is_no_service() {
    let config = global("v1").replace("master-worker", "master-worker no-exit-on-failure");
    let (lab, mut hapilot, before) = Lab::serving(&config, &[]);
    let old = hapilot.current();
    kill(children(&hapilot, "haproxy")[0], Signal::SIGKILL);
    hapilot.await_successor(&old);
    assert_eq!(via(&lab), "v1");
    end(&lab, hapilot, &before);
}
