//! Promise: what was set by hand and what stick tables know survives a reload and a HAProxy that
//! is killed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::time::Duration;

use lab::haproxy_cfg::proxy;
use lab::versions::{end, via};
use lab::{Generation, Instance, LONG, Lab, SHORT, until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Two servers, and a table of each type that HAProxy lets us set.
fn config() -> String {
    format!(
        "{}  server s2 10.2.0.2:8000 weight 100\n\
         backend addresses\n  stick-table type ip size 1k expire 5m \
         store server_id,gpt0,gpc0,gpc0_rate(5m),conn_cnt,conn_cur,http_req_rate(5m),bytes_in_cnt\n\
         backend addresses6\n  stick-table type ipv6 size 1k expire 5m store conn_cnt\n\
         backend words\n  stick-table type string len 64 size 1k expire 5m store gpc(2),gpt(1)\n\
         backend numbers\n  stick-table type integer size 1k store conn_cnt\n\
         backend brief\n  stick-table type ip size 1k expire 3s store conn_cnt\n\
         backend bytes\n  stick-table type binary len 8 size 1k expire 5m store conn_cnt\n",
        // There shall be nothing to be warned of.
        proxy(":80", "v1").replace("mode http\n", "mode http\n  option idle-close-on-response\n")
    )
}

fn kill(hapilot: &Instance, generation: &Generation) {
    lab::process::kill(hapilot.process_of(generation), Signal::SIGKILL);
}

fn await_saved(hapilot: &mut Instance, servers: u64, entries: u64) -> Value {
    hapilot.await_status("it is saved", |status| {
        status["saved"]["servers"] == servers && status["saved"]["entries"] == entries
    })
}

fn set_by_hand(hapilot: &Instance, on: &Generation) {
    for command in [
        "set server origin/s1 state drain",
        "set weight origin/s2 42%",
        "set table addresses key 192.0.2.1 data.server_id 2 data.gpt0 3 data.gpc0 7 \
         data.gpc0_rate 11 data.conn_cnt 5 data.conn_cur 4 data.http_req_rate 9 \
         data.bytes_in_cnt 9999999999",
        "set table addresses6 key 2001:db8::1 data.conn_cnt 6",
        // blanks, a semicolon, quotes, a backslash, and what is no ASCII
        "set table words key a\\ b\\;c\\=d\\\\e\"f<<ä data.gpc 8 data.gpt 2",
        "set table numbers key 77 data.conn_cnt 4",
    ] {
        assert_eq!(hapilot.runtime(on, command).trim(), "", "{command}");
    }
}

/// What was set above, and not the connections that died.
fn assert_known(hapilot: &Instance, on: &Generation) {
    let weight = hapilot.runtime(on, "get weight origin/s2");
    assert!(weight.starts_with("42 "), "{weight}");
    let servers = hapilot.runtime(on, "show stat");
    let drained = servers.lines().find(|line| line.starts_with("origin,s1,")).unwrap();
    assert!(drained.contains("DRAIN"), "{drained}");
    for (table, parts) in [
        (
            "addresses",
            &[
                "key=192.0.2.1 ",
                " server_id=2 ",
                " gpt0=3 ",
                " gpc0=7 ",
                " gpc0_rate(300000)=11 ",
                " conn_cnt=5 ",
                " conn_cur=0 ",
                " http_req_rate(300000)=9 ",
                " bytes_in_cnt=9999999999\n",
            ][..],
        ),
        ("addresses6", &["key=2001:db8::1 ", " conn_cnt=6\n"]),
        ("words", &["key=a\\ b;c\\=d\\\\e\"f<<\\xC3\\xA4 ", " gpt0=2 ", " gpc0=8 "]),
        ("numbers", &["key=77 ", " conn_cnt=4\n"]),
    ] {
        let shown = hapilot.runtime(on, &format!("show table {table}"));
        for part in parts {
            assert!(shown.contains(part), "{part:?} is not in {shown}");
        }
    }
}

#[test]
fn what_was_set_by_hand_and_stick_entries_are_there_after_a_kill_and_after_another() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = lab.balancer.serve(&config());
    let first = hapilot.current();
    set_by_hand(&hapilot, &first);
    await_saved(&mut hapilot, 2, 4);
    kill(&hapilot, &first);
    let second = hapilot.await_successor(&first);
    hapilot.log.await_line("put back what the dead HAProxy had");
    assert_known(&hapilot, &second);
    assert_eq!(hapilot.log.count("not put back"), 0);
    // It is killed before or after its state is saved: there is no moment without one.
    kill(&hapilot, &second);
    let third = hapilot.await_successor(&second);
    until(SHORT, "put back once more", || {
        (hapilot.log.count("put back what the dead HAProxy had") == 2).then_some(())
    });
    assert_known(&hapilot, &third);
    assert_eq!(via(&lab), "v1");
    end(&lab, hapilot, &before);
}

