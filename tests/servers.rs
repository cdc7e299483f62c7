//! Promise: what is asked of servers is shown before, read back after, and survives reloads.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::thread;

use lab::haproxy_cfg::{DEFAULTS, frontend};
use lab::network::{BALANCER4, ORIGIN_PORT, SERVER4};
use lab::{Download, Finished, Host, Instance, Lab};

fn config() -> String {
    let server = |name: &str| format!("  server {name} {SERVER4}:{ORIGIN_PORT} weight 10\n");
    let backend = |name: &str, balance: &str, servers: &[&str]| {
        let servers: String = servers.iter().map(|name| server(name)).collect();
        format!("backend {name}\n  balance {balance}\n{servers}")
    };
    [
        DEFAULTS.to_owned(),
        frontend("web", &[":80"], "v1", "app"),
        backend("app", "roundrobin", &["a1", "a2"]),
        backend("static", "static-rr", &["a1"]),
    ]
    .concat()
}

fn run(hapilot: &Instance, words: &[&str]) -> Finished {
    Finished::from(hapilot.command(words))
}

/// Of HAProxy itself: admin state and weight of `app/a1`.
fn of_a1(hapilot: &Instance) -> (String, String) {
    let state = hapilot.runtime(&hapilot.current(), "show servers state app");
    let line = state.lines().find(|line| line.contains(" app 1 a1 ")).unwrap().to_owned();
    let words: Vec<_> = line.split(' ').collect();
    (words[6].to_owned(), words[7].to_owned())
}

#[test]
fn what_is_asked_is_previewed_done_read_back_and_undone() {
    let host = Host::alone();
    let mut hapilot = host.serve(&config());
    run(&hapilot, &["drain", "--dry-run", "app/*"]).assert_code(0).assert_says(&[
        "app/a1: ready, weight 10, 0 sessions -> draining",
        "app/a2: ready, weight 10, 0 sessions -> draining",
    ]);
    assert_eq!(of_a1(&hapilot).0, "0", "a preview changes nothing");
    let done = run(&hapilot, &["drain", "app/a?"]);
    done.assert_code(0).assert_says(&["app/a1: draining", "app/a2: draining"]);
    assert_eq!(of_a1(&hapilot).0, "8");
    run(&hapilot, &["weight", "app/a1", "3"]).assert_code(0).assert_says(&["weight 3"]);
    hapilot.reload();
    assert_eq!(of_a1(&hapilot), ("8".to_owned(), "3".to_owned()), "it survives a reload");
    run(&hapilot, &["enable", "app/*"]).assert_code(0).assert_says(&["app/a1: ready, weight 3"]);
    assert_eq!(of_a1(&hapilot).0, "0");
    hapilot.stop();
}

#[test]
fn what_cannot_be_is_said_and_is_an_exit_status() {
    let host = Host::alone();
    let mut hapilot = host.serve(&config());
    let nobody = run(&hapilot, &["drain", "app/z*"]);
    assert!(!nobody.status.success(), "{}", nobody.text);
    nobody.assert_says(&["app/z*", "app/a1, app/a2, static/a1"]);
    run(&hapilot, &["weight", "app/a1", "300"]).assert_code(64).assert_says(&["0 to 256"]);
    run(&hapilot, &["weight", "[", "3"]).assert_code(64);
    let swapped = run(&hapilot, &["weight", "3", "app/a1"]);
    swapped.assert_code(64).assert_says(&["comes last: hapilot weight app/a1"]);
    // The one says no, the others do as they are told.
    let mixed = run(&hapilot, &["weight", "a1", "3"]);
    mixed.assert_code(1).assert_says(&["app/a1: ready, weight 3", "static/a1 is not weight 3:"]);
    mixed.assert_says(&["static LB algorithm"]);
    hapilot.stop();
}

#[test]
fn a_drain_can_be_waited_for() {
    let (lab, mut hapilot, _) = Lab::serving(&config(), &[]);
    let address = format!("{BALANCER4}:80");
    let session = Download::begin(&lab.client, &address, "/slow");
    let late = run(&hapilot, &["drain", "--wait", "300ms", "app/*"]);
    late.assert_code(1).assert_says(&["1 sessions are left after 300ms"]);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| run(&hapilot, &["drain", "--wait", "15s", "app/*"]));
        lab.origin.open_gate();
        waiting.join().unwrap().assert_code(0);
    });
    assert!(session.finish().is_answered());
    hapilot.stop();
}

#[test]
fn what_is_said_in_the_middle_of_a_reload_is_not_lost() {
    let host = Host::alone();
    let mut hapilot = host.serve(&config());
    thread::scope(|scope| {
        for round in 0..6 {
            let reloads = scope.spawn(|| hapilot.reload());
            let weight = (round + 1).to_string();
            run(&hapilot, &["weight", "app/a1", &weight]).assert_code(0);
            reloads.join().unwrap();
            assert_eq!(of_a1(&hapilot).1, weight, "round {round}");
        }
    });
    hapilot.stop();
}
