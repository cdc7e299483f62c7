//! Promise: what one HAProxy knew follows to the next, by a reload, after a kill and in a take-over,
//! and never overrules what the configuration says by now.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::fmt::Write as _;
use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lab::haproxy_cfg::{DEFAULTS, proxy};
use lab::takeover::{assert_ends_with_0, assert_none_lost, receipt};
use lab::versions::{end, via, web};
use lab::{Generation, Instance, LONG, Lab, Load, SHORT, until};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Nothing listens there.
const NOWHERE: &str = "10.2.0.2:9";
const ORIGIN: &str = "10.2.0.2:8000";

/// The columns of `show servers state` that say where a server is.
fn place(hapilot: &Instance, of: &Generation, server: &str) -> String {
    let state = hapilot.runtime(of, "show servers state");
    let line = state.lines().find(|line| line.split(' ').nth(3) == Some(server));
    let columns: Vec<_> = line.unwrap_or_else(|| panic!("{server}: {state}")).split(' ').collect();
    format!("{}:{}", columns[4], columns[18])
}

fn carried(status: &Value) -> Vec<String> {
    let carried = status["last_reload"]["carried_over"].as_array().unwrap();
    carried.iter().map(|command| command.as_str().unwrap().to_owned()).collect()
}

fn warnings(status: &Value) -> String {
    status["last_reload"]["warnings"].to_string()
}

/// What the old one knew of its servers is asked for over one connection, in as many commands as it
/// takes, while it is long known that the port is to be guarded.
#[test]
fn a_bind_that_changed_is_guarded_however_much_was_set_by_hand() {
    const SERVERS: usize = 10_000;
    const IN_ONE: usize = 100;
    let name = |number| format!("many{}/m{number}", number / IN_ONE);
    let config = |option: &str, via: &str| {
        let mut text = proxy(&format!(":80 {option}"), via);
        for number in 0..SERVERS {
            if number % IN_ONE == 0 {
                writeln!(text, "backend many{}", number / IN_ONE).unwrap();
            }
            writeln!(text, "  server m{number} {ORIGIN} weight 10").unwrap();
        }
        text
    };
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = lab.balancer.serve(&config("", "v1"));
    let old = hapilot.current();
    let commands = (0..SERVERS).map(|number| format!("set server {} weight 7\n", name(number)));
    let commands = commands.collect::<Vec<_>>().concat();
    converse(&hapilot, &old, &commands, SERVERS);
    lab.balancer.write("haproxy.cfg", &config("transparent", "v2"));
    let load = Load::start(&lab.client, &web());
    hapilot.reload();
    let new = hapilot.await_successor(&old);
    let status = hapilot.status();
    let receipt = &status["last_reload"];
    assert_eq!(receipt["strategy"], "separate", "{receipt}");
    assert_ne!(receipt["guard"], "none", "{receipt}");
    assert_none_lost(load);
    assert_eq!(via(&lab), "v2");
    for number in [0, SERVERS / 2, SERVERS - 1] {
        let weight = hapilot.runtime(&new, &format!("get weight {}", name(number)));
        assert!(weight.starts_with("7 "), "{number}: {weight}");
    }
    assert!(carried(&status).last().unwrap().starts_with("and "), "a receipt has an end");
    end(&lab, hapilot, &before);
}

/// Many commands in one conversation, until each is answered.
fn converse(hapilot: &Instance, on: &Generation, commands: &str, count: usize) {
    let path = hapilot.run_directory().join(format!("generation-{}.sock", on.id));
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut says = stream.try_clone().unwrap();
    let commands = "prompt
"
    .to_owned()
        + commands;
    let speaker = std::thread::spawn(move || says.write_all(commands.as_bytes()).unwrap());
    let prompts = BufReader::new(stream).bytes().filter(|byte| *byte.as_ref().unwrap() == b'>');
    assert_eq!(prompts.take(count + 1).count(), count + 1, "HAProxy hung up");
    speaker.join().unwrap();
}

