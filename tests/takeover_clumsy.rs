//! Promise: settings of the two that do not fit together, and mistakes in a take-over, cost nobody a
//! connection, and leave the host as it was.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use lab::haproxy_cfg::{BROKEN, BROKEN_WORD, DEFAULTS, backend, frontend, proxy, transparent};
use lab::network::{BALANCER6, BALANCER6_OTHER, CLIENT4, CLIENT6, SERVER4, SERVER6};
use lab::spec::Spec;
use lab::takeover::{assert_all_answered, assert_ends_with_0, assert_none_lost, receipt};
use lab::turnstile::Turnstile;
use lab::versions::{via, web};
use lab::{Download, HalfOpen, Instance, LONG, Lab, Load, Pid, Plain, SHORT, get, until};
use nix::sys::signal::Signal;

fn started(lab: &Lab, name: &str, config: &str, settings: &[(&str, &str)]) -> Instance {
    let config = lab.balancer.write(&format!("{name}.cfg"), config);
    lab.balancer.container(name).config(&config).envs(settings).start()
}

const AUTO: (&str, &str) = ("HAPROXY_PIDS", "auto");

fn web6() -> String {
    format!("{BALANCER6}:80")
}

#[test]
fn each_with_another_firewall_both_are_transparent_throughout() {
    let config = transparent(":80", ":::80 v6only");
    for (old, new) in [("iptables", "nftables"), ("nftables", "iptables")] {
        let lab = Lab::new();
        let before = lab.balancer.state();
        let mut old = started(&lab, "old", &config, &[("HAPROXY_FIREWALL", old)]).serving();
        let download = Download::begin(&lab.client, &web(), "/slow");
        let loads = [web(), web6()].map(|address| Load::start(&lab.client, &address));
        let mut new = started(&lab, "new", &config, &[("HAPROXY_FIREWALL", new), AUTO]);
        assert_eq!(receipt(&mut new)["strategy"], "shared");
        for load in loads {
            assert_none_lost(load);
        }
        for (address, client) in [(web(), CLIENT4), (web6(), CLIENT6)] {
            assert_eq!(get(&lab.client, &address, "/").body(), client);
        }
        lab.origin.open_gate();
        assert!(download.finish().is_answered());
        assert_ends_with_0(&mut old);
        assert_eq!(get(&lab.client, &web(), "/").body(), CLIENT4);
        new.stop();
        lab.balancer.state().assert_same_as(&before);
    }
}

