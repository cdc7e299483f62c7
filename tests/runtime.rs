//! Promise: one socket always leads to the runtime API of whoever serves, and what HAProxy refuses
//! is an exit status.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use lab::network::BALANCER4;
use lab::{Download, Finished, Host, LONG, Lab, SHORT, haproxy_cfg};
use nix::sys::signal::Signal;

fn door(host: &Host) -> PathBuf {
    host.path("run-hapilot/hapilot/haproxy.sock")
}

/// The PID that the one behind the door says it has.
fn who_serves(door: &Path) -> Result<u32, String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut stream = UnixStream::connect(door).map_err(failed)?;
    stream.set_read_timeout(Some(LONG)).map_err(failed)?;
    stream.write_all(b"show info\n").map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    let pid = answer.lines().find_map(|line| line.strip_prefix("Pid: ")?.parse().ok());
    pid.ok_or(answer)
}

#[test]
fn a_command_of_haproxys_is_answered_and_a_refusal_is_a_status() {
    let host = Host::alone();
    let mut hapilot = host.serve(&haproxy_cfg::proxy(":80", "v1"));
    let ask = |words: &[&str]| Finished::from(hapilot.command(&[&["runtime"], words].concat()));
    let pid = format!("Pid: {}", hapilot.current().pid);
    ask(&["show info"]).assert_code(0).assert_says(&[&pid]);
    ask(&["show", "stat"]).assert_code(0).assert_says(&["# pxname,svname", "origin,s1"]);
    ask(&["set server origin/s1 state maint"]).assert_code(0);
    ask(&["show", "bogus"]).assert_code(1).assert_says(&["Unknown command"]);
    let weight = ask(&["set server origin/s1 weight 300"]);
    weight.assert_code(1).assert_says(&["Absolute weight can only be between 0 and 256"]);
    assert!(!weight.text.contains("[3]"), "{}", weight.text);
    ask(&["disable server origin/none"]).assert_code(1).assert_says(&["No such server"]);
    ask(&[]).assert_code(64);
    hapilot.stop();
}

#[test]
fn the_door_leads_to_whoever_serves_through_reloads_and_crashes() {
    let host = Host::alone();
    let mut hapilot = host.serve(&haproxy_cfg::proxy(":80", "v1"));
    let (door, over, asked) = (door(&host), AtomicBool::new(false), AtomicUsize::new(0));
    let failures = std::thread::scope(|scope| {
        let askers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut failures = Vec::new();
                    while !over.load(Ordering::SeqCst) {
                        failures.extend(who_serves(&door).err());
                        asked.fetch_add(1, Ordering::SeqCst);
                    }
                    failures
                })
            })
            .collect();
        for round in 0..8 {
            let serving = hapilot.current();
            if round % 4 == 3 {
                lab::process::kill(hapilot.process_of(&serving), Signal::SIGKILL);
                hapilot.await_successor(&serving);
            } else {
                hapilot.reload();
            }
            assert_eq!(who_serves(&door), Ok(hapilot.current().pid));
        }
        over.store(true, Ordering::SeqCst);
        askers.into_iter().flat_map(|asker| asker.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(asked.load(Ordering::SeqCst) > 100);
    assert!(failures.is_empty(), "{} of {asked:?}: {failures:?}", failures.len());
    hapilot.stop();
    assert!(!door.exists(), "nothing is left");
}

#[test]
fn whoever_is_in_a_conversation_stays_with_the_one_he_talks_to() {
    let host = Host::alone();
    let mut hapilot = host.serve(&haproxy_cfg::proxy(":80", "v1"));
    let old = hapilot.current();
    let mut stream = UnixStream::connect(door(&host)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut say = |words: &str| {
        stream.write_all(words.as_bytes()).unwrap();
        let (mut text, mut piece) = (String::new(), [0; 4096]);
        while !text.ends_with("\n> ") {
            let count = stream.read(&mut piece).unwrap();
            assert_ne!(count, 0, "it hung up after {text:?}");
            text.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
        text
    };
    say("prompt\n");
    hapilot.reload();
    assert!(say("show info\n").contains(&format!("Pid: {}\n", old.pid)));
    drop(stream);
    hapilot.await_status("the old one has gone", |status| {
        status["generations"].as_array().unwrap().len() == 1
    });
    hapilot.stop();
}

#[test]
fn everybody_alive_is_asked_when_wanted() {
    let (lab, mut hapilot, _) = Lab::serving(&haproxy_cfg::proxy(":80", "v1"), &[]);
    let old = hapilot.current();
    let session = Download::begin(&lab.client, &format!("{BALANCER4}:80"), "/slow");
    hapilot.reload();
    let new = hapilot.current();
    let told = Finished::from(hapilot.command(&["runtime", "--all", "show info"]));
    told.assert_code(0).assert_says(&[
        &format!("# generation {}, draining, pid {}", old.id, old.pid),
        &format!("Pid: {}\n", old.pid),
        "Stopping: 1\n",
        &format!("# generation {}, serving, pid {}", new.id, new.pid),
        &format!("Pid: {}\n", new.pid),
    ]);
    let refused = Finished::from(hapilot.command(&["runtime", "--all", "set server a/b weight 1"]));
    refused.assert_code(1);
    assert_eq!(refused.text.matches("No such backend").count(), 2, "{}", refused.text);
    lab.origin.open_gate();
    assert!(session.finish().is_answered());
    lab::versions::await_gone(&mut hapilot, &old, SHORT);
    hapilot.stop();
}

#[test]
fn who_does_not_answer_though_everybody_is_asked_is_a_status() {
    let (lab, mut hapilot, _) = Lab::serving(&haproxy_cfg::proxy(":80", "v1"), &[]);
    let old = hapilot.current();
    let _session = Download::begin(&lab.client, &format!("{BALANCER4}:80"), "/hang");
    hapilot.reload();
    let ask = |words| Finished::from(hapilot.command(&["runtime", "--all", words]));
    // Their answers could not be told apart.
    ask("show info;show stat").assert_code(1).assert_says(&["one command at a time", "# pxname"]);
    ask("show info").assert_code(0);
    let process = hapilot.process_of(&old);
    lab::process::freeze(process);
    ask("show info").assert_code(1).assert_says(&["(no answer: "]);
    lab::process::kill(process, Signal::SIGKILL);
    hapilot.stop();
}

#[test]
fn who_asks_while_haproxy_is_stuck_is_answered_by_its_successor() {
    let host = Host::alone();
    let mut hapilot = host.serve(&haproxy_cfg::proxy(":80", "v1"));
    let old = hapilot.current();
    lab::process::freeze(hapilot.process_of(&old));
    let answer = std::thread::scope(|scope| {
        let asker = scope.spawn(|| who_serves(&door(&host)));
        hapilot.reload();
        asker.join().unwrap()
    });
    assert_eq!(answer, Ok(hapilot.current().pid));
    lab::process::kill(hapilot.process_of(&old), Signal::SIGKILL);
    hapilot.stop();
}

#[test]
fn whoever_says_nothing_keeps_nobody_out() {
    let host = Host::alone();
    let mut hapilot = host.serve(&haproxy_cfg::proxy(":80", "v1"));
    let door = door(&host);
    let _silent: Vec<_> = (0..200).map(|_| UnixStream::connect(&door).unwrap()).collect();
    let begun = Instant::now();
    assert_eq!(who_serves(&door), Ok(hapilot.current().pid));
    assert!(begun.elapsed() < SHORT, "{:?}", begun.elapsed());
    hapilot.stop();
}