#[test]
fn a_server_that_moved_on_disk_is_where_the_configuration_says() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let loads = |server: &str, global: &str| {
        let config = proxy(":80", "v1").replace(ORIGIN, server);
        let config =
            config.replace("defaults\n", "defaults\n  load-server-state-from-file global\n");
        format!("{global}{config}  server s2 {ORIGIN} weight 100\n  server s3 {NOWHERE} disabled\n")
    };
    let named = format!("global\n  server-state-file {}\n", lab.balancer.path("state").display());
    for global in ["", &named] {
        let mut hapilot = lab.balancer.serve(&loads(NOWHERE, global));
        let first = hapilot.current();
        hapilot.runtime(&first, "set weight origin/s2 42%");
        hapilot.runtime(&first, "set server origin/s1 state drain");
        lab.balancer.write("haproxy.cfg", &loads(ORIGIN, global));
        hapilot.reload();
        let second = hapilot.await_successor(&first);
        assert_eq!(place(&hapilot, &second, "s1"), ORIGIN);
        // What was set by hand is another matter.
        let weight = hapilot.runtime(&second, "get weight origin/s2");
        assert!(weight.starts_with("42 "), "{weight}");
        hapilot.runtime(&second, "set server origin/s1 state ready");
        // Beside the one that is disabled.
        hapilot.await_status("it is saved", |status| status["saved"]["servers"] == 2);
        // So it is where HAProxy was killed, and when it moves back.
        lab.balancer.write("haproxy.cfg", &loads(NOWHERE, global));
        lab::process::kill(hapilot.process_of(&second), Signal::SIGKILL);
        let third = hapilot.await_successor(&second);
        assert_eq!(place(&hapilot, &third, "s1"), NOWHERE);
        end(&lab, hapilot, &before);
    }
}

/// A name that DNS resolved is where it was found last, as long as the configuration names the same.
#[test]
fn an_address_from_dns_follows_where_the_configuration_wants_the_last_one() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = |host: &str| {
        format!(
            "{}  server s2 {host}:8000 init-addr last,libc,none\n",
            proxy(":80", "v1")
                .replace("defaults\n", "defaults\n  load-server-state-from-file global\n")
        )
    };
    let mut hapilot = lab.balancer.serve(&config("localhost"));
    let first = hapilot.current();
    hapilot.runtime(&first, "set server origin/s2 addr 10.2.0.2");
    // HAProxy 3.0 does so a moment later.
    until(SHORT, "it has an address", || (place(&hapilot, &first, "s2") == ORIGIN).then_some(()));
    hapilot.reload();
    let second = hapilot.await_successor(&first);
    assert_eq!(place(&hapilot, &second, "s2"), ORIGIN);
    hapilot.await_status("it is saved", |status| !status["saved"].is_null());
    lab::process::kill(hapilot.process_of(&second), Signal::SIGKILL);
    let third = hapilot.await_successor(&second);
    assert_eq!(place(&hapilot, &third, "s2"), ORIGIN);
    lab.balancer.write("haproxy.cfg", &config("other.internal"));
    hapilot.reload();
    let fourth = hapilot.await_successor(&third);
    assert_ne!(place(&hapilot, &fourth, "s2"), ORIGIN, "that was another name's");
    end(&lab, hapilot, &before);
}

/// Three servers of which two have long been down. A reload finds them out by itself seconds later.
fn two_dead(via: &str) -> String {
    let check = "check inter 2s fastinter 100ms fall 2 rise 3";
    format!(
        "{DEFAULTS}frontend web\n  bind :80\n  http-response set-header x-via {via}\n  \
         default_backend origin\nbackend origin\n  balance roundrobin\n  server s1 {ORIGIN} {check}\n  \
         server s2 {NOWHERE} {check}\n  server s3 10.2.0.2:10 {check}\n"
    )
}

fn down(hapilot: &Instance, of: &Generation) -> Vec<String> {
    let state = hapilot.runtime(of, "show servers state");
    let servers = state.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let down = servers.filter(|columns| columns.get(5) == Some(&"0"));
    down.map(|columns| columns[3].to_owned()).collect()
}

fn await_down(hapilot: &Instance, of: &Generation) {
    until(LONG, "two servers are known to be down", || {
        (down(hapilot, of) == ["s2", "s3"]).then_some(())
    });
}

/// One that meets a dead server waits for a second at least.
fn assert_none_met_a_dead_server(load: Load) {
    let slowest = assert_none_lost(load);
    assert!(slowest < Duration::from_millis(900), "one took {slowest:?}");
}

#[test]
fn nobody_meets_a_server_that_is_known_to_be_dead_in_a_reload() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = lab.balancer.serve(&two_dead("v0"));
    let mut current = hapilot.current();
    await_down(&hapilot, &current);
    let load = Load::start(&lab.client, &web());
    for round in 1..=20 {
        // Half of them with another configuration.
        lab.balancer.write("haproxy.cfg", &two_dead(&format!("v{}", round / 2)));
        hapilot.reload();
        current = hapilot.await_successor(&current);
        assert_eq!(down(&hapilot, &current), ["s2", "s3"], "round {round}");
    }
    assert_none_met_a_dead_server(load);
    // It is up again once its checks have passed as often as they must.
    lab.balancer.write("haproxy.cfg", &two_dead("v0").replace("10.2.0.2:10 ", "10.2.0.2:8000 "));
    hapilot.reload();
    current = hapilot.await_successor(&current);
    assert_eq!(down(&hapilot, &current), ["s2"], "one that moved is another server");
    end(&lab, hapilot, &before);
}

