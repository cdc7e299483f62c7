//! Promise: each command does what it says, and what is not ours goes to HAProxy or in our place.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use lab::network::BALANCER4;
use lab::{Finished, Host, Lab, get, haproxy_cfg};
use nix::sys::signal::Signal;

fn host() -> (Host, lab::HostState) {
    let host = Host::alone();
    let before = host.state();
    (host, before)
}

fn good(host: &Host) -> std::path::PathBuf {
    host.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "v1"))
}

#[test]
fn check_says_yes_to_what_works_and_changes_nothing() {
    let (host, before) = host();
    let config = good(&host);
    host.container("hapilot").config(&config).args(&["check"]).finish().assert_code(0);
    host.state().assert_same_as(&before);
}

#[test]
fn check_says_no_to_a_broken_configuration_in_haproxys_words() {
    let (host, before) = host();
    let config = host.write("haproxy.cfg", haproxy_cfg::BROKEN);
    let ended = host.container("hapilot").config(&config).args(&["check"]).finish();
    assert!(!ended.status.success(), "{}", ended.text);
    ended.assert_says(&[haproxy_cfg::BROKEN_WORD]);
    host.state().assert_same_as(&before);
}

#[test]
fn a_check_beside_a_serving_instance_does_not_disturb_it() {
    let lab = Lab::new();
    let mut hapilot = lab.balancer.serve(&haproxy_cfg::proxy(":80", "v1"));
    let before = lab.balancer.state();
    let checked = Finished::from(hapilot.command(&["check"]));
    checked.assert_code(0);
    lab.balancer.state().assert_same_as(&before);
    assert!(get(&lab.client, &format!("{BALANCER4}:80"), "/").is_answered());
    hapilot.stop();
}

#[test]
fn plan_prints_the_commands_that_a_person_would_type_and_changes_nothing() {
    let (host, before) = host();
    let config = good(&host);
    let spec = host.container("hapilot").config(&config).args(&["plan"]);
    let ended = spec.env("HAPROXY_INTERCEPT", "80:8080").finish();
    ended.assert_code(0).assert_says(&[
        "ip rule add fwmark",
        "ip rule del",
        "ip route add local default dev lo table",
        "ip -6 route add local",
        "iptables",
        "ip6tables",
        "-t mangle -N HAPILOT-",
        "-A PREROUTING -p tcp -m socket --transparent -j",
        "TPROXY --on-port 8080",
        "-D PREROUTING",
        "net.ipv4.ip_nonlocal_bind",
        "net.ipv6.ip_nonlocal_bind",
    ]);
    host.state().assert_same_as(&before);
}

#[test]
fn without_a_running_instance_status_health_reload_and_stop_say_so() {
    let (host, before) = host();
    for command in ["status", "health", "reload", "stop"] {
        let ended = host.container("hapilot").args(&[command]).finish();
        assert!(!ended.status.success(), "{command}: {}", ended.text);
        assert!(
            ended.text.contains("control.sock") || ended.text.contains("running"),
            "{command} does not say what is the matter: {}",
            ended.text
        );
        assert!(!ended.text.contains("panicked"), "{}", ended.text);
    }
    host.state().assert_same_as(&before);
}

#[test]
fn health_follows_the_service() {
    let (host, _) = host();
    let mut hapilot = host.serve(&haproxy_cfg::proxy(":80", "v1"));
    Finished::from(hapilot.command(&["health"])).assert_code(0);
    let text = Finished::from(hapilot.command(&["status"]));
    text.assert_code(0).assert_says(&["serving"]);
    let haproxy = hapilot.process_of(&hapilot.current());
    lab::process::freeze(haproxy);
    let frozen = Finished::from(hapilot.command(&["health"]));
    assert!(!frozen.status.success(), "a frozen HAProxy is not healthy: {}", frozen.text);
    lab::process::kill(haproxy, Signal::SIGCONT);
    hapilot.stop();
}

