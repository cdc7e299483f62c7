//! Promise: the origin sees the clients' own addresses, and the host is left as it was.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use lab::network::{BALANCER4, BALANCER6, CLIENT4, CLIENT6, SERVER4, SERVER6};
use lab::origin::HALF;
use lab::{Download, HostState, Instance, Lab, Outcome, Pid, SHORT, get, haproxy_cfg, until};
use nix::sys::signal::Signal;

const DUMPS: [&str; 5] = [
    "iptables-save",
    "ip6tables-save",
    "iptables-legacy-save",
    "ip6tables-legacy-save",
    "nft list ruleset",
];

const NFTABLES: (&str, &str) = ("HAPROXY_FIREWALL", "nftables");

/// A rule that somebody made with the legacy program: by it hapilot knows what this host uses.
fn make_legacy(lab: &Lab) {
    for program in ["iptables-legacy", "ip6tables-legacy"] {
        lab.balancer.namespace.run(&format!("{program} -w -A INPUT -p tcp --dport 9 -j DROP"));
    }
}

fn start_transparent(lab: &Lab) -> Instance {
    lab.balancer.serve(&haproxy_cfg::transparent(":80", ":::80 v6only"))
}

/// A `transparent` bind for each family, and an instance that diverts port 80 to them.
fn start_intercepting(lab: &Lab) -> Instance {
    start_intercepting_with(lab, &[])
}

fn start_intercepting_with(lab: &Lab, settings: &[(&str, &str)]) -> Instance {
    let config = haproxy_cfg::transparent(":8080 transparent", ":::8080 transparent v6only");
    let config = lab.balancer.write("haproxy.cfg", &config);
    let spec = lab.balancer.container("hapilot").config(&config).envs(settings);
    spec.env("HAPROXY_INTERCEPT", "80:8080").start().serving()
}

fn start_with_nftables(lab: &Lab) -> Instance {
    let config = haproxy_cfg::transparent(":80", ":::80 v6only");
    let config = lab.balancer.write("haproxy.cfg", &config);
    lab.balancer.container("hapilot").config(&config).envs(&[NFTABLES]).start().serving()
}

fn assert_clients_seen(lab: &Lab, address4: &str, address6: &str) {
    lab.origin.take_peers();
    for (address, client) in [(address4, CLIENT4), (address6, CLIENT6)] {
        let outcome = get(&lab.client, &format!("{address}:80"), "/");
        assert_eq!(outcome.body(), client, "what the origin takes for its client");
        let lab::Outcome::Answered(answer) = outcome else { unreachable!() };
        assert!(answer.head.contains("x-via: hapilot"), "not proxied: {}", answer.head);
        assert_eq!(lab.origin.take_peers(), [client.parse::<std::net::IpAddr>().unwrap()]);
    }
}

/// Which of the firewall programs shows rules of ours.
fn ours(state: &HostState) -> Vec<&'static str> {
    let name = |dump: &&str| if dump.starts_with("nft") { "inet HAPILOT-" } else { "HAPILOT-" };
    DUMPS.into_iter().filter(|dump| state.part(dump).contains(name(dump))).collect()
}

