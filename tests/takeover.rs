//! Promise: one hapilot relieves another, and nobody who connects or is connected notices.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::io::{BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

use lab::haproxy_cfg::{BROKEN, BROKEN_WORD, DEFAULTS, backend, frontend, proxy, transparent};
use lab::network::{BALANCER4, CLIENT4, SERVER4};
use lab::takeover::{
    assert_all_answered, assert_ends_with_0, assert_none_lost, introduce, receipt,
};
use lab::turnstile::Turnstile;
use lab::versions::{via, web};
use lab::{
    Download, Finished, HalfOpen, HostState, Instance, LONG, Lab, Load, Outcome, Pid, SHORT, get,
    process, until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A container named so that relieves whoever is there.
fn successor(lab: &Lab, name: &str, config: &str) -> Instance {
    let config = lab.balancer.write(&format!("{name}.cfg"), config);
    lab.balancer.container(name).config(&config).env("HAPROXY_PIDS", "auto").start()
}

fn start() -> (Lab, Instance, HostState) {
    Lab::serving(&proxy(":80", "old"), &[])
}

#[test]
fn ten_in_a_row_lose_nobody_and_leave_the_host_as_it_was() {
    let (lab, mut old, before) = start();
    let load = Load::start(&lab.client, &web());
    for number in 1..=10 {
        let half_open = HalfOpen::connect(&lab.client, 80, 10);
        let mut new = successor(&lab, &format!("n{number}"), &proxy(":80", &number.to_string()));
        let receipt = receipt(&mut new);
        assert_eq!(receipt["predecessors"][0]["rung"], "hapilot", "{receipt}");
        assert_eq!(receipt["strategy"], "shared", "{receipt}");
        assert_all_answered(half_open);
        assert_ends_with_0(&mut old);
        assert_eq!(via(&lab), number.to_string());
        old = new;
    }
    assert_none_lost(load);
    old.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn transparent_sessions_of_both_go_on_and_the_old_one_ends_when_its_last_is_over() {
    let config = transparent(":80", ":::80 v6only");
    let (lab, mut old, before) = Lab::serving(&config, &[]);
    let download = Download::begin(&lab.client, &web(), "/slow");
    old.reload();
    let another = Download::begin(&lab.client, &web(), "/slow");
    let load = Load::start(&lab.client, &web());
    let mut new = successor(&lab, "new", &config);
    let receipt = receipt(&mut new);
    assert_eq!(receipt["predecessors"][0]["state"], "draining", "{receipt}");
    assert_none_lost(load);
    assert!(old.is_running(), "it has sessions to finish");
    assert_eq!(old.status()["state"], "relieved");
    assert_eq!(old.command(&["reload"]).status.code(), Some(1));
    lab.origin.take_peers();
    assert_eq!(get(&lab.client, &web(), "/").body(), CLIENT4);
    lab.origin.open_gate();
    for download in [download, another] {
        assert!(download.finish().is_answered());
    }
    assert_ends_with_0(&mut old);
    let gone = |status: &Value| {
        let old = &status["last_takeover"]["predecessors"][0];
        old["state"] == "gone" && old["status"] == 0
    };
    new.await_status("it is seen to be gone", gone);
    assert_eq!(get(&lab.client, &web(), "/").body(), CLIENT4, "the old one's rules are gone");
    new.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn what_is_intercepted_is_so_throughout() {
    let bind = [":8080 transparent", ":::8080 transparent v6only"];
    let (lab, intercept) = (Lab::new(), [("HAPROXY_INTERCEPT", "80:8080")]);
    let before = lab.balancer.state();
    let config = lab.balancer.write("haproxy.cfg", &transparent(bind[0], bind[1]));
    let spec = lab.balancer.container("old").config(&config).envs(&intercept);
    let mut old = spec.start().serving();
    let target = format!("{SERVER4}:80");
    let load = Load::start(&lab.client, &target);
    let spec = lab.balancer.container("new").config(&config).envs(&intercept);
    let mut new = spec.env("HAPROXY_PIDS", "auto").start();
    receipt(&mut new);
    assert_ends_with_0(&mut old);
    assert_none_lost(load);
    assert_eq!(get(&lab.client, &target, "/").body(), CLIENT4);
    new.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_successor_with_a_broken_configuration_leaves_the_old_one_serving() {
    let (lab, mut old, before) = start();
    let load = Load::start(&lab.client, &web());
    let half_open = HalfOpen::connect(&lab.client, 80, 10);
    let mut new = successor(&lab, "new", BROKEN);
    let status = new.wait(LONG);
    new.log.wait_closed();
    Finished { status, text: new.log.text() }.assert_code(1).assert_says(&[BROKEN_WORD]);
    assert_all_answered(half_open);
    assert_eq!(via(&lab), "old");
    old.log.await_line("it did not take over; serving on");
    old.reload();
    assert_none_lost(load);
    old.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn what_is_not_shared_goes_under_a_guard() {
    let (lab, mut old, before) = start();
    let load = Load::start(&lab.client, &web());
    let half_open = HalfOpen::connect(&lab.client, 80, 10);
    let mut new = successor(&lab, "new", &proxy(":80 interface b0", "new"));
    new.log.await_line("guard raised");
    // What was half open settles with the old one while the guard is up.
    assert_all_answered(half_open);
    let receipt = receipt(&mut new);
    assert_eq!(receipt["strategy"], "separate", "{receipt}");
    assert_eq!(receipt["guard"], "hold", "{receipt}");
    assert_none_lost(load);
    assert_ends_with_0(&mut old);
    assert_eq!(via(&lab), "new");
    new.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn two_are_relieved_at_once() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let one = |name: &str, bind: &str| {
        let config = lab.balancer.write(&format!("{name}.cfg"), &proxy(bind, name));
        lab.balancer.container(name).config(&config).start().serving()
    };
    let (mut a, mut b) = (one("a", ":80"), one("b", ":81"));
    let second = format!("{BALANCER4}:81");
    let loads = [Load::start(&lab.client, &web()), Load::start(&lab.client, &second)];
    let half_open = HalfOpen::connect(&lab.client, 81, 10);
    let both = [
        DEFAULTS.to_owned(),
        frontend("web", &[":80", ":81"], "c", "origin"),
        backend("origin", "", SERVER4),
    ];
    let mut c = successor(&lab, "c", &both.concat());
    let receipt = receipt(&mut c);
    assert_eq!(receipt["listeners"]["shared"].as_array().unwrap().len(), 2, "{receipt}");
    for old in [&mut a, &mut b] {
        assert_ends_with_0(old);
    }
    assert_all_answered(half_open);
    for load in loads {
        assert_none_lost(load);
    }
    c.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn while_a_successor_starts_the_old_one_holds_still_and_a_killed_one_ends_that() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let (lab, mut old, before) = start();
        let load = Load::start(&lab.client, &web());
        let mut new = Turnstile::new(&lab).waiting(&lab, "new");
        let refused = Finished::from(old.command(&["reload"]));
        refused.assert_code(1).assert_says(&["is taking over"]);
        // A crash is mended all the same, with what the old one keeps.
        let generation = old.current();
        process::kill(old.process_of(&generation), Signal::SIGKILL);
        old.await_successor(&generation);
        new.signal(signal);
        let status = new.wait(LONG);
        assert_eq!(status.code(), (signal == Signal::SIGTERM).then_some(0), "{status}");
        old.log.await_line("it did not take over; serving on");
        old.reload();
        let failed = load.finish().failed;
        let in_the_crash =
            |outcome: &Outcome| matches!(outcome, Outcome::Reset | Outcome::CutShort(_));
        assert!(failed.iter().all(in_the_crash), "{failed:?}");
        drop(new);
        old.stop();
        if signal == Signal::SIGTERM {
            lab.balancer.state().assert_same_as(&before);
        }
    }
}

/// It serves already, and has not told the old one to let go.
#[test]
fn a_successor_killed_between_ready_and_relieving_leaves_the_old_one_serving() {
    let (lab, mut old, _) = start();
    let load = Load::start(&lab.client, &web());
    // They keep the guard up: what is half open at the old one's socket is to settle first.
    let half_open = HalfOpen::connect(&lab.client, 80, 10);
    let mut new = successor(&lab, "new", &proxy(":80 interface b0", "new"));
    new.log.await_line("guard raised");
    // Whom the new one has accepted dies with it; now nobody comes to it any more.
    let busy = "ss -Htn state established sport = :80";
    until(SHORT, "nobody is with the new one", || {
        lab.balancer.namespace.run(busy).is_empty().then_some(())
    });
    new.signal(Signal::SIGKILL);
    assert_eq!(new.log.count("told to let go"), 0, "{}", new.log.text());
    new.wait(LONG);
    assert_all_answered(half_open);
    old.log.await_line("it did not take over; serving on");
    let answered = load.answered();
    until(LONG, "the old one answers", || (load.answered() > answered + 20).then_some(()));
    assert_none_lost(load);
    assert_eq!(via(&lab), "old");
    old.reload();
    // What the killed one had on the host, the next start finds.
    let mut next = successor(&lab, "next", &proxy(":80", "next"));
    receipt(&mut next);
    next.log.await_line("removed what a dead instance had left on the host");
    assert_ends_with_0(&mut old);
    next.stop();
}

#[test]
fn a_predecessor_in_the_middle_of_a_reload_ends_that_first() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let turnstile = Turnstile::new(&lab);
    let mut old = turnstile.within(&lab, "old", ":80").start().serving();
    let load = Load::start(&lab.client, &web());
    let half_open = HalfOpen::connect(&lab.client, 80, 10);
    old.signal(Signal::SIGHUP);
    old.await_status("it reloads", |status| status["state"] == "reloading");
    let mut new = successor(&lab, "new", &proxy(":80", "new"));
    old.log.await_line("it wants to take over");
    assert_eq!(new.log.count("listeners borrowed"), 0, "{}", new.log.text());
    turnstile.open();
    let receipt = receipt(&mut new);
    assert_eq!(receipt["strategy"], "shared", "{receipt}");
    assert!(old.log.text().contains("reload taken"), "{}", old.log.text());
    assert_all_answered(half_open);
    assert_ends_with_0(&mut old);
    assert_none_lost(load);
    assert_eq!(via(&lab), "new");
    new.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_predecessor_whose_haproxy_dies_again_and_again_is_relieved_of_who_waits() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let turnstile = Turnstile::new(&lab);
    let mut old = turnstile.within(&lab, "old", ":80").start().serving();
    turnstile.kill();
    process::kill(old.process_of(&old.current()), Signal::SIGKILL);
    // It died once, and does not start again.
    old.log.await_line("in_a_row=3");
    // From now on everybody waits in the kernel's queue, and nobody is refused.
    let load = Load::start(&lab.client, &web());
    let half_open = HalfOpen::connect(&lab.client, 80, 10);
    let mut new = successor(&lab, "new", &proxy(":80", "new"));
    let receipt = receipt(&mut new);
    assert_eq!(receipt["predecessors"][0]["rung"], "hapilot", "{receipt}");
    assert_eq!(receipt["strategy"], "shared", "{receipt}");
    assert_all_answered(half_open);
    assert_ends_with_0(&mut old);
    assert_none_lost(load);
    assert_eq!(via(&lab), "new");
    new.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_predecessor_that_is_killed_meanwhile_loses_its_sessions_and_refuses_nobody() {
    let (lab, mut old, _) = start();
    let turnstile = Turnstile::new(&lab);
    let mut new = turnstile.waiting(&lab, "new");
    old.signal(Signal::SIGKILL);
    old.wait(LONG);
    let client = lab.client.clone();
    let waiting = std::thread::spawn(move || get(&client, &web(), "/"));
    turnstile.open();
    let receipt = receipt(&mut new);
    assert!(waiting.join().unwrap().is_answered(), "{receipt}");
    assert_eq!(receipt["predecessors"][0]["state"], "gone", "{receipt}");
    assert!(receipt["doubts"].to_string().contains("died"), "{receipt}");
    assert_eq!(via(&lab), "new");
    new.stop();
}

#[test]
fn of_two_successors_one_is_told_no_and_one_that_can_waits_for_its_turn() {
    let (lab, mut old, before) = start();
    let load = Load::start(&lab.client, &web());
    let turnstile = Turnstile::new(&lab);
    let mut first = turnstile.waiting(&lab, "first");
    // It means the old one only, and that one is promised to another.
    let config = lab.balancer.write("second.cfg", &proxy(":80", "second"));
    let spec = lab.balancer.container("second").config(&config).pid(Pid::OfTheHost);
    let told_no = spec.env("HAPROXY_PIDS", &old.pid().to_string()).finish();
    told_no.assert_code(69).assert_says(&["is taking over from it already"]);
    // It means everybody: it waits for the first, and relieves the old one should that not come to it.
    let mut third = successor(&lab, "third", &proxy(":80", "third"));
    third.log.await_line("to be relieved");
    first.signal(Signal::SIGKILL);
    first.wait(LONG);
    receipt(&mut third);
    assert_ends_with_0(&mut old);
    assert_eq!(via(&lab), "third");
    assert_none_lost(load);
    drop(first);
    third.stop();
    drop(before);
}

#[test]
fn a_paused_and_a_hanging_predecessor_are_relieved_too() {
    let (lab, mut old, _) = start();
    old.signal(Signal::SIGTTOU);
    old.await_status("it is paused", |status| status["paused"] == true);
    let config = proxy(":80", "new");
    let new_config = lab.balancer.write("new.cfg", &config);
    let spec = lab.balancer.container("new").config(&new_config);
    let spec = spec.envs(&[("HAPROXY_PIDS", "auto"), ("HAPROXY_DRAIN_DEADLINE", "1s")]);
    let mut new = spec.start();
    assert_eq!(receipt(&mut new)["predecessors"][0]["rung"], "separate");
    assert_ends_with_0(&mut old);
    assert_eq!(via(&lab), "new");

    let stuck = new.process_of(&new.current());
    process::freeze(stuck);
    let mut third = successor(&lab, "third", &proxy(":80", "third"));
    receipt(&mut third);
    assert_eq!(via(&lab), "third");
    assert_ends_with_0(&mut new);
    third.stop();
}

/// It would start its HAProxy again, and both would serve.
#[test]
fn the_haproxy_of_one_that_does_not_answer_is_left_to_it() {
    let (lab, mut old, _) = start();
    let pid = old.process_of(&old.current());
    old.signal(Signal::SIGSTOP);
    let config = lab.balancer.write("new.cfg", &proxy(":81", "new"));
    for (name, pids) in [("all", "auto"), ("one", &pid.to_string())] {
        let spec = lab.balancer.container(name).config(&config).pid(Pid::OfTheHost);
        let mut new = spec.env("HAPROXY_PIDS", pids).start().serving();
        let text = new.log.text();
        assert!(text.contains("no answer within 5s"), "{text}");
        assert_eq!(text.contains("belongs to a hapilot that is not relieved"), name == "one");
        assert!(new.status()["last_takeover"].is_null(), "{text}");
        new.stop();
    }
    old.signal(Signal::SIGCONT);
    assert_eq!(via(&lab), "old");
    assert_eq!(old.status()["crashes"], 0);
    old.stop();
}

#[test]
fn one_that_was_relieved_stays_away_until_its_successor_is_gone() {
    let (lab, mut a, before) = start();
    let load = Load::start(&lab.client, &web());
    let mut b = successor(&lab, "b", &proxy(":80", "b"));
    receipt(&mut b);
    assert_ends_with_0(&mut a);
    let mut c = successor(&lab, "c", &proxy(":80", "c"));
    receipt(&mut c);
    assert_ends_with_0(&mut b);
    let during = lab.balancer.state();
    // As a restart policy would start them, the first one with and without asking for anybody.
    let config = lab.balancer.path("haproxy.cfg");
    for (name, pids) in [("hapilot", "auto"), ("b", "auto"), ("hapilot", "")] {
        let spec = lab.balancer.container(name).config(&config).env("HAPROXY_PIDS", pids);
        spec.finish().assert_code(0).assert_says(&["was relieved by hapilot"]);
    }
    lab.balancer.state().assert_same_as(&during);
    assert_eq!(via(&lab), "c");
    assert_none_lost(load);
    c.stop();
    let mut a = lab.balancer.container("hapilot").config(&config).start().serving();
    assert_eq!(via(&lab), "old");
    a.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn who_relieved_it_may_be_started_again_and_it_stays_away_still() {
    let (lab, mut a, before) = start();
    let mut b = successor(&lab, "b", &proxy(":80", "b"));
    receipt(&mut b);
    assert_ends_with_0(&mut a);
    b.stop();
    let mut b = successor(&lab, "b", &proxy(":80", "b")).serving();
    b.log.await_line("nobody is there to be relieved");
    let config = lab.balancer.path("haproxy.cfg");
    let again = || lab.balancer.container("hapilot").config(&config).env("HAPROXY_PIDS", "auto");
    again().finish().assert_code(0).assert_says(&["was relieved by hapilot"]);
    // Also for whoever comes after: it stands for both.
    let mut c = successor(&lab, "c", &proxy(":80", "c"));
    receipt(&mut c);
    assert_ends_with_0(&mut b);
    again().finish().assert_code(0).assert_says(&["was relieved by hapilot"]);
    assert_eq!(via(&lab), "c");
    c.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn two_that_start_at_once_come_to_rest_with_one_serving() {
    let (lab, mut old, before) = start();
    let load = Load::start(&lab.client, &web());
    let mut both = ["x", "y"].map(|name| successor(&lab, name, &proxy(":80", name)));
    assert_ends_with_0(&mut old);
    let ended =
        lab::until(LONG, "one of both ends", || both.iter_mut().position(|one| !one.is_running()));
    let [mut x, mut y] = both;
    let (ended, stays) = if ended == 0 { (&mut x, &mut y) } else { (&mut y, &mut x) };
    assert_ends_with_0(ended);
    stays.await_serving();
    assert!(stays.is_running());
    assert_none_lost(load);
    stays.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn at_the_door_strangers_are_told_why_not() {
    let (lab, mut old, _) = start();
    let name = format!("hapilot/{}", old.status()["instance"].as_str().unwrap());
    // What is answered to so many lines, or until it hangs up.
    let talk = |lines: &[&str]| {
        lab.balancer.namespace.enter(|| {
            let address = SocketAddr::from_abstract_name(&name).unwrap();
            let mut stream = BufReader::new(UnixStream::connect_addr(&address).unwrap());
            stream.get_ref().set_read_timeout(Some(SHORT)).unwrap();
            introduce(&mut stream);
            let mut answers = String::new();
            for line in lines {
                writeln!(stream.get_mut(), "{line}").unwrap();
                // Hung up on, with or without a reset.
                let _ = stream.read_line(&mut answers);
            }
            answers
        })
    };
    let hello = |protocol: u32| {
        format!(r#"{{"say":"hello","protocol":{protocol},"instance":"0a","version":"9","more":1}}"#)
    };
    let (reserve, retire) = (r#"{"say":"reserve"}"#, r#"{"say":"retire"}"#);
    let answer = talk(&[&hello(99), reserve]);
    assert!(answer.contains("protocol 99 is spoken there and protocol 2 here"), "{answer}");
    let answer = talk(&[&hello(2), retire]);
    assert_eq!(answer.lines().count(), 1, "only the hello: {answer}");
    assert_eq!(talk(&["GET / HTTP/1.1"]), "");
    assert!(talk(&["_runtime\nshow info"]).contains("Name: HAProxy"));
    let answer = talk(&[&hello(2), reserve]);
    assert!(answer.contains(r#"{"answer":"reserved","paused":false}"#), "{answer}");
    assert_eq!(via(&lab), "old");
    old.reload();
    old.stop();
}
