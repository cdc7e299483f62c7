//! Promise: whatever HAProxy refuses that used to work, or that is missing, it says in its own words,
//! and hapilot adds a line that says what to do: in `check`, at the start and at a reload.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::fs;
use std::net::TcpListener;

use lab::haproxy_cfg::DEFAULTS;
use lab::{Finished, Host, certificate};

/// What stands in a `listen` section, a word of HAProxy's and some of ours.
const DIED: [(&str, &str, &str); 27] = [
    ("appsession JSESSIONID len 52 timeout 3h", "appsession", "cookie NAME prefix"),
    ("reqrep ^([^\\ ]*)\\ /a/(.*) \\1\\ /\\2", "reqrep", "http-request replace-path"),
    ("reqirep ^Host: x", "reqirep", "replace-header NAME REGEX NEW"),
    ("reqadd X-A:\\ b", "reqadd", "http-request set-header NAME VALUE"),
    ("reqdel ^X", "reqdel", "http-request del-header NAME"),
    ("reqidel ^X", "reqidel", "http-request del-header NAME"),
    ("reqdeny ^X", "reqdeny", "an http-request rule does it"),
    ("reqtarpit ^X", "reqtarpit", "an http-request rule does it"),
    ("reqpass ^X", "reqpass", "an http-request rule does it"),
    ("rspadd X-A:\\ b", "rspadd", "http-response set-header NAME VALUE"),
    ("rspdel ^X", "rspdel", "http-response del-header NAME"),
    ("rspidel ^X", "rspidel", "http-response del-header NAME"),
    ("rsprep ^X y", "rsprep", "an http-response rule does it"),
    ("rspdeny ^X", "rspdeny", "an http-response rule does it"),
    ("block if TRUE", "block", "http-request deny if"),
    ("option forceclose", "forceclose", "remove that line"),
    ("option http-tunnel", "http-tunnel", "remove that line"),
    ("option http_proxy", "http_proxy", "do-resolve and set-dst"),
    ("monitor-net 10.0.0.0/8", "monitor-net", "set-log-level silent"),
    ("mode health", "mode health", "mode http with http-request return"),
    ("redispatch", "redispatch", "option redispatch"),
    ("contimeout 5000", "contimeout", "timeout connect"),
    ("clitimeout 5000", "clitimeout", "timeout client"),
    ("srvtimeout 5000", "srvtimeout", "timeout server"),
    ("bind-process 1", "bind-process", "remove bind-process"),
    ("bind 127.0.0.1:81 process 1", "process 1", "remove process from that line"),
    (
        "option httpchk GET / HTTP/1.1\\r\\nHost:\\ x\n server s 127.0.0.1:9 check",
        "hiding headers",
        "http-check send meth GET",
    ),
];

fn listen(line: &str) -> String {
    format!("{DEFAULTS}listen web\n bind 127.0.0.1:80\n {line}\n")
}

fn check(host: &Host, text: &str) -> Finished {
    let config = host.write("haproxy.cfg", text);
    host.container("hapilot").args(&["check"]).config(&config).finish()
}

#[test]
fn each_directive_that_died_is_answered_with_its_successor() {
    let host = Host::alone();
    for (line, theirs, ours) in DIED {
        check(&host, &listen(line)).assert_says(&[theirs, "hapilot: ", ours]);
    }
    check(&host, &format!("global\n nbproc 2\n{}", listen(""))).assert_code(1).assert_says(&[
        "nbproc is not supported",
        "hapilot: remove nbproc",
        "threads",
    ]);
    check(&host, &format!("{DEFAULTS}listen web 127.0.0.1:80\n"))
        .assert_says(&["please use the 'bind' keyword", "hapilot: move the address"]);
    // What still works is left in peace.
    let fine = check(&host, &listen("option httpclose\n http-request deny if { path /no }"));
    fine.assert_code(0);
    assert!(!fine.text.contains("hapilot: "), "{}", fine.text);
}

/// What the start says, what `check` says, and what a reload says that was refused for it.
fn everywhere(host: &Host, text: &str) -> [String; 3] {
    let checked = check(host, text);
    checked.assert_code(1);
    let config = host.write("haproxy.cfg", text);
    let started = host.container("hapilot").config(&config).finish();
    started.assert_code(1);
    [checked.text, started.text, refused(host, text)]
}

fn refused(host: &Host, text: &str) -> String {
    let mut hapilot = host.serve(&listen("http-request return status 200"));
    host.write("haproxy.cfg", text);
    let reload = Finished::from(hapilot.command(&["reload"]));
    reload.assert_code(1);
    hapilot.stop();
    reload.text
}

fn assert_all_say(texts: &[String], words: &[&str]) {
    for text in texts {
        for word in words {
            assert!(text.contains(word), "{word:?} is missing in:\n{text}");
        }
    }
}