#[test]
fn the_origin_sees_the_clients_address_and_a_stop_leaves_nothing() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = start_transparent(&lab);
    assert_clients_seen(&lab, BALANCER4, BALANCER6);
    let during = lab.balancer.state();
    assert_eq!(ours(&during), ["iptables-save", "ip6tables-save"]);
    assert_ne!(during.part("leases"), "");
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn on_a_legacy_host_the_same_is_done_with_the_legacy_program() {
    let lab = Lab::new();
    make_legacy(&lab);
    let before = lab.balancer.state();
    let mut hapilot = start_transparent(&lab);
    assert_clients_seen(&lab, BALANCER4, BALANCER6);
    let during = lab.balancer.state();
    assert_eq!(ours(&during), ["iptables-legacy-save", "ip6tables-legacy-save"]);
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn with_nftables_the_same_is_done_in_a_table_that_is_ours_alone() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = start_with_nftables(&lab);
    assert_clients_seen(&lab, BALANCER4, BALANCER6);
    let during = lab.balancer.state();
    assert_eq!(ours(&during), ["nft list ruleset"]);
    assert_eq!(during.part("nft list ruleset").matches("flags owner").count(), 1);
    hapilot.log.await_line("firewall=\"nftables (it is asked for)\"");
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn with_nftables_a_kill_ends_everything_that_diverts_at_once_and_the_next_start_removes_the_rest() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let direct = |address: &str| get(&lab.client, &format!("{address}:80"), "/");
    let mut hapilot = start_intercepting_with(&lab, &[NFTABLES]);
    assert_clients_seen(&lab, SERVER4, SERVER6);
    hapilot.signal(Signal::SIGKILL);
    hapilot.wait(SHORT);
    // HAProxy went with its PID 1: were a rule left, the client would not reach the server.
    assert_eq!(direct(SERVER4), Outcome::Refused);
    assert_eq!(direct(SERVER6), Outcome::Refused);
    let left = lab.balancer.state();
    let rules = left.part("nft list ruleset");
    assert!(rules.contains("-RECORD") && !rules.contains("chain"), "{rules}");
    let mut next = start_intercepting_with(&lab, &[NFTABLES]);
    assert_clients_seen(&lab, SERVER4, SERVER6);
    next.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn with_nftables_a_wildcard_listener_takes_nothing_that_goes_elsewhere() {
    let lab = Lab::new();
    let config = haproxy_cfg::transparent(":8000 transparent", ":::8000 transparent v6only");
    let config = lab.balancer.write("haproxy.cfg", &config);
    for firewall in ["iptables", "nftables"] {
        let spec = lab.balancer.container(firewall).config(&config);
        let mut hapilot = spec.env("HAPROXY_FIREWALL", firewall).start().serving();
        // Port 8000 is the server's as well: its clients pass by here.
        let lab::Outcome::Answered(answer) = get(&lab.client, &format!("{SERVER4}:8000"), "/")
        else {
            panic!("{firewall}: the server does not answer")
        };
        assert!(!answer.head.contains("x-via"), "{firewall}: it was diverted: {}", answer.head);
        hapilot.stop();
    }
}

#[test]
fn with_intercept_a_client_that_addresses_the_server_itself_is_proxied() {
    let lab = Lab::new();
    let direct = |address: &str| get(&lab.client, &format!("{address}:80"), "/");
    assert_eq!(direct(SERVER4), lab::Outcome::Refused, "nobody listens there");
    let before = lab.balancer.state();
    let mut hapilot = start_intercepting(&lab);
    assert_clients_seen(&lab, SERVER4, SERVER6);
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
    assert_eq!(direct(SERVER4), lab::Outcome::Refused, "the way is the client's own again");
}

#[test]
fn with_intercept_and_nftables_a_client_that_addresses_the_server_itself_is_proxied() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = start_intercepting_with(&lab, &[NFTABLES]);
    assert_clients_seen(&lab, SERVER4, SERVER6);
    let first = hapilot.current();
    hapilot.reload();
    hapilot.await_successor(&first);
    assert_clients_seen(&lab, SERVER4, SERVER6);
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
    let direct = get(&lab.client, &format!("{SERVER4}:80"), "/");
    assert_eq!(direct, Outcome::Refused, "the way is the client's own again");
}

