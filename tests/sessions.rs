//! Promise: with hapilot's commands alone a person finds out which session keeps an old generation,
//! or a container that is to stop, from ending.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use lab::network::{BALANCER4, CLIENT4};
use lab::{Download, Finished, Instance, Lab, get, haproxy_cfg, until};
use nix::sys::signal::Signal;
use serde_json::Value;

fn lab() -> (Lab, Instance) {
    let (lab, hapilot, _) = Lab::serving(&haproxy_cfg::proxy(":80", "v1"), &[]);
    (lab, hapilot)
}

fn address() -> String {
    format!("{BALANCER4}:80")
}

fn sessions(hapilot: &Instance) -> Vec<Value> {
    let output = hapilot.command(&["sessions", "--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The sessions of the generation in that state.
fn of(hapilot: &Instance, state: &str) -> Vec<Value> {
    let all = sessions(hapilot);
    let one = all.iter().find(|one| one["generation"]["state"] == state);
    one.map(|one| one["oldest"].as_array().unwrap().clone()).unwrap_or_default()
}

#[test]
fn an_old_generation_is_explained_by_the_session_that_it_still_has() {
    let (lab, mut hapilot) = lab();
    let long = Download::begin(&lab.client, &address(), "/hang");
    let short = Download::begin(&lab.client, &address(), "/slow");
    assert_eq!(of(&hapilot, "serving").len(), 2);
    hapilot.reload();
    let young = Download::begin(&lab.client, &address(), "/hang");
    until(lab::SHORT, "both are known", || (of(&hapilot, "draining").len() == 2).then_some(()));
    lab.origin.open_gate();
    assert!(short.finish().is_answered());
    let left = until(lab::SHORT, "one is left", || {
        let left = of(&hapilot, "draining");
        (left.len() == 1).then_some(left)
    });
    assert!(left[0]["client"].as_str().unwrap().starts_with(CLIENT4), "{left:?}");
    assert_eq!((&left[0]["frontend"], &left[0]["server"]), (&"web".into(), &"origin/s1".into()));
    assert_eq!(of(&hapilot, "serving").len(), 1, "the new one has its own");
    let told = Finished::from(hapilot.command(&["sessions"]));
    told.assert_code(0).assert_says(&[
        "draining, pid",
        ": 1 session on 1 connection,",
        "origin/s1",
    ]);
    drop((long, young));
    hapilot.signal(Signal::SIGQUIT);
    hapilot.wait(lab::LONG);
}

#[test]
fn a_stop_that_waits_is_explained_by_the_session_that_it_waits_for() {
    let (lab, mut hapilot) = lab();
    let session = Download::begin(&lab.client, &address(), "/slow");
    hapilot.signal(Signal::SIGTERM);
    let left = until(lab::SHORT, "the session is known", || {
        let left = of(&hapilot, "draining");
        (left.len() == 1).then_some(left)
    });
    assert!(left[0]["client"].as_str().unwrap().starts_with(CLIENT4), "{left:?}");
    lab.origin.open_gate();
    assert!(session.finish().is_answered());
    assert_eq!(hapilot.wait(lab::LONG).code(), Some(0));
}

fn end(hapilot: &Instance, id: &str) -> Finished {
    Finished::from(hapilot.command(&["sessions", "--end", id]))
}

#[test]
fn one_session_is_ended_alone_whichever_generation_has_it() {
    let (lab, mut hapilot) = lab();
    let first = Download::begin(&lab.client, &address(), "/hang");
    let id = |session: &Value| session["id"].as_str().unwrap().to_owned();
    let first_id = id(&of(&hapilot, "serving")[0]);
    let second = Download::begin(&lab.client, &address(), "/slow");
    hapilot.reload();
    let third = Download::begin(&lab.client, &address(), "/hang");
    let serving = of(&hapilot, "serving");
    assert_eq!((serving.len(), of(&hapilot, "draining").len()), (1, 2));
    assert!(serving[0]["idle_s"].is_u64(), "{serving:?}");
    end(&hapilot, &first_id).assert_code(0).assert_says(&["ended ", &first_id]);
    assert!(!first.finish().is_answered());
    until(lab::SHORT, "it is gone", || (of(&hapilot, "draining").len() == 1).then_some(()));
    assert_eq!(of(&hapilot, "serving").len(), 1, "nobody else's");
    end(&hapilot, &first_id).assert_code(1).assert_says(&["No such session"]);
    end(&hapilot, &id(&serving[0])).assert_code(0);
    assert!(!third.finish().is_answered());
    lab.origin.open_gate();
    assert!(second.finish().is_answered());
    let gone = || (sessions(&hapilot).len() == 1).then_some(());
    until(lab::SHORT, "the old one is gone, however often it is asked", gone);
    end(&hapilot, &first_id).assert_code(1).assert_says(&["there is no generation"]);
    end(&hapilot, "0x1").assert_code(64).assert_says(&["for example 3/0x"]);
    hapilot.stop();
}

#[test]
fn a_stop_is_over_when_the_session_that_it_waits_for_is_ended() {
    let (lab, mut hapilot) = lab();
    let session = Download::begin(&lab.client, &address(), "/hang");
    hapilot.signal(Signal::SIGTERM);
    let left = until(lab::SHORT, "the session is known", || of(&hapilot, "draining").pop());
    // It dies with its container if it is not quick enough to see its own end.
    end(&hapilot, left["id"].as_str().unwrap());
    assert!(!session.finish().is_answered());
    assert_eq!(hapilot.wait(lab::SHORT).code(), Some(0));
}

#[test]
fn knowing_the_sessions_keeps_no_generation_alive() {
    let (lab, mut hapilot) = lab();
    for _ in 0..5 {
        assert!(get(&lab.client, &address(), "/").is_answered());
        hapilot.reload();
    }
    hapilot.await_status("only one is left", |status| {
        status["generations"].as_array().unwrap().len() == 1
    });
    hapilot.stop();
}

#[test]
fn a_watched_status_comes_again_and_again() {
    let (_lab, mut hapilot) = lab();
    let watched =
        hapilot.exec(&["timeout", "3", env!("CARGO_BIN_EXE_hapilot"), "status", "--watch"]);
    let text = String::from_utf8(watched.stdout).unwrap();
    assert!(text.matches("\x1b[H\x1b[2Jserving since").count() >= 2, "{text:?}");
    hapilot.stop();
}
