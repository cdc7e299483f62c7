//! Promise: what is wrong is said clearly and all at once, and nothing was changed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use std::net::UdpSocket;

use lab::{Finished, Host, haproxy_cfg};

/// Every setting that is wrong, the value, and what the error has to name besides.
const BAD: [(&str, &str); 22] = [
    ("HAPROXY_PORTS", "0"),
    ("HAPROXY_PORTS", "70000"),
    ("HAPROXY_PORTS", "80,,443"),
    ("HAPROXY_PORTS", "eighty"),
    ("HAPROXY_PIDS", "12x"),
    ("HAPROXY_STOP_DEADLINE", "-1s"),
    ("HAPROXY_STOP_DEADLINE", "5 parsecs"),
    ("HAPROXY_DRAIN_DEADLINE", "5 parsecs"),
    ("HAPROXY_MARK", "0x0/0x0"),
    ("HAPROXY_MARK", "red"),
    ("HAPROXY_INTERCEPT", "80:80"),
    ("HAPROXY_INTERCEPT", "80"),
    ("HAPROXY_CONFIG", "/there/is/no/such/directory"),
    ("HAPROXY_TABLE", "many"),
    ("HAPROXY_TRANSPARENT", "perhaps"),
    ("HAPROXY_FIREWALL", "brick"),
    ("HAPROXY_MAX_GENERATIONS", "0"),
    ("HAPROXY_ON_CRASH", "cry"),
    ("HAPROXY_LOG_FORMAT", "verse"),
    ("HAPROXY_LOG_LEVEL", "loud"),
    ("HAPROXY_METRICS", "9101"),
    ("HAPROXY_METRICS", "localhost:9101"),
];

fn host() -> (Host, lab::HostState) {
    let host = Host::alone();
    let before = host.state();
    (host, before)
}

fn good(host: &Host) -> std::path::PathBuf {
    host.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "v1"))
}

/// An error is one that names the variable and the value.
fn assert_refused(ended: &Finished, variable: &str, value: &str) {
    assert_eq!(ended.status.code(), Some(64), "{variable}={value}: {}", ended.text);
    ended.assert_says(&[variable, value]);
    assert!(!ended.text.contains("panicked"), "{}", ended.text);
}

#[test]
fn every_bad_setting_is_refused_by_name_and_changes_nothing() {
    let (host, before) = host();
    let config = good(&host);
    for (variable, value) in BAD {
        let spec = host.container("hapilot").config(&config).env(variable, value);
        assert_refused(&spec.finish(), variable, value);
    }
    host.state().assert_same_as(&before);
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let (host, before) = host();
    let mut wrong: Vec<_> = BAD.to_vec();
    wrong.dedup_by_key(|(variable, _)| *variable);
    for command in [&[][..], &["check"], &["plan"]] {
        let mut spec = host.container("hapilot").args(command);
        for (variable, value) in &wrong {
            spec = spec.env(variable, value);
        }
        let ended = spec.finish();
        for (variable, value) in &wrong {
            assert_refused(&ended, variable, value);
        }
    }
    host.state().assert_same_as(&before);
}

#[test]
fn an_unreadable_configuration_is_refused_by_name() {
    let (host, before) = host();
    let dangling = host.path("dangling.cfg");
    std::os::unix::fs::symlink("/nowhere", &dangling).unwrap();
    let secret = good(&host);
    std::fs::set_permissions(&secret, Permissions::from_mode(0o000)).unwrap();
    for path in [dangling, secret] {
        let spec = host.container("hapilot").config(&path);
        let ended = spec.without_capabilities("-dac_override,-dac_read_search").finish();
        assert_refused(&ended, "HAPROXY_CONFIG", path.to_str().unwrap());
    }
    host.state().assert_same_as(&before);
}

#[test]
fn a_setting_that_is_almost_one_of_ours_is_warned_about_by_name() {
    let (host, _) = host();
    let config = good(&host);
    let spec = host.container("hapilot").config(&config).env("HAPROXY_PORT", "8080");
    let mut hapilot = spec.env("HAPROXY_ELSEWHERE_ENTIRELY", "x").start().serving();
    let warning = hapilot.log.await_line("HAPROXY_PORT");
    assert!(warning.contains("HAPROXY_PORTS"), "it names the one meant: {warning}");
    assert_eq!(hapilot.log.count("HAPROXY_ELSEWHERE_ENTIRELY"), 0);
    hapilot.stop();
    // Beside a mistake as well: it may be the same one.
    let spec = host.container("other").args(&["check"]).config(&config).env("HAPROXY_PORT", "80");
    let ended = spec.env("HAPROXY_MARK", "x").finish();
    ended.assert_code(64).assert_says(&["HAPROXY_MARK", "HAPROXY_PORT:", "HAPROXY_PORTS is one"]);
}