#[test]
fn what_is_wrong_with_a_pem_is_told_with_what_mends_it() {
    let host = Host::alone();
    certificate(host.dir());
    let bind =
        |name: &str| listen(&format!("bind 127.0.0.1:443 ssl crt {}", host.path(name).display()));
    let missing = everywhere(&host, &bind("none.pem"));
    assert_all_say(&missing, &["unable to stat SSL certificate", "none.pem", "put the PEM there"]);
    let without_key = everywhere(&host, &bind("cert.pem"));
    assert_all_say(&without_key, &["No Private Key found", "cat certificate.pem key.pem"]);
    let key_alone = check(&host, &bind("key.pem"));
    key_alone.assert_code(1).assert_says(&["unable to load certificate", "no PEM with a certif"]);
    let server = listen("server s 127.0.0.1:9 ssl verify required ca-file /none.pem");
    check(&host, &server).assert_code(1).assert_says(&["/none.pem", "ca-file @system-ca"]);
    assert!(fs::exists(host.path("lab.pem")).unwrap());
    check(&host, &bind("lab.pem")).assert_code(0);
}

#[test]
fn a_variable_that_is_not_set_is_named_with_its_place() {
    let host = Host::alone();
    let own = "haproxy.cfg:8: the environment variable NO_SUCH_PORT is not set";
    for line in ["bind \"127.0.0.1:$NO_SUCH_PORT\"", "bind 127.0.0.1:${NO_SUCH_PORT}"] {
        let told = everywhere(&host, &listen(line));
        assert_all_say(&told, &[own, "docker run -e NO_SUCH_PORT=", "missing port specification"]);
    }
    let address = check(&host, &listen("bind ${NO_SUCH_PORT}"));
    address.assert_code(1).assert_says(&["environment variable missing?", own, "hapilot: set the"]);
    // HAProxy takes this without a word.
    let silent = check(&host, &listen("server s \"${NO_SUCH_PORT}:80\""));
    silent.assert_code(0).assert_says(&[own]);
    let instead = check(&host, &listen("bind \"127.0.0.1:${NO_SUCH_PORT-81}\""));
    instead.assert_code(0);
    assert!(!instead.text.contains("NO_SUCH_PORT"), "{}", instead.text);
}

#[test]
fn what_is_missing_in_the_image_or_on_the_network_is_told_with_the_way_out() {
    let host = Host::alone();
    let name = everywhere(&host, &listen("server s nosuch.invalid:80"));
    let words = ["could not resolve address", "init-addr last,libc,none", "resolvers", "-dr"];
    assert_all_say(&name, &words);
    let page = "docker run -v ./errors:";
    for (line, theirs, ours) in [
        ("errorfile 400 /none/400.http", "error opening file", page),
        (
            "http-request return status 200 content-type a/b file /none/f",
            "error opening file",
            page,
        ),
        ("http-request deny if { src -f /none/list }", "failed to open pattern file", "./maps:"),
    ] {
        check(&host, &listen(line)).assert_code(1).assert_says(&[theirs, ours]);
    }
    for (line, theirs, ours) in [
        ("user nosuchuser", "cannot find user id for", "remove user, or give its number"),
        ("group nosuchgroup", "cannot find group id for", "remove group, or give its number"),
        ("lua-load /none/x.lua", "cannot open", "-v ./lua:"),
    ] {
        let text = format!("global\n {line}\n{}", listen(""));
        check(&host, &text).assert_code(1).assert_says(&[theirs, ours]);
    }
    let mark = format!("\u{feff}global\n{}", listen(""));
    check(&host, &mark).assert_code(1).assert_says(&["out of section", "without BOM"]);
}

#[test]
fn keep_alive_clients_that_would_lose_requests_are_warned_of_once() {
    const LACKS: &str = "without option idle-close-on-response (web)";
    let host = Host::alone();
    let plain = listen("http-request return status 200");
    check(&host, &plain).assert_code(0).assert_says(&[LACKS, "closed connection"]);
    let mut hapilot = host.serve(&plain);
    hapilot.reload();
    assert_eq!(hapilot.log.count(LACKS), 1, "not again at each reload");
    assert!(hapilot.status()["warnings"].to_string().contains(LACKS));
    host.write("haproxy.cfg", &listen("option idle-close-on-response\n http-request deny"));
    hapilot.reload();
    assert!(!hapilot.status()["warnings"].to_string().contains(LACKS));
    hapilot.stop();
    let fine = check(&host, &listen("option idle-close-on-response"));
    assert!(!fine.text.contains("idle-close"), "{}", fine.text);
    let embedded = host.container("hapilot").args(&["check"]).finish();
    assert!(!embedded.text.contains("idle-close"), "{}", embedded.text);
}

#[test]
fn a_port_that_is_taken_is_told_with_the_ways_out() {
    let host = Host::alone();
    let taken = host.namespace.enter(|| TcpListener::bind("127.0.0.1:81").unwrap());
    let words = ["(Address already in use)", "127.0.0.1:81", "ss -ltnp", "HAPROXY_PIDS=auto"];
    let text = listen("bind 127.0.0.1:81");
    let config = host.write("haproxy.cfg", &text);
    let started = host.container("hapilot").config(&config).finish();
    started.assert_code(1).assert_says(&words);
    assert_all_say(&[refused(&host, &text)], &words);
    drop(taken);
}