/// From one container to the next it is the same as in a reload.
#[test]
fn what_was_set_by_hand_and_stick_entries_are_there_after_a_take_over() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut old = lab.balancer.serve(&config());
    set_by_hand(&old, &old.current());
    let file = lab.balancer.path("haproxy.cfg");
    let spec = lab.balancer.container("new").config(&file).env("HAPROXY_PIDS", "auto");
    let mut new = spec.start();
    let status = new
        .await_status("a take-over is written down", |status| !status["last_takeover"].is_null());
    let receipt = &status["last_takeover"];
    assert_eq!(receipt["warnings"], serde_json::json!([]), "{receipt}");
    assert_known(&new, &new.current());
    assert_eq!(old.wait(LONG).code(), Some(0), "{}", old.log.text());
    end(&lab, new, &before);
}

/// No `peers` section has these tables.
#[test]
fn what_was_set_by_hand_and_stick_entries_are_there_after_a_reload_and_counted_once() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = lab.balancer.serve(&config());
    let first = hapilot.current();
    set_by_hand(&hapilot, &first);
    hapilot.reload();
    let second = hapilot.await_successor(&first);
    assert_known(&hapilot, &second);
    hapilot.reload();
    let third = hapilot.await_successor(&second);
    assert_known(&hapilot, &third);
    let receipt =
        hapilot.await_status("the receipt", |status| {
            status["last_reload"]["to_generation"] == third.id
        })["last_reload"]
            .clone();
    assert_eq!(receipt["stick_entries"], 4, "{receipt}");
    assert_eq!(receipt["warnings"], serde_json::json!([]), "{receipt}");
    end(&lab, hapilot, &before);
}

/// After some quiet the next look is seconds away.
#[test]
fn what_is_set_through_our_door_is_saved_at_once() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = lab.balancer.serve(&config());
    let first = hapilot.current();
    let quiet = |saved: &Value, age| {
        let at = humantime::parse_rfc3339(saved["at"].as_str()?).ok()?;
        (at.elapsed().ok()? > Duration::from_secs(age)).then_some(())
    };
    until(LONG, "it is looked at seldom", || quiet(&hapilot.status()["saved"], 3));
    let before_it = hapilot.status()["saved"]["at"].clone();
    let output = hapilot.command(&["runtime", "set server origin/s1 state maint"]);
    assert!(output.status.success(), "{output:?}");
    let status = hapilot.await_status("it is saved", |status| status["saved"]["servers"] == 1);
    let at = |at: &Value| humantime::parse_rfc3339(at.as_str().unwrap()).unwrap();
    let after = at(&status["saved"]["at"]).duration_since(at(&before_it)).unwrap();
    // By itself it would have been looked at after 1, 2, 4, ... seconds.
    assert!(after < Duration::from_secs(4), "only after {after:?}");
    kill(&hapilot, &first);
    let second = hapilot.await_successor(&first);
    hapilot.log.await_line("put back what the dead HAProxy had");
    let servers = hapilot.runtime(&second, "show stat");
    let server = servers.lines().find(|line| line.starts_with("origin,s1,")).unwrap();
    assert!(server.contains("MAINT"), "{server}");
    end(&lab, hapilot, &before);
}

