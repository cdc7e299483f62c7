//! Promise: a reload costs nobody a connection, and one that is refused costs nothing at all.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::time::{Duration, Instant};

use lab::client::get_within;
use lab::haproxy_cfg::{BROKEN, BROKEN_WORD, proxy};
use lab::network::{BALANCER4, CLIENT4};
use lab::versions::{await_gone, configure, end, via, web};
use lab::{
    Download, Finished, Generation, HalfOpen, HostState, Instance, LONG, Lab, Load, SHORT, until,
};
use nix::sys::signal::Signal;

const LET_GO_LIMIT: Duration = Duration::from_secs(2);

fn start() -> (Lab, Instance, HostState) {
    Lab::serving(&proxy(":80", "v1"), &[])
}

fn break_configuration(lab: &Lab) {
    lab.balancer.write("haproxy.cfg", BROKEN);
}

#[test]
fn reloads_under_steady_connections_refuse_and_reset_none() {
    let (lab, mut hapilot, before) = start();
    let load = Load::start(&lab.client, &web());
    for round in 0..10 {
        let old = hapilot.current();
        configure(&lab, &format!("v{round}"));
        if round % 2 == 0 {
            hapilot.reload();
        } else {
            hapilot.signal(if round % 4 == 1 { Signal::SIGHUP } else { Signal::SIGUSR2 });
        }
        hapilot.await_successor(&old);
    }
    until(SHORT, "the last configuration answers", || (via(&lab) == "v9").then_some(()));
    let tally = load.finish();
    assert_eq!(tally.failed, [], "{} were answered", tally.answered);
    assert!(tally.answered > 200, "too few to prove anything: {}", tally.answered);
    assert!(tally.slowest < Duration::from_millis(900), "one took {:?}", tally.slowest);
    end(&lab, hapilot, &before);
}

#[test]
fn connections_in_the_middle_of_their_handshake_survive_a_reload() {
    let (lab, mut hapilot, before) = start();
    let old = hapilot.current();
    let connections = HalfOpen::connect(&lab.client, 80, 20);
    hapilot.reload();
    hapilot.await_successor(&old);
    await_gone(&mut hapilot, &old, LONG);
    for outcome in connections.finish() {
        assert_eq!(outcome.body(), "10.2.0.1");
    }
    end(&lab, hapilot, &before);
}

#[test]
fn a_broken_configuration_is_refused_in_haproxys_words_and_the_next_good_one_is_taken() {
    let (lab, mut hapilot, before) = start();
    let old = hapilot.current();
    let load = Load::start(&lab.client, &web());
    break_configuration(&lab);
    let output = hapilot.command(&["reload"]);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(!output.status.success(), "the exit status says that it was not taken: {text}");
    assert!(text.contains(BROKEN_WORD), "HAProxy's own words are missing: {text}");
    assert!(hapilot.log.count(BROKEN_WORD) >= 1, "HAProxy's words belong into the log too");
    let now = hapilot.current();
    assert_eq!((now.id, now.pid), (old.id, old.pid), "the old generation serves on");
    assert_eq!(via(&lab), "v1");

    configure(&lab, "v2");
    hapilot.reload();
    hapilot.await_successor(&old);
    assert_eq!(via(&lab), "v2");
    let tally = load.finish();
    assert_eq!(tally.failed, [], "{} were answered", tally.answered);
    end(&lab, hapilot, &before);
}

#[test]
fn when_a_reload_is_called_done_no_new_connection_meets_the_old_one() {
    let (lab, mut hapilot, before) = start();
    for round in 0..20 {
        let version = format!("round{round}");
        configure(&lab, &version);
        hapilot.reload();
        assert_eq!(via(&lab), version);
    }
    // For one that is stuck nobody waits for ever.
    hapilot.await_serving();
    let old = hapilot.current();
    lab::process::freeze(hapilot.process_of(&old));
    configure(&lab, "last");
    let begun = Instant::now();
    hapilot.reload();
    assert!(begun.elapsed() >= LET_GO_LIMIT, "{:?}", begun.elapsed());
    assert_eq!(via(&lab), "last");
    lab::process::kill(hapilot.process_of(&old), Signal::SIGCONT);
    end(&lab, hapilot, &before);
}

#[test]
fn a_signal_with_a_broken_configuration_is_refused_as_well() {
    let (lab, mut hapilot, before) = start();
    break_configuration(&lab);
    hapilot.signal(Signal::SIGHUP);
    hapilot.log.await_line(BROKEN_WORD);
    hapilot.await_serving();
    assert_eq!(via(&lab), "v1");
    end(&lab, hapilot, &before);
}