#[test]
fn a_successor_that_is_not_transparent_leaves_the_old_ones_sessions_so() {
    let config = transparent(":80", ":::80 v6only");
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut old = started(&lab, "old", &config, &[]).serving();
    let download = Download::begin(&lab.client, &web(), "/slow");
    let load = Load::start(&lab.client, &web());
    let off = [("HAPROXY_TRANSPARENT", "off"), AUTO];
    // What needs it is refused, and nobody is relieved.
    let config = lab.balancer.write("needs.cfg", &config);
    let needs = lab.balancer.container("needs").config(&config).envs(&off).finish();
    needs.assert_code(69).assert_says(&["needs.cfg:", "leave HAPROXY_TRANSPARENT=off away"]);
    assert_eq!(old.log.count("wants to take over"), 0, "{}", old.log.text());
    let mut new = started(&lab, "new", &proxy(":80", "new"), &off);
    receipt(&mut new);
    assert!(old.is_running());
    lab.origin.open_gate();
    assert!(download.finish().is_answered());
    assert_none_lost(load);
    assert_ends_with_0(&mut old);
    let rules = lab.balancer.state();
    assert!(!rules.part("iptables-save").contains("HAPILOT-"), "{rules:?}");
    new.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn without_ipv4_nobody_is_lost_either() {
    let config = |bind: &str, via: &str| {
        [
            DEFAULTS.to_owned(),
            frontend("web", &[bind], via, "origin"),
            backend("origin", "source [::] usesrc clientip", SERVER6),
        ]
        .concat()
    };
    let lab = Lab::new();
    for namespace in [&lab.client, &lab.balancer.namespace] {
        let names = namespace.run("ip -o -4 address show");
        for device in names.lines().filter_map(|line| line.split_whitespace().nth(1)) {
            namespace.run(&format!("ip -4 address flush dev {device}"));
        }
    }
    let before = lab.balancer.state();
    let mut old = started(&lab, "old", &config(":::80 v6only", "old"), &[]).serving();
    for bind in [":::80 v6only", ":::80 v6only interface b0"] {
        let load = Load::start(&lab.client, &web6());
        let other = format!("[{BALANCER6_OTHER}]:80").parse().unwrap();
        let half_open = HalfOpen::connect_to(&lab.client, other, 5);
        let name = if bind.contains("b0") { "separate" } else { "shared" };
        let mut new = started(&lab, name, &config(bind, name), &[AUTO]);
        if name == "separate" {
            new.log.await_line("guard raised");
        }
        assert_all_answered(half_open);
        let receipt = receipt(&mut new);
        assert_eq!(receipt["strategy"], name, "{receipt}");
        assert_none_lost(load);
        assert_ends_with_0(&mut old);
        assert_eq!(get(&lab.client, &web6(), "/").body(), CLIENT6);
        old = new;
    }
    old.stop();
    lab.balancer.state().assert_same_as(&before);
}

/// The new one came first, or was not told whom to relieve.
#[test]
fn two_that_serve_beside_each_other_are_told_of() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut one = started(&lab, "one", &proxy(":80", "one"), &[AUTO]).serving();
    let mut two = started(&lab, "two", &proxy(":80", "two"), &[]).serving();
    let told = two.log.await_line("another process listens at 0.0.0.0:80 as well");
    assert!(told.contains("WARN") && told.contains("HAPROXY_PIDS=auto"), "{told}");
    assert_eq!(one.log.count("another process listens"), 0, "{}", one.log.text());
    two.reload();
    assert_eq!(two.log.count("another process listens"), 1, "{}", two.log.text());
    two.stop();
    one.stop();
    lab.balancer.state().assert_same_as(&before);
}

/// It cannot be called back. Whoever is started again serves beside what it has to finish.
#[test]
fn a_successor_killed_while_the_old_one_drains_serves_when_it_is_started_again() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut old = started(&lab, "old", &proxy(":80", "old"), &[]).serving();
    let download = Download::begin(&lab.client, &web(), "/slow");
    let mut new = started(&lab, "new", &proxy(":80", "new"), &[AUTO]);
    receipt(&mut new);
    new.signal(Signal::SIGKILL);
    new.wait(SHORT);
    drop(new);
    let mut new = started(&lab, "new", &proxy(":80", "new"), &[AUTO]).serving();
    assert_eq!(via(&lab), "new");
    lab.origin.open_gate();
    assert!(download.finish().is_answered());
    assert_ends_with_0(&mut old);
    new.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_third_comes_while_the_first_still_drains() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut first = started(&lab, "first", &proxy(":80", "first"), &[]).serving();
    let download = Download::begin(&lab.client, &web(), "/slow");
    let load = Load::start(&lab.client, &web());
    let mut second = started(&lab, "second", &proxy(":80", "second"), &[AUTO]);
    receipt(&mut second);
    let another = Download::begin(&lab.client, &web(), "/slow");
    let mut third = started(&lab, "third", &proxy(":80", "third"), &[AUTO]);
    let receipt = receipt(&mut third);
    assert_eq!(receipt["predecessors"].as_array().unwrap().len(), 1, "{receipt}");
    third.log.await_line("is relieved already");
    assert!(first.is_running() && second.is_running());
    first.signal(Signal::SIGTERM);
    lab.origin.open_gate();
    for one in [download, another] {
        assert!(one.finish().is_answered());
    }
    assert_ends_with_0(&mut first);
    assert_ends_with_0(&mut second);
    assert_none_lost(load);
    third.stop();
    lab.balancer.state().assert_same_as(&before);
}

const NO_PTRACE: &str = "-sys_admin,-sys_ptrace";
/// It may look, and where the kernel has Yama not take.
const PTRACE: &str = "-sys_admin";
const TAKES_NOTHING: (&str, &str) = ("HAPILOT_FAULT", "duplicate@*=fail");

fn not_sharing(lab: &Lab) -> Plain {
    let global = "noreuseport\n  user haproxy\n  group haproxy";
    let config = format!("global\n  {global}\n{}", proxy(":80", "old"));
    Plain::start(&lab.balancer, "old", "-W -db", &config)
}