#[test]
fn what_was_set_survives_a_kill_beside_a_broken_configuration() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = lab.balancer.serve(&config());
    let first = hapilot.current();
    set_by_hand(&hapilot, &first);
    await_saved(&mut hapilot, 2, 4);
    lab.balancer.write("haproxy.cfg", lab::haproxy_cfg::BROKEN);
    kill(&hapilot, &first);
    let second = hapilot.await_successor(&first);
    hapilot.log.await_line("last good one");
    hapilot.log.await_line("put back what the dead HAProxy had");
    assert_known(&hapilot, &second);
    end(&lab, hapilot, &before);
}

#[test]
fn what_expired_stays_away_and_a_table_that_is_not_on_disk_any_more_goes() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = lab.balancer.serve(&config().replace("numbers", "other"));
    let first = hapilot.current();
    assert_eq!(hapilot.runtime(&first, "set table other key 77 data.conn_cnt 4").trim(), "");
    assert_eq!(hapilot.runtime(&first, "set table words key x data.gpc 1").trim(), "");
    // Through our door, so that it is saved while it lives, however slow this machine is.
    let brief = "set table brief key 192.0.2.1 data.conn_cnt 1";
    assert!(hapilot.command(&["runtime", brief]).status.success());
    await_saved(&mut hapilot, 0, 3);
    // Its life is over before the next one comes.
    let frozen = hapilot.process_of(&first);
    lab::process::freeze(frozen);
    let saved = hapilot.status()["saved"].clone();
    let at = humantime::parse_rfc3339(saved["at"].as_str().unwrap()).unwrap();
    until(SHORT, "three seconds go by", || {
        at.elapsed().unwrap().ge(&Duration::from_secs(3)).then_some(())
    });
    assert_eq!(hapilot.status()["saved"], saved);
    lab.balancer.write("haproxy.cfg", &config());
    kill(&hapilot, &first);
    // The table `other` goes with the reload to what is on disk, as it is meant to.
    hapilot.log.await_line("reload taken");
    hapilot.await_successor(&first);
    let second = hapilot.current();
    let shown = |table: &str| hapilot.runtime(&second, &format!("show table {table}"));
    assert!(shown("words").contains("key=x "), "{}", shown("words"));
    assert!(!shown("brief").contains("key="), "{}", shown("brief"));
    end(&lab, hapilot, &before);
}

/// Two that teach each other; `name` is who reads it.
fn peer(name: &str, bind: &str) -> String {
    format!(
        "global\n  localpeer {name}\n{}peers all\n  peer one 127.0.0.1:10001\n  \
         peer two 127.0.0.1:10002\n\
         backend shared\n  stick-table type ip size 1k expire 5m store conn_cnt peers all\n",
        proxy(bind, name)
    )
}