#[test]
fn with_intercept_on_a_legacy_host_a_client_that_addresses_the_server_itself_is_proxied() {
    let lab = Lab::new();
    make_legacy(&lab);
    let before = lab.balancer.state();
    let mut hapilot = start_intercepting(&lab);
    assert_clients_seen(&lab, SERVER4, SERVER6);
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_stop_ends_the_interception_at_once_and_what_it_began_at_the_end() {
    a_stop_ends_the_interception("iptables");
}

#[test]
fn with_nftables_a_stop_ends_the_interception_at_once_and_what_it_began_at_the_end() {
    a_stop_ends_the_interception("nftables");
}

fn a_stop_ends_the_interception(firewall: &str) {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = start_intercepting_with(&lab, &[("HAPROXY_FIREWALL", firewall)]);
    let intercepted = format!("{SERVER4}:80");
    let mut download = Download::begin(&lab.client, &intercepted, "/slow");
    hapilot.signal(Signal::SIGTERM);
    until(SHORT, "new clients go their own way", || {
        (get(&lab.client, &intercepted, "/") == Outcome::Refused).then_some(())
    });
    assert!(hapilot.is_running() && download.is_open());
    lab.origin.open_gate();
    assert_eq!(download.finish().body().len(), 2 * HALF);
    assert_eq!(hapilot.wait(SHORT).code(), Some(0));
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn interception_is_never_left_without_a_listener() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = start_intercepting(&lab);
    let elsewhere = haproxy_cfg::transparent(":9090", ":::9090 v6only");
    lab.balancer.write("haproxy.cfg", &elsewhere);
    let output = hapilot.command(&["reload"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("HAPROXY_INTERCEPT=80:8080: HAProxy listens on no port 8080"), "{text}");
    assert_clients_seen(&lab, SERVER4, SERVER6);
    hapilot.stop();
    let config = lab.balancer.path("haproxy.cfg");
    let spec = lab.balancer.container("next").config(&config).env("HAPROXY_INTERCEPT", "80:8080");
    spec.finish().assert_code(1).assert_says(&["listens on no port 8080"]);
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn other_ports_and_other_traffic_are_not_intercepted() {
    let lab = Lab::new();
    let hapilot = start_intercepting(&lab);
    let direct = get(&lab.client, &format!("{SERVER4}:8000"), "/");
    assert_eq!(direct.body(), CLIENT4);
    let lab::Outcome::Answered(answer) = direct else { unreachable!() };
    assert!(!answer.head.contains("x-via"), "port 8000 was not to be diverted: {}", answer.head);
    drop(hapilot);
}

#[test]
fn a_reload_keeps_showing_the_clients_address() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = start_transparent(&lab);
    let first = hapilot.current();
    hapilot.reload();
    hapilot.await_successor(&first);
    assert_clients_seen(&lab, BALANCER4, BALANCER6);
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn every_item_in_the_status_names_the_command_that_removes_it() {
    for (firewall, own) in [("iptables", "-t mangle -F"), ("nftables", "nft delete table inet")] {
        let lab = Lab::new();
        let before = lab.balancer.state();
        let config = haproxy_cfg::transparent(":80", ":::80 v6only");
        let config = lab.balancer.write("haproxy.cfg", &config);
        let spec = lab.balancer.container("hapilot").config(&config);
        let mut hapilot = spec.env("HAPROXY_FIREWALL", firewall).start().serving();
        let host = hapilot.status()["host"].to_string();
        for part in ["ip rule del", "ip route del", own, "ip_nonlocal_bind"] {
            assert!(host.contains(part), "{part:?} is missing in {host}");
        }
        hapilot.stop();
        lab.balancer.state().assert_same_as(&before);
    }
}

#[test]
fn where_no_iptables_program_is_there_nftables_is_taken_and_it_is_said_why() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = haproxy_cfg::transparent(":80", ":::80 v6only");
    let config = lab.balancer.write("haproxy.cfg", &config);
    let bin = lab.balancer.path("bin");
    std::fs::create_dir(&bin).unwrap();
    let search = std::env::var_os("PATH").unwrap();
    for program in ["haproxy", "mount", "nsenter", "sh"] {
        let mut places = std::env::split_paths(&search).map(|directory| directory.join(program));
        let place = places.find(|path| path.exists()).unwrap();
        std::os::unix::fs::symlink(place, bin.join(program)).unwrap();
    }
    let spec = lab.balancer.container("hapilot").config(&config);
    let mut hapilot = spec.env("PATH", bin.to_str().unwrap()).start();
    hapilot.log.await_line("firewall=\"nftables (no iptables program in PATH=");
    hapilot.await_serving();
    assert_clients_seen(&lab, BALANCER4, BALANCER6);
    assert_eq!(ours(&lab.balancer.state()), ["nft list ruleset"]);
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn where_proc_sys_is_read_only_it_warns_and_proxies_transparently_all_the_same() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = haproxy_cfg::transparent(":80", ":::80 v6only");
    let config = lab.balancer.write("haproxy.cfg", &config);
    let spec = lab.balancer.container("hapilot").config(&config).read_only_proc_sys();
    let mut hapilot = spec.start().serving();
    assert_clients_seen(&lab, BALANCER4, BALANCER6);
    assert!(hapilot.log.count("ip_nonlocal_bind") >= 1, "the warning is missing");
    let state = lab.balancer.state();
    assert_eq!(state.part("sysctl net"), before.part("sysctl net"));
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn off_changes_nothing_on_the_host_and_still_proxies() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = lab.balancer.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "plain"));
    let spec = lab.balancer.container("hapilot").config(&config).env("HAPROXY_TRANSPARENT", "off");
    let hapilot = spec.start().serving();
    let seen = get(&lab.client, &format!("{BALANCER4}:80"), "/");
    assert_eq!(seen.body(), "10.2.0.1", "the origin sees the balancer");
    let during = lab.balancer.state();
    assert_eq!(ours(&during), Vec::<&str>::new());
    for part in ["ip rule show", "ip route show table all", "sysctl net", "nft list ruleset"] {
        assert_eq!(during.part(part), before.part(part));
    }
    drop(hapilot);
}

#[test]
fn beside_the_hosts_processes_it_works_and_cleans_up_as_well() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = haproxy_cfg::transparent(":80", ":::80 v6only");
    let config = lab.balancer.write("haproxy.cfg", &config);
    let spec = lab.balancer.container("hapilot").config(&config).pid(Pid::OfTheHost);
    let mut hapilot = spec.start().serving();
    assert_clients_seen(&lab, BALANCER4, BALANCER6);
    hapilot.stop();
    assert_eq!(hapilot.processes(), Vec::<u32>::new());
    lab.balancer.state().assert_same_as(&before);
}
