//! Promise: what of this host breaks transparent proxying, though nothing is lacking, is warned of at
//! the start, in `check` and in `status`; the cure that is named is one. Each is tried with packets.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use lab::network::{BALANCER4, BALANCER6, ORIGIN_PORT};
use lab::{Instance, Lab, get, haproxy_cfg};

const INTERFACES: [&str; 2] = ["b0", "b1"];

fn proxy() -> String {
    haproxy_cfg::transparent(":80", ":::80 v6only")
}

fn works(lab: &Lab, address: &str) -> bool {
    get(&lab.client, &format!("{address}:80"), "/").is_answered()
}

/// A server that does not answer is known as such in a second.
fn hasty(text: &str) -> String {
    text.replace("timeout connect 5s", "timeout connect 500ms\n  retries 0")
}

fn status(hapilot: &Instance) -> String {
    String::from_utf8(hapilot.command(&["status"]).stdout).unwrap()
}

fn check(lab: &Lab) -> String {
    let config = lab.balancer.path("haproxy.cfg");
    lab.balancer.container("check").args(&["check"]).config(&config).finish().text
}

/// Said at the start, in `check` and in `status`, or nowhere.
fn assert_told(lab: &Lab, words: &str, expected: bool) {
    let mut hapilot = lab.balancer.serve(&hasty(&proxy()));
    let everywhere = [hapilot.log.text(), status(&hapilot), check(lab)];
    for text in everywhere {
        assert_eq!(text.contains(words), expected, "{words:?} in:\n{text}");
    }
    hapilot.stop();
}

#[test]
fn marks_that_count_for_the_way_back_stop_every_client_and_the_cure_helps() {
    let lab = Lab::new();
    let set = |key: &str, value: &str| lab.balancer.namespace.set_sysctl(key, value);
    let words = "net.ipv4.conf.all.src_valid_mark=1";
    let mut hapilot = lab.balancer.serve(&hasty(&proxy()));
    assert!(works(&lab, BALANCER4), "strict rp_filter alone does no harm");
    set("net.ipv4.conf.all.src_valid_mark", "1");
    assert!(!works(&lab, BALANCER4) && works(&lab, BALANCER6));
    hapilot.stop();
    assert_told(&lab, words, true);
    for interface in INTERFACES {
        set(&format!("net.ipv4.conf.{interface}.accept_local"), "1");
        set(&format!("net.ipv4.conf.{interface}.rp_filter"), "2");
    }
    let mut hapilot = lab.balancer.serve(&hasty(&proxy()));
    assert!(works(&lab, BALANCER4), "the cure");
    assert_eq!(hapilot.log.count(words), 0);
    // It is looked for at each reload as well.
    set("net.ipv4.conf.b1.accept_local", "0");
    hapilot.reload();
    hapilot.log.await_line("makes the kernel drop marked packets on b1");
    hapilot.stop();
}

#[test]
fn without_transparent_proxying_in_use_nothing_is_said_of_it() {
    let lab = Lab::new();
    lab.balancer.namespace.set_sysctl("net.ipv4.conf.all.src_valid_mark", "1");
    let mut hapilot = lab.balancer.serve(&haproxy_cfg::proxy(":80", "v1"));
    assert_eq!(hapilot.log.count("src_valid_mark"), 0);
    hapilot.stop();
}

#[test]
fn lookups_by_mark_after_ours_stop_every_client_and_without_the_mark_they_do_not() {
    let lab = Lab::new();
    let host = &lab.balancer.namespace;
    let rule = |priority: i32, lookup: &str| {
        let rules = format!(
            "table inet other {{\nchain way {{\ntype filter hook prerouting priority {priority};\n\
             {lookup} oif missing drop\n}}\n}}\n"
        );
        let file = lab.balancer.write("rules.nft", &rules);
        host.run(&format!("nft -f {}", file.display()));
    };
    let words = "nftables chain inet other way looks up senders by mark";
    for (priority, lookup, breaks) in [
        (10, "fib saddr . mark . iif", true),
        (10, "fib saddr . iif", false),
        (-300, "fib saddr . mark . iif", false),
    ] {
        rule(priority, lookup);
        let mut hapilot = lab.balancer.serve(&hasty(&proxy()));
        for address in [BALANCER4, BALANCER6] {
            assert_eq!(works(&lab, address), !breaks, "{priority} {lookup} {address}");
        }
        hapilot.stop();
        assert_told(&lab, words, breaks);
        host.run("nft delete table inet other");
    }
}

#[test]
fn what_was_tried_and_does_no_harm_is_not_warned_of() {
    let lab = Lab::new();
    let host = &lab.balancer.namespace;
    host.set_sysctl("net.ipv4.ip_forward", "0");
    host.set_sysctl("net.ipv6.conf.all.forwarding", "0");
    for program in ["iptables", "ip6tables"] {
        for table in ["raw", "mangle"] {
            host.run(&format!(
                "{program} -w -t {table} -A PREROUTING -m rpfilter --validmark --invert -j DROP"
            ));
        }
    }
    let text = haproxy_cfg::transparent(":8080 transparent", ":::8080 transparent v6only");
    let config = lab.balancer.write("haproxy.cfg", &text);
    let spec = lab.balancer.container("hapilot").config(&config);
    let mut hapilot = spec.env("HAPROXY_INTERCEPT", "80:8080").start().serving();
    assert!(works(&lab, lab::network::SERVER4) && works(&lab, lab::network::SERVER6));
    for word in ["rpfilter", "forwarding", "ip_forward"] {
        assert_eq!(hapilot.log.count(word), 0, "{word}");
    }
    hapilot.stop();
}

#[test]
fn a_server_on_this_very_host_never_answers_through_usesrc_and_the_cure_helps() {
    let lab = Lab::new();
    let own = "10.2.0.1";
    let server = format!(
        "listen server\n  bind {own}:{ORIGIN_PORT}\n  \
         http-request return status 200 content-type text/plain lf-string %[src]\n"
    );
    let text = |line: &str| {
        format!(
            "{}{server}{}backend origin\n  source 0.0.0.0 usesrc clientip\n  server s {own}:{ORIGIN_PORT}{line}\n",
            hasty(haproxy_cfg::DEFAULTS),
            haproxy_cfg::frontend("web", &[":80"], "v1", "origin")
        )
    };
    let mut hapilot = lab.balancer.serve(&text(""));
    let told = hapilot.log.await_line("the server 10.2.0.1 is on this very host");
    assert!(told.contains("write source 0.0.0.0"), "{told}");
    assert!(status(&hapilot).contains(&told[told.find("the server").unwrap()..]), "{told}");
    assert!(!works(&lab, BALANCER4));
    lab.balancer.write("haproxy.cfg", &text(" source 0.0.0.0"));
    hapilot.reload();
    assert_eq!(get(&lab.client, &format!("{BALANCER4}:80"), "/").body(), own);
    assert!(!status(&hapilot).contains("is on this very host"));
    hapilot.stop();
}