#[test]
fn a_configuration_that_listens_on_nothing_is_refused() {
    let (lab, hapilot, before) = start();
    let old = hapilot.current();
    lab.balancer.write("haproxy.cfg", "");
    let output = hapilot.command(&["reload"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("listen on nothing"), "{text}");
    assert_eq!(hapilot.current().id, old.id);
    assert_eq!(via(&lab), "v1");
    end(&lab, hapilot, &before);
}

#[test]
fn a_configuration_that_only_a_start_finds_wrong_is_refused() {
    let (lab, hapilot, before) = start();
    let old = hapilot.current();
    let taken = format!("{}frontend taken\n  bind {BALANCER4}:99\n", proxy(":80", "v2"));
    lab.balancer.write("haproxy.cfg", &taken);
    let _holder =
        lab.balancer.namespace.enter(|| std::net::TcpListener::bind((BALANCER4, 99)).unwrap());
    let output = hapilot.command(&["reload"]);
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(hapilot.current().id, old.id);
    assert_eq!(via(&lab), "v1");
    end(&lab, hapilot, &before);
}

#[test]
fn a_storm_of_signals_is_few_reloads_and_ends_with_the_last_configuration() {
    const SIGNALS: u64 = 200;
    let (lab, mut hapilot, before) = start();
    let first = hapilot.current();
    for round in 1..=SIGNALS {
        configure(&lab, &format!("v{round}"));
        hapilot.signal(Signal::SIGHUP);
    }
    let last = format!("v{SIGNALS}");
    until(LONG, "the last configuration answers", || (via(&lab) == last).then_some(()));
    hapilot.await_status("serving, with nothing left to do", |status| {
        status["state"] == "serving" && status["generations"].as_array().unwrap().len() == 1
    });
    let reloads = hapilot.current().id - first.id;
    assert!((1..SIGNALS / 2).contains(&reloads), "{reloads} reloads for {SIGNALS} signals");
    end(&lab, hapilot, &before);
}

/// Two servers, a table of clients that follows through peers, and the state of servers on file.
fn stateful(via: &str) -> String {
    let origin = "origin\n  stick-table type ip size 1k expire 5m store conn_cnt peers followers\n  \
        http-request track-sc0 src";
    let config = proxy(":80", via).replace("\nbackend origin", &format!("\nbackend {origin}"));
    let config = config.replace("defaults\n", "defaults\n  load-server-state-from-file global\n");
    format!(
        "global\n  localpeer lab\n{config}  server s2 10.2.0.2:8000 weight 100\n\
         peers followers\n  peer lab 127.0.0.1:10000\n"
    )
}

#[test]
fn stick_tables_and_server_states_set_by_hand_follow_through_a_reload() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = lab.balancer.serve(&stateful("v1"));
    let old = hapilot.current();
    for _ in 0..3 {
        assert_eq!(via(&lab), "v1");
    }
    let entry = |hapilot: &Instance, of: &Generation| hapilot.runtime(of, "show table origin");
    assert!(entry(&hapilot, &old).contains("conn_cnt=3"), "{}", entry(&hapilot, &old));
    hapilot.runtime(&old, "set server origin/s1 state drain");
    hapilot.runtime(&old, "set weight origin/s2 42%");
    let weight = hapilot.runtime(&old, "get weight origin/s2");
    assert!(weight.starts_with("42 "), "{weight}");

    lab.balancer.write("haproxy.cfg", &stateful("v2"));
    hapilot.reload();
    let new = hapilot.await_successor(&old);
    // no client came meanwhile: what the new generation knows, it knows from the old one
    let followed =
        |table: &String| table.contains(&format!("key={CLIENT4} ")) && table.contains("conn_cnt=3");
    until(SHORT, &format!("not {}, all of it", entry(&hapilot, &new)), || {
        Some(entry(&hapilot, &new)).filter(followed)
    });
    let weight = hapilot.runtime(&new, "get weight origin/s2");
    assert!(weight.starts_with("42 "), "{weight}");
    let servers = hapilot.runtime(&new, "show stat");
    let drained = servers.lines().find(|line| line.starts_with("origin,s1,")).unwrap();
    assert!(drained.contains("DRAIN"), "{drained}");
    assert_eq!(via(&lab), "v2");
    end(&lab, hapilot, &before);
}

#[test]
fn what_was_set_by_hand_follows_without_a_word_about_it_in_the_configuration() {
    let (lab, mut hapilot, before) = start();
    let old = hapilot.current();
    hapilot.runtime(&old, "set weight origin/s1 42%");
    hapilot.runtime(&old, "set server origin/s1 state drain");
    configure(&lab, "v2");
    hapilot.reload();
    let new = hapilot.await_successor(&old);
    let servers = hapilot.runtime(&new, "show stat");
    let server = servers.lines().find(|line| line.starts_with("origin,s1,")).unwrap();
    assert!(server.contains("DRAIN"), "{server}");
    let status = hapilot.status();
    let carried = status["last_reload"]["carried_over"].as_array().unwrap();
    assert!(carried.contains(&"set server origin/s1 state drain".into()), "{carried:?}");
    end(&lab, hapilot, &before);
}

