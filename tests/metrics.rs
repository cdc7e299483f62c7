//! Promise: Prometheus finds what happened under well-formed names, and scrapers hold up nobody.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{TcpListener, TcpStream};

use lab::network::BALANCER4;
use lab::{Download, Finished, Host, Instance, LONG, Lab, Namespace, get, haproxy_cfg, until};
use nix::sys::signal::Signal;
use prometheus_parse::{Scrape, Value};

const AT: &str = "127.0.0.1:9101";
const SETTING: (&str, &str) = ("HAPROXY_METRICS", AT);

fn scrape_text(namespace: &Namespace, at: &str) -> String {
    get(namespace, at, "/metrics").body().to_owned()
}

fn scrape(namespace: &Namespace) -> Scrape {
    let text = scrape_text(namespace, AT);
    Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).unwrap()
}

/// The sum of the samples of a name that have those labels.
fn value(scrape: &Scrape, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let has = |sample: &&prometheus_parse::Sample| {
        sample.metric == name
            && labels.iter().all(|(key, value)| sample.labels.get(key) == Some(*value))
    };
    let number = |sample: &prometheus_parse::Sample| match &sample.value {
        Value::Counter(v) | Value::Gauge(v) | Value::Untyped(v) => *v,
        other => panic!("{name}: {other:?}"),
    };
    let found: Vec<f64> = scrape.samples.iter().filter(has).map(number).collect();
    (!found.is_empty()).then(|| found.iter().sum())
}

/// A scrape is good for a second, so what is new is waited for.
fn await_value(host: &Host, name: &str, labels: &[(&str, &str)], wanted: f64) {
    until(LONG, &format!("{name}{labels:?} is {wanted}"), || {
        let now = value(&scrape(&host.namespace), name, labels);
        (now == Some(wanted)).then_some(())
    });
}

fn reload_refused(hapilot: &Instance) {
    let ended = Finished::from(hapilot.command(&["reload"]));
    ended.assert_code(1).assert_says(&[haproxy_cfg::BROKEN_WORD]);
}

#[test]
fn what_happened_is_there_for_prometheus() {
    let (lab, mut hapilot, _) = Lab::serving(&haproxy_cfg::proxy(":80", "v1"), &[SETTING]);
    let host = &lab.balancer;
    let first = scrape(&host.namespace);
    assert_eq!(value(&first, "hapilot_state", &[("state", "serving")]), Some(1.0));
    assert_eq!(value(&first, "hapilot_reloads_total", &[]), Some(0.0));
    assert_eq!(value(&first, "hapilot_last_reload_successful", &[]), None);
    assert_eq!(value(&first, "hapilot_crashes_total", &[]), Some(0.0));
    let items = hapilot.status()["host"].as_array().unwrap().len();
    let items = f64::from(u32::try_from(items).unwrap());
    assert!(items > 0.0);
    assert_eq!(value(&first, "hapilot_host_items", &[]), Some(items));

    let address = format!("{BALANCER4}:80");
    let session = Download::begin(&lab.client, &address, "/slow");
    await_value(host, "hapilot_sessions", &[("state", "serving")], 1.0);
    hapilot.reload();
    await_value(host, "hapilot_reloads_total", &[("verdict", "taken")], 1.0);
    await_value(host, "hapilot_sessions", &[("state", "draining")], 1.0);
    await_value(host, "hapilot_generations", &[("state", "draining")], 1.0);
    lab.origin.open_gate();
    assert!(session.finish().is_answered());
    await_value(host, "hapilot_generations", &[("state", "draining")], 0.0);
    let taken = scrape(&host.namespace);
    let shared = [("change", "shared")];
    assert_eq!(value(&taken, "hapilot_reload_listeners_total", &shared), Some(1.0));
    assert_eq!(value(&taken, "hapilot_reloads_doubtful_total", &[]), Some(0.0));
    assert_eq!(value(&taken, "hapilot_last_reload_successful", &[]), Some(1.0));

    host.write("haproxy.cfg", haproxy_cfg::BROKEN);
    reload_refused(&hapilot);
    await_value(host, "hapilot_reloads_total", &[("verdict", "refused")], 1.0);
    await_value(host, "hapilot_last_reload_successful", &[], 0.0);

    host.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "v2"));
    let serving = hapilot.current();
    lab::process::kill(hapilot.process_of(&serving), Signal::SIGKILL);
    hapilot.await_successor(&serving);
    await_value(host, "hapilot_crashes_total", &[], 1.0);
    hapilot.stop();
}

#[test]
fn a_guard_of_a_reload_is_measured() {
    let drop_always = ("HAPROXY_RELOAD_GUARD", "drop");
    let (lab, mut hapilot, _) =
        Lab::serving(&haproxy_cfg::proxy(":80", "v1"), &[SETTING, drop_always]);
    hapilot.reload();
    let guard = [("guard", "drop")];
    await_value(&lab.balancer, "hapilot_reloads_total", &guard, 1.0);
    let window = hapilot.status()["last_reload"]["window_ms"].as_f64().unwrap();
    let text = scrape_text(&lab.balancer.namespace, AT);
    let sum = text.lines().find_map(|line| {
        line.strip_prefix("hapilot_reload_guard_seconds_sum{guard=\"drop\"} ")?.parse::<f64>().ok()
    });
    assert!((sum.unwrap() - window / 1000.0).abs() < 1e-6, "{sum:?}, {window}");
    hapilot.stop();
}