/// A HAProxy without hapilot that was paused for a successor, which was killed then.
fn paused_by_one_that_was_killed(lab: &Lab, rights: &str) -> Plain {
    let old = not_sharing(lab);
    let mut new = relieving(lab, &old, &proxy(":80", "new"), rights).start();
    new.log.await_line("INFO paused");
    new.signal(Signal::SIGKILL);
    new.wait(SHORT);
    old
}

fn relieving<'l>(lab: &'l Lab, old: &Plain, config: &str, rights: &str) -> Spec<'l> {
    let path = lab.balancer.write("new.cfg", config);
    let spec = lab.balancer.container("new").config(&path).pid(Pid::OfTheHost);
    let spec = spec.env("HAPROXY_PIDS", &old.pid().to_string()).envs(&[TAKES_NOTHING]);
    spec.without_capabilities(rights)
}

/// Nobody else would wake it.
#[test]
fn a_successor_killed_while_the_old_one_is_paused_serves_when_it_is_started_again() {
    for rights in [NO_PTRACE, PTRACE] {
        let lab = Lab::new();
        let before = lab.balancer.state();
        let mut old = paused_by_one_that_was_killed(&lab, rights);
        let mut new = relieving(&lab, &old, &proxy(":80", "new"), rights).start();
        let receipt = receipt(&mut new);
        assert_eq!(receipt["predecessors"][0]["rung"], "separate", "{receipt}");
        old.wait_gone();
        assert_eq!(via(&lab), "new");
        new.stop();
        lab.balancer.state().assert_same_as(&before);
    }
}

#[test]
fn who_was_paused_by_one_that_was_killed_serves_again_though_the_next_start_fails() {
    let lab = Lab::new();
    let mut old = paused_by_one_that_was_killed(&lab, NO_PTRACE);
    let refused = relieving(&lab, &old, BROKEN, NO_PTRACE).finish();
    refused.assert_code(1).assert_says(&[BROKEN_WORD]);
    assert_eq!(via(&lab), "old");
    assert!(old.is_running());
}

/// It is promised to nobody, as a hapilot would be: both relieve it, and the younger the older one.
#[test]
fn two_that_relieve_a_haproxy_at_once_come_to_rest_with_one_serving() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let exposed = "stats socket /run/admin.sock level admin expose-fd listeners";
    let config = format!("global\n  {exposed}\n{}", proxy(":80", "old"));
    let mut old = Plain::start(&lab.balancer, "old", "-db", &config);
    let load = Load::start(&lab.client, &web());
    let mut both = ["x", "y"].map(|name| {
        let path = lab.balancer.write(&format!("{name}.cfg"), &proxy(":80", name));
        let spec = lab.balancer.container(name).config(&path).pid(Pid::OfTheHost);
        spec.envs(&[AUTO]).start()
    });
    old.wait_gone();
    let ended = until(LONG, "one of both ends", || both.iter_mut().position(|o| !o.is_running()));
    let [mut x, mut y] = both;
    let (ended, stays) = if ended == 0 { (&mut x, &mut y) } else { (&mut y, &mut x) };
    assert_ends_with_0(ended);
    stays.await_serving();
    assert_none_lost(load);
    stays.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn who_was_paused_by_one_that_hangs_serves_again_at_its_end() {
    let lab = Lab::new();
    let mut old = not_sharing(&lab);
    let spec = relieving(&lab, &old, &proxy(":80", "new"), NO_PTRACE);
    // What comes behind the pause: the ports become free.
    let spec = spec.envs(&[("HAPILOT_FAULT", "wait@2=halt"), ("HAPROXY_STOP_DEADLINE", "3s")]);
    let mut new = spec.start();
    new.log.await_line("fault: Halt wait@2");
    new.log.await_line("INFO paused");
    new.signal(Signal::SIGTERM);
    new.wait(LONG);
    until(LONG, "the old one answers", || {
        get(&lab.client, &web(), "/").is_answered().then_some(())
    });
    assert!(old.is_running());
}