#[test]
fn what_a_living_peer_knows_better_is_not_overwritten() {
    const KNOWN: &str = "192.0.2.1";
    const FORGOTTEN: &str = "192.0.2.2";
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut one = lab.balancer.serve(&peer("one", ":80"));
    let config = lab.balancer.write("two.cfg", &peer("two", ":81"));
    let mut two = lab.balancer.container("two").config(&config).start().serving();
    let (first, other) = (one.current(), two.current());
    let set = |on: &Instance, of: &Generation, key: &str, count: u32| {
        let command = format!("set table shared key {key} data.conn_cnt {count}");
        assert_eq!(on.runtime(of, &command).trim(), "");
    };
    let knows = |on: &Instance, of: &Generation, key: &str, count: u32| {
        let shown = on.runtime(of, "show table shared");
        let mut entries = shown.lines().filter(|line| line.contains(&format!("key={key} ")));
        entries.any(|line| line.ends_with(&format!(" conn_cnt={count}")))
    };
    set(&one, &first, KNOWN, 5);
    set(&one, &first, FORGOTTEN, 6);
    await_saved(&mut one, 0, 2);
    until(LONG, "it is taught", || knows(&two, &other, FORGOTTEN, 6).then_some(()));
    lab::process::freeze(one.process_of(&first));
    set(&two, &other, KNOWN, 50);
    two.runtime(&other, &format!("clear table shared key {FORGOTTEN}"));
    kill(&one, &first);
    let second = one.await_successor(&first);
    one.log.await_line("put back what the dead HAProxy had");
    assert!(knows(&one, &second, KNOWN, 50), "{}", one.runtime(&second, "show table shared"));
    assert!(knows(&one, &second, FORGOTTEN, 6), "{}", one.runtime(&second, "show table shared"));
    assert!(knows(&two, &other, KNOWN, 50));
    two.stop();
    end(&lab, one, &before);
}

fn counts(hapilot: &Instance, on: &Generation, table: &str, count: u32) -> Option<()> {
    let shown = hapilot.runtime(on, &format!("show table {table}"));
    shown.contains(&format!(" conn_cnt={count}\n")).then_some(())
}

/// After a kill: the peer that is waited for never comes, so half of it is put back.
fn half_put_back(lab: &Lab) -> (Instance, Generation) {
    let lone = "backend lone\n  stick-table type ip size 1k expire 5m store conn_cnt\n";
    let mut hapilot = lab.balancer.serve(&format!("{}{lone}", peer("one", ":80")));
    let first = hapilot.current();
    for command in [
        "set server origin/s1 state drain",
        "set table lone key 192.0.2.1 data.conn_cnt 5",
        "set table shared key 192.0.2.1 data.conn_cnt 6",
    ] {
        assert_eq!(hapilot.runtime(&first, command).trim(), "", "{command}");
    }
    await_saved(&mut hapilot, 1, 2);
    kill(&hapilot, &first);
    let second = hapilot.await_successor(&first);
    until(LONG, "put back", || counts(&hapilot, &second, "lone", 5));
    (hapilot, second)
}

/// What was put back is set anew meanwhile.
#[test]
fn what_is_being_put_back_when_a_reload_comes_is_counted_once() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let (mut hapilot, second) = half_put_back(&lab);
    assert_eq!(hapilot.runtime(&second, "set server origin/s1 state ready").trim(), "");
    assert_eq!(hapilot.log.count("put back what the dead HAProxy had"), 0, "it still waits");
    hapilot.reload();
    let third = hapilot.await_successor(&second);
    until(LONG, "the rest is put back", || counts(&hapilot, &third, "shared", 6));
    await_saved(&mut hapilot, 0, 2);
    counts(&hapilot, &third, "lone", 5).expect("counted once");
    end(&lab, hapilot, &before);
}

/// It answers nobody for longer than it is waited for, in the middle of it.
#[test]
fn what_breaks_off_half_way_is_not_taken_for_all_that_there_was() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let (mut hapilot, second) = half_put_back(&lab);
    // It still waits for the peer, and has not got the other table.
    let process = hapilot.process_of(&second);
    lab::process::freeze(process);
    hapilot.log.await_line("broke off");
    assert_eq!(hapilot.status()["saved"]["entries"], 2, "what is missing is not forgotten");
    lab::process::kill(process, Signal::SIGCONT);
    until(LONG, "the rest is put back", || counts(&hapilot, &second, "shared", 6));
    counts(&hapilot, &second, "lone", 5).expect("counted once");
    hapilot.log.await_line("put back what the dead HAProxy had");
    await_saved(&mut hapilot, 1, 2);
    end(&lab, hapilot, &before);
}