#[test]
fn nobody_meets_a_server_that_is_known_to_be_dead_after_a_kill_or_in_a_take_over() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = lab.balancer.serve(&two_dead("v0"));
    let mut current = hapilot.current();
    await_down(&hapilot, &current);
    // What is said at the door may have changed something, so it is saved at once.
    let at = hapilot.status()["saved"]["at"].clone();
    assert!(hapilot.command(&["runtime", "show info"]).status.success());
    hapilot.await_status("that is saved", |status| status["saved"]["at"] != at);
    for _ in 0..3 {
        lab::process::kill(hapilot.process_of(&current), Signal::SIGKILL);
        let load = Load::start(&lab.client, &web());
        current = hapilot.await_successor(&current);
        until(SHORT, "some were served", || (load.answered() > 50).then_some(()));
        assert_none_met_a_dead_server(load);
        assert_eq!(down(&hapilot, &current), ["s2", "s3"]);
    }
    let load = Load::start(&lab.client, &web());
    let config = lab.balancer.path("haproxy.cfg");
    let spec = lab.balancer.container("new").config(&config).env("HAPROXY_PIDS", "auto");
    let mut new = spec.start();
    receipt(&mut new);
    assert_ends_with_0(&mut hapilot);
    assert_none_met_a_dead_server(load);
    assert_eq!(down(&new, &new.current()), ["s2", "s3"]);
    end(&lab, new, &before);
}

/// Who mends the check by which a whole backend is down wants it up at once.
#[test]
fn a_backend_that_is_down_as_a_whole_is_up_with_another_configuration_and_stays_down_with_the_same()
{
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = |path: &str| {
        format!(
            "{}\n  option httpchk GET {path}\n",
            proxy(":80", "v1")
                .trim_end()
                .replace(ORIGIN, &format!("{ORIGIN} check inter 100ms fall 2"))
        )
    };
    let broken = config("/")
        .replace("option httpchk GET /", "option tcp-check\n  tcp-check expect string x");
    let mut hapilot = lab.balancer.serve(&broken);
    let first = hapilot.current();
    until(LONG, "it is down", || (down(&hapilot, &first) == ["s1"]).then_some(()));
    hapilot.reload();
    let second = hapilot.await_successor(&first);
    assert_eq!(down(&hapilot, &second), ["s1"]);
    lab.balancer.write("haproxy.cfg", &config("/"));
    hapilot.reload();
    let third = hapilot.await_successor(&second);
    assert_eq!(down(&hapilot, &third), Vec::<String>::new());
    assert_eq!(via(&lab), "v1");
    end(&lab, hapilot, &before);
}

/// A server was drained because another was added in its place, and only the drain could follow.
#[test]
fn half_of_what_was_set_by_hand_is_told_and_leaves_no_backend_without_a_server() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = lab.balancer.serve(&proxy(":80", "v1"));
    let first = hapilot.current();
    for command in [
        format!("add server origin/added {ORIGIN}"),
        "set server origin/added state ready".to_owned(),
        "set server origin/s1 state drain".to_owned(),
    ] {
        hapilot.runtime(&first, &command);
    }
    let state = hapilot.runtime(&first, "show servers state");
    assert!(state.contains(" added "), "{state}");
    hapilot.reload();
    hapilot.await_successor(&first);
    let status = hapilot.status();
    let told = warnings(&status);
    assert!(
        told.contains("server origin/added (10.2.0.2:8000) was added over the runtime API"),
        "{told}"
    );
    assert!(told.contains("set server origin/s1 state drain"), "{told}");
    assert_eq!(carried(&status), Vec::<String>::new());
    assert_eq!(via(&lab), "v1");
    end(&lab, hapilot, &before);
}

/// All runtime sockets share the limit, and a client that stays connected takes what there is.
#[test]
fn a_client_that_takes_every_place_at_the_runtime_sockets_delays_no_reload() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let socket = lab.balancer.path("stats.sock");
    let config = format!(
        "global\n  stats socket {} level admin\n  stats maxconn 1\n{}",
        socket.display(),
        proxy(":80", "v1")
    );
    let mut hapilot = lab.balancer.serve(&config);
    hapilot.log.await_line("stats maxconn 1 is shared");
    for _ in 0..3 {
        let mut clients: Vec<_> = (0..5).map(|_| UnixStream::connect(&socket).unwrap()).collect();
        for client in &mut clients {
            client.write_all(b"prompt\nset timeout cli 1h\n").unwrap();
        }
        let old = hapilot.current();
        let begun = Instant::now();
        hapilot.reload();
        assert!(begun.elapsed() < SHORT, "{:?}", begun.elapsed());
        hapilot.await_successor(&old);
        let receipt = hapilot.status()["last_reload"].clone();
        let shared = receipt["listeners"]["shared"].as_array().unwrap();
        assert!(shared.contains(&"0.0.0.0:80".into()), "{receipt}");
        drop(clients);
    }
    end(&lab, hapilot, &before);
}