/// Leads clients of port 80 to that port, with or without anybody there.
fn intercepting<'l>(spec: Spec<'l>, lab: &'l Lab, name: &str, port: u16) -> Spec<'l> {
    let binds = [format!(":{port} transparent"), format!(":::{port} transparent v6only")];
    let config = lab.balancer.write(&format!("{name}.cfg"), &transparent(&binds[0], &binds[1]));
    spec.config(&config).env("HAPROXY_INTERCEPT", &format!("80:{port}"))
}

fn await_served(lab: &Lab) {
    let target = format!("{SERVER4}:80");
    until(LONG, "who is intercepted is served", || {
        get(&lab.client, &target, "/").is_answered().then_some(())
    });
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Killed {
    /// Before it has said that it holds still.
    Asked,
    /// Before it is told to let go.
    Reserved,
    Draining,
}

/// Its diversion is ahead of the successor's, and leads to nobody.
#[test]
fn what_a_predecessor_has_on_the_host_that_is_killed_in_a_take_over_is_removed() {
    for when in [Killed::Asked, Killed::Reserved, Killed::Draining] {
        let lab = Lab::new();
        let before = lab.balancer.state();
        let turnstile = Turnstile::new(&lab);
        let spec = turnstile.within(&lab, "old", ":8080");
        let mut old = intercepting(spec, &lab, "old", 8080).start().serving();
        let download = Download::begin(&lab.client, &format!("{SERVER4}:80"), "/slow");
        if when == Killed::Asked {
            old.signal(Signal::SIGHUP);
            old.await_status("it reloads", |status| status["state"] == "reloading");
        }
        let spec = turnstile.within(&lab, "new", ":9090").envs(&[AUTO]);
        let mut new = intercepting(spec, &lab, "new", 9090).start();
        match when {
            Killed::Asked => old.log.await_line("it wants to take over"),
            Killed::Reserved => new.log.await_line("started HAProxy"),
            Killed::Draining => {
                turnstile.open();
                receipt(&mut new);
                assert!(old.is_running(), "{}", old.log.text());
                String::new()
            }
        };
        old.signal(Signal::SIGKILL);
        old.wait(SHORT);
        turnstile.open();
        new.log.await_line("removed what a dead instance had left on the host");
        new.await_serving();
        await_served(&lab);
        new.stop();
        lab.balancer.state().assert_same_as(&before);
        drop(download);
    }
}

/// For as long as it drains, clients would be led to where nobody listens any more.
#[test]
fn a_diversion_that_could_not_be_removed_at_once_is_gone_before_the_old_one_is() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let spec = lab.balancer.container("old").env("HAPILOT_FAULT", "undo@2=fail");
    let mut old = intercepting(spec, &lab, "old", 8080).start().serving();
    let download = Download::begin(&lab.client, &format!("{SERVER4}:80"), "/slow");
    let spec = lab.balancer.container("new").envs(&[AUTO]);
    let mut new = intercepting(spec, &lab, "new", 9090).start();
    receipt(&mut new);
    old.log.await_line("fault at undo@2");
    await_served(&lab);
    assert!(old.is_running(), "{}", old.log.text());
    lab.origin.open_gate();
    assert!(download.finish().is_answered());
    assert_ends_with_0(&mut old);
    new.stop();
    lab.balancer.state().assert_same_as(&before);
}

/// Were both killed now and the new one could not start again, the old one would stay away for it.
#[test]
fn for_whom_a_successor_stands_it_remembers_once_that_one_has_let_go() {
    let lab = Lab::new();
    let spec = |name| {
        let config = lab.balancer.write(&format!("{name}.cfg"), &proxy(":80", name));
        lab.balancer.container(name).config(&config)
    };
    let hangs = spec("old").env("HAPILOT_FAULT", "mark@1=hang").start().serving();
    let lineage = {
        let mut new = spec("new").envs(&[AUTO]).start();
        hangs.log.await_line("fault: Hang mark@1");
        new.log.await_line("told to let go");
        new.signal(Signal::SIGKILL);
        new.wait(SHORT);
        new.run_directory().join("lineage")
    };
    assert!(!lineage.exists(), "{lineage:?}");
    drop(hangs);
    let mut old = spec("old").start().serving();
    let mut new = spec("new").envs(&[AUTO]).start();
    receipt(&mut new);
    assert_ends_with_0(&mut old);
    assert!(lineage.exists());
    new.stop();
}