/// What `promtool check metrics` asks for.
#[test]
fn every_family_is_explained_and_named_by_the_conventions() {
    let (lab, mut hapilot, _) = Lab::serving(&haproxy_cfg::proxy(":80", "v1"), &[SETTING]);
    hapilot.reload();
    let outcome = get(&lab.balancer.namespace, AT, "/metrics");
    let lab::Outcome::Answered(answer) = &outcome else { panic!("{outcome:?}") };
    assert!(answer.head.contains("text/plain; version=0.0.4"), "{}", answer.head);
    let text = outcome.body();
    let about = |word: &str| -> BTreeMap<String, String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(word)?.split_once(' '));
        lines.map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
    };
    let (help, kinds) = (about("# HELP "), about("# TYPE "));
    assert_eq!(help.keys().collect::<Vec<_>>(), kinds.keys().collect::<Vec<_>>());
    assert!(help.len() > 15, "{text}");
    for (name, kind) in &kinds {
        assert!(name.starts_with("hapilot_"), "{name}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}");
        assert!(help[name].ends_with('.'), "{name}: {}", help[name]);
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
        assert!(
            kinds.contains_key(name) || family.is_some_and(|family| kinds.contains_key(family)),
            "{line} is of no family"
        );
    }
    assert!(!Scrape::parse(text.lines().map(|l| Ok(l.to_owned()))).unwrap().samples.is_empty());
    hapilot.stop();
}

#[test]
fn scrapers_that_never_read_hold_up_neither_each_other_nor_hapilot() {
    let (lab, mut hapilot, _) = Lab::serving(&haproxy_cfg::proxy(":80", "v1"), &[SETTING]);
    let namespace = &lab.balancer.namespace;
    let silent: Vec<TcpStream> = (0..40)
        .map(|number| {
            let mut stream = namespace.enter(|| TcpStream::connect(AT).unwrap());
            if number % 2 == 0 {
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ").unwrap();
            }
            stream
        })
        .collect();
    hapilot.reload();
    Finished::from(hapilot.command(&["health"])).assert_code(0);
    assert!(get(&lab.client, &format!("{BALANCER4}:80"), "/").is_answered());
    // More than there are places for: they are given back.
    let outcome = lab::client::get_within(namespace, AT, "/metrics", LONG);
    assert!(outcome.is_answered(), "{outcome:?}");
    drop(silent);
    hapilot.stop();
}

#[test]
fn what_is_not_asked_for_properly_is_answered_properly() {
    let host = Host::alone();
    let config = host.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "v1"));
    let six = "[::1]:9101";
    let spec = host.container("hapilot").config(&config).env("HAPROXY_METRICS", six);
    let mut hapilot = spec.start().serving();
    assert!(scrape_text(&host.namespace, six).contains("hapilot_build_info"));
    let outcome = get(&host.namespace, six, "/");
    let lab::Outcome::Answered(answer) = &outcome else { panic!("{outcome:?}") };
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains("/metrics"), "{answer:?}");
    let checked = Finished::from(hapilot.command(&["check"]));
    checked.assert_code(0);
    hapilot.stop();
}

#[test]
fn an_address_that_is_taken_or_not_ours_is_named_and_nothing_is_changed() {
    let host = Host::alone();
    let before = host.state();
    let config = host.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "v1"));
    let somebody = host.namespace.enter(|| TcpListener::bind(AT).unwrap());
    for (address, reason) in [(AT, "another process listens there"), ("192.0.2.1:9101", "assign")] {
        let spec = host.container("hapilot").config(&config).env("HAPROXY_METRICS", address);
        let ended = spec.finish();
        ended.assert_code(69).assert_says(&["HAPROXY_METRICS", address, reason]);
    }
    host.state().assert_same_as(&before);
    drop(somebody);
}

#[test]
fn who_takes_over_gets_the_address_when_the_other_lets_go() {
    let host = Host::alone();
    let config = host.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "v1"));
    let predecessor = host.namespace.enter(|| TcpListener::bind(AT).unwrap());
    let spec = host.container("hapilot").config(&config).envs(&[SETTING, ("HAPROXY_PIDS", "auto")]);
    let mut hapilot = spec.start().serving();
    drop(predecessor);
    hapilot.log.await_line("Prometheus is answered");
    assert!(scrape_text(&host.namespace, AT).contains("hapilot_build_info"));
    hapilot.stop();
}

#[test]
fn how_a_take_over_went_is_there_while_the_old_one_drains_and_after() {
    let config = haproxy_cfg::proxy(":80", "v1");
    let (lab, mut old, _) = Lab::serving(&config, &[]);
    let host = &lab.balancer;
    let session = Download::begin(&lab.client, &format!("{BALANCER4}:80"), "/slow");
    let file = host.path("haproxy.cfg");
    let spec = host.container("new").config(&file).envs(&[SETTING, ("HAPROXY_PIDS", "auto")]);
    let mut new = spec.start().serving();
    let draining = [("rung", "hapilot"), ("state", "draining")];
    await_value(host, "hapilot_takeover_predecessors", &draining, 1.0);
    await_value(host, "hapilot_takeover_sessions", &[], 1.0);
    let during = scrape(&host.namespace);
    assert_eq!(value(&during, "hapilot_takeover_predecessors", &[]), Some(1.0));
    assert_eq!(value(&during, "hapilot_last_takeover_lossless", &[]), Some(1.0));
    let shared = [("change", "shared")];
    assert_eq!(value(&during, "hapilot_last_takeover_listeners", &shared), Some(1.0));
    assert_eq!(value(&during, "hapilot_last_takeover_guard_seconds", &[]), None);
    assert_eq!(value(&during, "hapilot_reloads_total", &[]), Some(0.0));
    lab.origin.open_gate();
    assert!(session.finish().is_answered());
    let gone = [("rung", "hapilot"), ("state", "gone")];
    await_value(host, "hapilot_takeover_predecessors", &gone, 1.0);
    await_value(host, "hapilot_takeover_sessions", &[], 0.0);
    assert_eq!(old.wait(LONG).code(), Some(0));
    new.stop();
}
