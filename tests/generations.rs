//! Promise: a replaced generation finishes its sessions, within limits.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::time::{Duration, Instant};

use lab::haproxy_cfg::proxy;
use lab::origin::HALF;
use lab::versions::{await_gone, configure, end, via, web};
use lab::{Download, HostState, Instance, LONG, Lab, Load, SHORT, generations};
use nix::sys::signal::Signal;

fn start_with(settings: &[(&str, &str)]) -> (Lab, Instance, HostState) {
    Lab::serving(&proxy(":80", "v1"), settings)
}

#[test]
fn the_replaced_generation_finishes_its_sessions() {
    let (lab, mut hapilot, before) = start_with(&[]);
    let old = hapilot.current();
    let mut download = Download::begin(&lab.client, &web(), "/slow");
    configure(&lab, "v2");
    hapilot.reload();
    hapilot.await_successor(&old);
    let status = hapilot.status();
    let draining = generations(&status).into_iter().find(|one| one.id == old.id).unwrap();
    assert_eq!((draining.state.as_str(), draining.pid), ("draining", old.pid));
    assert_eq!(via(&lab), "v2");
    assert!(download.is_open());
    lab.origin.open_gate();
    assert_eq!(download.finish().body().len(), 2 * HALF);
    await_gone(&mut hapilot, &old, SHORT);
    end(&lab, hapilot, &before);
}

#[test]
fn a_generation_that_does_not_finish_is_ended_at_the_drain_deadline() {
    let (lab, mut hapilot, before) = start_with(&[("HAPROXY_DRAIN_DEADLINE", "2s")]);
    let old = hapilot.current();
    let mut download = Download::begin(&lab.client, &web(), "/hang");
    hapilot.reload();
    let reloaded = Instant::now();
    hapilot.await_successor(&old);
    assert!(download.is_open(), "it has two seconds");
    await_gone(&mut hapilot, &old, LONG);
    let took = reloaded.elapsed();
    assert!(took >= Duration::from_millis(1500), "it got only {took:?}");
    assert!(took < Duration::from_secs(4), "it got {took:?}");
    assert!(!download.is_open());
    assert_eq!(via(&lab), "v1");
    end(&lab, hapilot, &before);
}

#[test]
fn beyond_the_most_generations_the_oldest_draining_one_is_stopped_hard() {
    let (lab, mut hapilot, before) =
        start_with(&[("HAPROXY_MAX_GENERATIONS", "3"), ("HAPROXY_STOP_DEADLINE", "4s")]);
    let mut downloads = Vec::new();
    for _ in 0..4 {
        let old = hapilot.current();
        downloads.push((old.clone(), Download::begin(&lab.client, &web(), "/hang")));
        hapilot.reload();
        hapilot.await_successor(&old);
    }
    await_gone(&mut hapilot, &downloads[0].0, SHORT);
    let most = hapilot.await_status("at most three generations", |status| {
        status["generations"].as_array().unwrap().len() <= 3
    });
    assert!(!downloads[0].1.is_open(), "the oldest was stopped hard");
    assert!(downloads[3].1.is_open(), "the youngest drains on: {most}");
    assert!(downloads[2].1.is_open(), "and so does the one before: {most}");
    assert_eq!(via(&lab), "v1");
    hapilot.signal(Signal::SIGINT);
    assert_eq!(hapilot.wait(SHORT).code(), Some(0));
    lab.balancer.state().assert_same_as(&before);
}

/// What a reload could leave behind: in hapilot, in its container, in the kernel.
#[derive(Debug, PartialEq)]
struct Left {
    descriptors: usize,
    processes: usize,
    files: Vec<String>,
    sockets: Vec<String>,
}

impl Left {
    /// Once all but the serving generation are gone.
    fn by(lab: &Lab, hapilot: &mut Instance) -> Self {
        hapilot.await_status("one generation", |status| {
            status["state"] == "serving" && status["generations"].as_array().unwrap().len() == 1
        });
        let numbered = |entry: std::io::Result<std::fs::DirEntry>| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.replace(|c: char| c.is_ascii_digit(), "")
        };
        let mut files: Vec<_> =
            std::fs::read_dir(hapilot.run_directory()).unwrap().map(numbered).collect();
        files.sort();
        // not how many wait in its queue just now
        let socket = |line: &str| {
            let columns: Vec<_> = line.split_whitespace().collect();
            let [protocol, state, _, _, address, ..] = columns[..] else { panic!("ss: {line}") };
            format!("{protocol} {state} {address}")
        };
        let sockets = lab.balancer.namespace.run("ss -Htuln").lines().map(socket).collect();
        Self {
            descriptors: lab::process::descriptors(hapilot.pid()),
            processes: hapilot.processes().len(),
            files,
            sockets,
        }
    }
}

/// `scripts/bench thousand` makes a thousand.
#[test]
fn sixty_reloads_in_a_row_under_load_leave_nothing_behind() {
    const MORE_MEMORY_KIB: u64 = 1024;
    let (lab, mut hapilot, before) = start_with(&[]);
    let load = Load::start(&lab.client, &web());
    // what is allocated once is there
    (0..5).for_each(|_| hapilot.reload());
    let (left, memory) = (Left::by(&lab, &mut hapilot), lab::process::memory_kib(hapilot.pid()));
    for _ in 0..60 {
        hapilot.reload();
    }
    assert_eq!(Left::by(&lab, &mut hapilot), left);
    let more = lab::process::memory_kib(hapilot.pid()).saturating_sub(memory);
    assert!(more <= MORE_MEMORY_KIB, "{more} KiB more than {memory}");
    let tally = load.finish();
    assert_eq!(tally.failed, [], "{} were answered", tally.answered);
    end(&lab, hapilot, &before);
}