#[test]
fn what_the_host_lacks_is_listed_at_once_and_nothing_is_changed() {
    let (host, before) = host();
    let config = good(&host);
    let spec = host.container("hapilot").config(&config).without_net_admin();
    let ended = spec.env("HAPROXY_TRANSPARENT", "on").finish();
    ended.assert_code(69).assert_says(&["NET_ADMIN", "--cap-add"]);
    host.state().assert_same_as(&before);
}

#[test]
fn a_configuration_that_needs_the_right_is_refused_without_it() {
    let (host, before) = host();
    let config = haproxy_cfg::transparent(":80", ":::80 v6only");
    let config = host.write("haproxy.cfg", &config);
    let ended = host.container("hapilot").config(&config).without_net_admin().finish();
    let words = ["NET_ADMIN", "haproxy.cfg:", "HAPROXY_TRANSPARENT=off"];
    ended.assert_code(69).assert_says(&words);
    host.state().assert_same_as(&before);
}

#[test]
fn a_configuration_that_can_be_read_only_once_is_refused_before_anything_is_started() {
    let (host, before) = host();
    let fifo = host.path("fifo");
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let fifo = fifo.display().to_string();
    for (path, why) in [("/dev/stdin", "standard input cannot be read again"), (&fifo, "a pipe?")] {
        for arguments in [&["-f", path][..], &["check", "--", "-f", path][..]] {
            let ended = host.container("hapilot").args(arguments).finish();
            ended.assert_code(64).assert_says(&[path, why, "at a reload: mount a file"]);
        }
        let set = host.container("hapilot").env("HAPROXY_CONFIG", path).finish();
        set.assert_code(64).assert_says(&["HAPROXY_CONFIG", why, "mount a file"]);
    }
    host.state().assert_same_as(&before);
}

#[test]
fn what_haproxy_does_not_read_or_perhaps_does_not_is_no_reason_to_refuse() {
    let (host, before) = host();
    let (proxy, line) =
        (haproxy_cfg::proxy("127.0.0.1:80", "v1"), "source 0.0.0.0 usesrc clientip");
    // Deeper than hapilot follows, and HAProxy 2.6 knows no other condition that it cannot decide.
    let deep = format!("{}0{}", "(".repeat(99), ")".repeat(99));
    for (condition, warned) in [("defined(TPROXY)", false), (deep.as_str(), true)] {
        let text = format!("{proxy}.if {condition}\n  {line}\n.endif\n");
        let config = host.write("haproxy.cfg", &text);
        let spec = host.container("hapilot").config(&config).without_net_admin();
        let mut hapilot = spec.start().serving();
        let told = hapilot.log.count("if HAProxy reads this line");
        assert_eq!(told > 0, warned, "{condition}: {}", hapilot.log.text());
        hapilot.stop();
        let set = host.container("other").config(&config).env("TPROXY", "1").without_net_admin();
        if !warned {
            set.finish().assert_code(69).assert_says(&["NET_ADMIN", "haproxy.cfg:"]);
        }
    }
    host.state().assert_same_as(&before);
}

/// `IP_TRANSPARENT` wants `CAP_NET_RAW` or `CAP_NET_ADMIN`; Docker gives the first to each container.
#[test]
fn a_transparent_bind_needs_no_more_than_docker_gives() {
    let (host, before) = host();
    host.namespace.run("ip route add local 10.99.0.7 dev lo");
    let text = format!(
        "{}frontend web\n  bind 10.99.0.7:80 transparent\n  http-request return status 200\n",
        haproxy_cfg::DEFAULTS
    );
    let config = host.write("haproxy.cfg", &text);
    let mut hapilot =
        host.container("hapilot").config(&config).without_net_admin().start().serving();
    assert!(lab::get(&host.namespace, "10.99.0.7:80", "/").is_answered());
    hapilot.reload();
    hapilot.stop();
    let spec = host.container("less").config(&config).args(&["check"]);
    let ended = spec.without_capabilities("-net_admin,-net_raw").finish();
    ended.assert_says(&["transparent needs the capability NET_RAW", "--cap-add=NET_RAW"]);
    host.namespace.run("ip route del local 10.99.0.7 dev lo");
    host.state().assert_same_as(&before);
}

#[test]
fn a_syslog_address_that_is_taken_is_named_and_nothing_is_changed() {
    let (host, before) = host();
    let config = good(&host);
    let taken = host.namespace.enter(|| UdpSocket::bind("127.0.0.1:514").unwrap());
    let spec = host.container("hapilot").config(&config).env("HAPROXY_SYSLOG", "127.0.0.1:514");
    let ended = spec.finish();
    ended.assert_code(69).assert_says(&[
        "HAPROXY_SYSLOG=127.0.0.1:514",
        "another process",
        "ss -l",
    ]);
    host.state().assert_same_as(&before);
    drop(taken);
}