#[test]
fn the_status_is_the_object_that_the_design_promises() {
    let (host, _) = host();
    let mut hapilot = host.serve(&haproxy_cfg::proxy(":80", "v1"));
    let status = hapilot.status();
    for key in [
        "instance",
        "version",
        "haproxy_version",
        "state",
        "since",
        "generations",
        "listeners",
        "last_reload",
        "crashes",
        "host",
    ] {
        assert!(status.get(key).is_some(), "{key} is missing in {status}");
    }
    assert_eq!(status["crashes"], 0);
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    for key in ["id", "pid", "state", "since", "connections", "deadline"] {
        assert!(status["generations"][0].get(key).is_some(), "{key} is missing in {status}");
    }
    let addresses = status["listeners"].to_string();
    assert!(addresses.contains(":80\""), "the listener is missing in {status}");
    hapilot.stop();
}

#[test]
fn version_and_help_need_nothing() {
    let (host, before) = host();
    let run = |args: &[&str]| host.container("hapilot").args(args).without_net_admin().finish();
    run(&["version"]).assert_code(0).assert_says(&[env!("CARGO_PKG_VERSION")]);
    run(&["help"]).assert_code(0).assert_says(&["check", "plan", "status", "reload", "sweep"]);
    run(&["stop", "--help"]).assert_code(0).assert_says(&["TERM", "USR1", "INT", "QUIT"]);
    host.state().assert_same_as(&before);
}

#[test]
fn other_commands_are_executed_in_our_place() {
    let (host, before) = host();
    let run = |args: &[&str]| host.container("hapilot").args(args).finish();
    run(&["sh", "-c", "echo I am $$; exit 42"]).assert_code(42).assert_says(&["I am 1"]);
    run(&["haproxy", "-v"]).assert_code(0).assert_says(&["HAProxy version"]);
    run(&["haproxy", "-vv"]).assert_code(0).assert_says(&["Build options"]);
    run(&["-v"]).assert_code(0).assert_says(&["HAProxy version"]);
    let config = good(&host);
    run(&["haproxy", "-c", "-f", config.to_str().unwrap()]).assert_code(0);
    let broken = host.write("broken.cfg", haproxy_cfg::BROKEN);
    let ended = run(&["haproxy", "-c", "-f", broken.to_str().unwrap()]);
    ended.assert_code(1).assert_says(&[haproxy_cfg::BROKEN_WORD]);
    run(&["no-such-command-anywhere"]).assert_code(127).assert_says(&["no-such-command-anywhere"]);
    host.state().assert_same_as(&before);
}

#[test]
fn haproxys_own_arguments_are_supervised_in_every_form() {
    let lab = Lab::new();
    let config = lab.balancer.write("other.cfg", &haproxy_cfg::proxy(":80", "other"));
    let path = config.to_str().unwrap();
    for arguments in [
        &["-f", path][..],
        &["haproxy", "-f", path],
        &["run", "--", "-f", path],
        &["haproxy", "-W", "-db", "-f", path],
    ] {
        let mut hapilot = lab.balancer.container("hapilot").args(arguments).start().serving();
        let outcome = get(&lab.client, &format!("{BALANCER4}:80"), "/");
        assert!(outcome.is_answered(), "{arguments:?}: {outcome:?}");
        hapilot.reload();
        assert!(get(&lab.client, &format!("{BALANCER4}:80"), "/").is_answered(), "{arguments:?}");
        hapilot.stop();
    }
}

#[test]
fn a_word_that_is_almost_a_command_is_not_a_silent_success() {
    let (host, before) = host();
    let ended = host.container("hapilot").args(&["statsu"]).finish();
    assert!(!ended.status.success(), "{}", ended.text);
    ended.assert_says(&["statsu"]);
    host.state().assert_same_as(&before);
}

#[test]
fn logs_for_machines_are_one_json_object_a_line() {
    let (host, _) = host();
    let config = good(&host);
    let spec = host.container("hapilot").config(&config).env("HAPROXY_LOG_FORMAT", "json");
    let mut hapilot = spec.start().serving();
    hapilot.reload();
    hapilot.stop();
    let text = hapilot.log.text();
    assert!(text.lines().count() > 3, "{text}");
    for line in text.lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"));
        assert!(value.is_object(), "{line}");
    }
}