#[test]
fn a_pause_keeps_new_connections_out_and_a_resume_lets_them_in_again_also_after_a_reload() {
    let (lab, mut hapilot, before) = start();
    let quick = Duration::from_millis(400);
    let served = || get_within(&lab.client, &web(), "/", quick).is_answered();
    for round in 0..2 {
        let mut download = Download::begin(&lab.client, &web(), "/slow");
        hapilot.signal(Signal::SIGTTOU);
        until(SHORT, "the pause", || (!served()).then_some(()));
        assert!(!served(), "paused it stays");
        assert!(download.is_open(), "a pause ends no session");
        hapilot.signal(Signal::SIGTTIN);
        until(SHORT, "the service", || served().then_some(()));
        for _ in 0..20 {
            assert!(served(), "round {round}: every new connection is served again");
        }
        let old = hapilot.current();
        hapilot.reload();
        hapilot.await_successor(&old);
        assert!(served());
    }
    lab.origin.open_gate();
    end(&lab, hapilot, &before);
}

#[test]
fn a_reload_leaves_a_receipt_that_tells_what_happened() {
    let (lab, mut hapilot, before) = start();
    let old = hapilot.current();
    hapilot.reload();
    let new = hapilot.await_successor(&old);
    let taken = hapilot.status()["last_reload"].to_string();
    for number in [old.id.to_string(), new.id.to_string(), old.pid.to_string(), new.pid.to_string()]
    {
        assert!(taken.contains(&number), "{number} is missing in {taken}");
    }
    break_configuration(&lab);
    assert!(!hapilot.command(&["reload"]).status.success());
    let refused = hapilot.status()["last_reload"].to_string();
    assert_ne!(taken, refused);
    assert!(refused.contains(BROKEN_WORD), "HAProxy's words are missing in {refused}");
    let status = hapilot.status();
    let verdicts = status["reloads"].as_array().unwrap().iter().map(|reload| &reload["verdict"]);
    assert_eq!(verdicts.collect::<Vec<_>>(), ["refused", "taken"], "the last first");
    let text = Finished::from(hapilot.command(&["status"])).text;
    let at = |word| text.find(word).unwrap_or_else(|| panic!("{word} is missing in {text}"));
    assert!(at("  refused at ") < at("  taken at "), "{text}");
    end(&lab, hapilot, &before);
}

#[test]
fn a_reload_is_done_when_the_old_one_accepts_no_more_though_it_has_a_grace() {
    let with_grace = |via| format!("global\n  grace 3s\n{}", proxy(":80", via));
    let (lab, hapilot, before) = Lab::serving(&proxy(":80", "v1"), &[]);
    lab.balancer.write("haproxy.cfg", &with_grace("v2"));
    let warned = Finished::from(hapilot.command(&["reload"]));
    warned.assert_code(0).assert_says(&["haproxy.cfg:2", "accepts for 3s more"]);
    lab.balancer.write("haproxy.cfg", &with_grace("v3"));
    let reloaded = Finished::from(hapilot.command(&["reload"]));
    for _ in 0..60 {
        assert_eq!(via(&lab), "v3");
    }
    reloaded.assert_code(0);
    let status = Finished::from(hapilot.command(&["status"]));
    status.assert_code(0).assert_says(&["haproxy.cfg:2", "accepts for 3s more"]);
    let config = lab.balancer.path("haproxy.cfg");
    let checked = lab.balancer.container("other").config(&config).args(&["check"]).finish();
    checked.assert_code(0).assert_says(&["haproxy.cfg:2", "accepts for 3s more"]);
    assert_eq!(hapilot.log.count("it still accepts though"), 0);
    end(&lab, hapilot, &before);
}

#[test]
fn the_command_says_what_it_waits_for_and_does_not_give_up_before_hapilot_does() {
    let (lab, hapilot, before) = start();
    let script = lab.balancer.write("slow.lua", "os.execute('sleep 11')\n");
    let slow = format!("global\n  lua-load {}\n{}", script.display(), proxy(":80", "v2"));
    lab.balancer.write("haproxy.cfg", &slow);
    let reloaded = Finished::from(hapilot.command(&["reload"]));
    reloaded.assert_code(0).assert_says(&[
        "the reload is not over after 10s: hapilot is reloading",
        "generation 1 is serving, generation 2 is starting",
    ]);
    assert_eq!(via(&lab), "v2");
    end(&lab, hapilot, &before);
}
