//! Promise: a program of the host that hangs keeps hapilot from nothing, in no state; what it leaves is
//! named. HAProxy serves on, signals are heard, and questions are answered within a second.
//!
//! Fakes stand before the real programs in `PATH`. Told so, one hangs before it has done its work, or
//! after it.

#![allow(clippy::panic, reason = "a test says so by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use hapilot::control::client::Client;
use hapilot::control::protocol::{Answer, Request, SOCKET};
use nix::sys::signal::Signal;

use crate::lab::haproxy_cfg::DEFAULTS;
use crate::lab::process::{kill, name};
use crate::lab::{Host, HostState, Instance, LONG, SHORT, get, until};

const PROGRAMS: [&str; 7] = [
    "iptables-nft",
    "ip6tables-nft",
    "iptables-nft-restore",
    "ip6tables-nft-restore",
    "iptables-nft-save",
    "ip6tables-nft-save",
    "nft",
];
/// What puts a guard in the way, and what takes it away.
const RAISE: &str = "-I PREROUTING 1 .*-GUARD";
const REMOVE: &str = "-[DFX] .*-GUARD";

struct Scene {
    instance: Instance,
    before: HostState,
    host: Host,
}

fn config(option: &str) -> String {
    format!("{DEFAULTS}frontend web\n  bind :8080 {option}\n  http-request return status 200\n")
}

/// A `PATH` with programs that hang when their arguments or their input are like a pattern in the
/// file `hang`; like one in `late`, when they have done what they were told. One that is named in `all`
/// hangs whatever it is told.
fn fakes(host: &Host) -> String {
    let path = std::env::var("PATH").unwrap();
    let bin = host.path("bin");
    fs::create_dir(&bin).unwrap();
    for program in PROGRAMS {
        let real = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.exists());
        let script = format!(
            "#!/bin/sh\nd={}\ngrep -qx {program} $d/all 2> /dev/null && sleep 987 && exit 1\ntext=$(cat)\n\
             told() {{ [ -s $d/$1 ] && printf '%s\\n%s' \"$*\" \"$text\" | grep -Eqf $d/$1; }}\n\
             told hang \"$@\" && sleep 987 && exit 1\n\
             printf '%s\\n' \"$text\" | {} \"$@\" || exit $?\n\
             told late \"$@\" && sleep 987\nexit 0\n",
            bin.display(),
            real.unwrap().display()
        );
        let fake = host.write(&format!("bin/{program}"), &script);
        fs::set_permissions(fake, fs::Permissions::from_mode(0o755)).unwrap();
    }
    format!("{}:{path}", bin.display())
}

impl Scene {
    /// One that serves, with a reload wanted that needs a guard.
    fn begin(settings: &[(&str, &str)]) -> Self {
        let mut scene = Self::start(settings, &[]);
        scene.instance.await_serving();
        scene
    }

    /// Where programs like that hang from the start on.
    fn start(settings: &[(&str, &str)], hang: &[&str]) -> Self {
        let host = Host::alone();
        let before = host.state();
        let config = host.write("haproxy.cfg", &config(""));
        let path = fakes(&host);
        host.write("bin/hang", &hang.join("\n"));
        let spec = host.container("hapilot").config(&config).env("PATH", &path);
        let spec = spec.env("HAPROXY_RELOAD_GUARD", "drop").env("HAPROXY_FIREWALL", "iptables");
        let instance = spec.envs(settings).start();
        Self { instance, before, host }
    }

    /// Both questions are answered within a second, while a program hangs all the time. The state.
    fn answers(&self) -> String {
        let socket = self.instance.run_directory().join(SOCKET);
        let ask = |request| Client::connect(&socket).unwrap().ask(&request, Some(AT_ONCE)).unwrap();
        until(LONG, "a program hangs all the time", || {
            let stuck = self.await_stuck();
            let Answer::Status(status) = ask(Request::Status) else { panic!("no status") };
            let Answer::Health { .. } = ask(Request::Health) else { panic!("no health") };
            // A bounded one may have been killed meanwhile, which shows nothing.
            self.stuck().iter().any(|pid| stuck.contains(pid)).then_some(status.state)
        })
    }

    fn tell(&self, file: &str, patterns: &[&str]) {
        self.host.write(&format!("bin/{file}"), &patterns.join("\n"));
    }

    fn reload(&self) {
        self.host.write("haproxy.cfg", &config("interface lo"));
        self.instance.signal(Signal::SIGHUP);
    }

    /// Those of its programs that hang now.
    fn stuck(&self) -> Vec<u32> {
        let all = self.instance.processes().into_iter();
        all.filter(|pid| name(*pid).is_some_and(|name| name == "sleep")).collect()
    }

    fn await_stuck(&self) -> Vec<u32> {
        until(SHORT, "a program hangs", || Some(self.stuck()).filter(|all| !all.is_empty()))
    }

    /// New clients are served, and questions answered within a second.
    fn serves_and_answers(&self, what: &str) {
        let answer = get(&self.host.namespace, "127.0.0.1:8080", "/");
        assert!(answer.is_answered(), "{what}: {answer:?}");
        let socket = self.instance.run_directory().join(SOCKET);
        for request in [Request::Health, Request::Status] {
            let begun = Instant::now();
            let answer = Client::connect(&socket).unwrap().ask(&request, Some(SHORT));
            assert!(answer.is_ok(), "{what}: {answer:?}");
            assert!(begun.elapsed() < AT_ONCE, "{what}: {request:?} took {:?}", begun.elapsed());
        }
    }

    fn stop_within(&mut self, deadline: Duration) -> Option<i32> {
        let begun = Instant::now();
        self.instance.signal(Signal::SIGTERM);
        let status = self.instance.wait(LONG);
        let took = begun.elapsed();
        assert!(took <= deadline, "it took {took:?}");
        self.instance.log.wait_closed();
        status.code()
    }

    fn sweep(&self) {
        for file in ["hang", "late", "all"] {
            self.tell(file, &[]);
        }
        self.host.container("sweep").args(&["sweep"]).finish().assert_code(0);
        self.host.state().assert_same_as(&self.before);
    }
}

/// As promised.
const AT_ONCE: Duration = Duration::from_secs(1);
const DEADLINE: &str = "3s";
const IN_TIME: Duration = Duration::from_secs(3);

#[test]
fn a_stop_while_a_guard_goes_up_leaves_nothing_inside_its_deadline() {
    for file in ["hang", "late"] {
        let mut scene = Scene::begin(&[("HAPROXY_STOP_DEADLINE", DEADLINE)]);
        scene.tell(file, &[RAISE]);
        scene.reload();
        scene.await_stuck();
        assert_eq!(scene.stop_within(IN_TIME), Some(0), "{file}");
        scene.host.state().assert_same_as(&scene.before);
    }
}

#[test]
fn what_cannot_be_removed_when_a_stop_comes_is_named_inside_its_deadline() {
    let mut scene = Scene::begin(&[("HAPROXY_STOP_DEADLINE", DEADLINE)]);
    scene.tell("late", &[RAISE]);
    scene.tell("hang", &[REMOVE]);
    scene.reload();
    scene.await_stuck();
    assert_eq!(scene.stop_within(IN_TIME), Some(70));
    assert!(!scene.host.state().difference(&scene.before).is_empty(), "something is left");
    let text = scene.instance.log.text();
    let named = text.split("the host is not as it was: could not undo ").nth(1).unwrap();
    for program in ["iptables-nft", "ip6tables-nft"] {
        for command in ["-D PREROUTING -p tcp --syn -j HAPILOT-", "-F HAPILOT-"] {
            let command = format!("{program} -t mangle {command}");
            assert!(named.contains(&command), "{command}: {text}");
        }
    }
    scene.sweep();
}

#[test]
fn a_guard_whose_removal_hangs_is_named_at_the_next_stop() {
    let mut scene = Scene::begin(&[]);
    scene.tell("hang", &[REMOVE]);
    scene.reload();
    scene.instance.log.await_line("was killed");
    scene.instance.log.await_line("reload taken");
    let host = scene.instance.status()["host"].to_string();
    assert!(host.contains("-GUARD"), "the status lists it: {host}");
    assert_eq!(scene.stop_within(LONG), Some(70));
    let text = scene.instance.log.text();
    let named = text.split("the host is not as it was: could not undo ").nth(1).unwrap();
    assert!(
        named.contains("ip6tables-nft -t mangle -D PREROUTING -p tcp --syn -j HAPILOT-"),
        "{text}"
    );
    scene.sweep();
}

/// The programs that hang are killed after a second: what is answered before did not wait for them.
#[test]
fn signals_and_questions_are_answered_while_a_guard_goes_up() {
    let mut scene = Scene::begin(&[]);
    scene.tell("hang", &[RAISE]);
    scene.reload();
    let stuck = scene.await_stuck();
    scene.instance.signal(Signal::SIGTTOU);
    scene.instance.log.await_line("SIGTTOU");
    let socket = scene.instance.run_directory().join(SOCKET);
    let answer = Client::connect(&socket).unwrap().ask(&Request::Status, Some(SHORT)).unwrap();
    let still: Vec<_> = scene.stuck().into_iter().filter(|pid| stuck.contains(pid)).collect();
    assert!(!still.is_empty(), "none hangs any more: this shows nothing");
    let Answer::Status(status) = answer else { panic!("{answer:?}") };
    assert_eq!(status.state, "reloading");
    // Without a guard it goes on, and says so; then it pauses.
    scene.instance.log.await_line("was killed");
    scene.instance.log.await_line("paused accepting");
    scene.instance.stop();
    scene.host.state().assert_same_as(&scene.before);
}

/// Its one child of that name would be what a watchdog takes for the program, if it went by words:
/// `iptables-nft-save` has no arguments.
#[test]
fn haproxy_is_never_what_is_killed_for_a_program_that_hangs() {
    for program in PROGRAMS {
        let settings = [("HAPROXY_STOP_DEADLINE", DEADLINE), ("HAPROXY_PIDS", "auto")];
        let mut scene = Scene::begin(&settings);
        let first = scene.instance.current();
        scene.tell("all", &[program]);
        // What it puts back, it looks for first.
        scene.host.namespace.attempt("nft flush ruleset");
        scene.serves_and_answers(&format!("{program}, the firewall is flushed"));
        scene.instance.signal(Signal::SIGHUP);
        scene.serves_and_answers(&format!("{program}, while it reloads"));
        let second = scene.instance.await_successor(&first);
        scene.serves_and_answers(&format!("{program}, reloaded"));
        assert_eq!(scene.instance.log.count("SIGKILL"), 0, "{program}");
        kill(scene.instance.process_of(&second), Signal::SIGKILL);
        scene.serves_and_answers(&format!("{program}, HAProxy is killed"));
        scene.instance.await_successor(&second);
        assert_eq!(scene.instance.log.count("exit=SIGKILL"), 2, "{program}: the test's own alone");
        scene.stop_within(IN_TIME);
        assert_eq!(scene.instance.log.count("exit=SIGKILL"), 2, "{program}, at the stop");
        scene.tell("all", &[]);
        scene.sweep();
    }
}

/// Nobody serves yet, so there is nothing to lose but time.
#[test]
fn a_haproxy_that_does_not_say_what_it_is_delays_no_stop() {
    let host = Host::alone();
    let before = host.state();
    let bin = host.path("bin");
    fs::create_dir(&bin).unwrap();
    let fake = host.write("bin/haproxy", "#!/bin/sh\nexec sleep 987\n");
    fs::set_permissions(fake, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let spec = host.container("hapilot").env("PATH", &path);
    let instance = spec.env("HAPROXY_STOP_DEADLINE", DEADLINE).start();
    let mut scene = Scene { instance, before, host };
    scene.await_stuck();
    scene.stop_within(IN_TIME);
    scene.host.state().assert_same_as(&scene.before);
}

/// Whatever it needs for a repair.
#[test]
fn while_a_repair_hangs_questions_are_answered_and_a_stop_keeps_its_deadline() {
    for program in ["iptables-nft-save", "ip6tables-nft-save", "iptables-nft-restore"] {
        let mut scene = Scene::begin(&[("HAPROXY_STOP_DEADLINE", "10s")]);
        let haproxy = scene.instance.current().pid;
        scene.tell("all", &[program]);
        scene.host.namespace.run("iptables-nft -t mangle -F");
        assert_eq!(scene.answers(), "serving", "{program}");
        scene.instance.log.await_line("was killed");
        assert_eq!(scene.instance.current().pid, haproxy, "{program}");
        let answered = get(&scene.host.namespace, "127.0.0.1:8080", "/");
        assert!(answered.is_answered(), "{program}: {answered:?}");
        scene.await_stuck();
        scene.stop_within(Duration::from_secs(10));
        scene.sweep();
    }
}

const INTERCEPT: (&str, &str) = ("HAPROXY_INTERCEPT", "80:8080");

#[test]
fn while_the_interception_does_not_come_a_stop_is_heard_and_what_haproxy_accepted_is_answered() {
    let settings = [("HAPROXY_STOP_DEADLINE", "20s"), INTERCEPT];
    let mut scene = Scene::start(&settings, &["-A PREROUTING .*-TPROXY"]);
    scene.instance.log.await_line(" ready ");
    assert_eq!(scene.answers(), "starting");
    let answered = get(&scene.host.namespace, "127.0.0.1:8080", "/");
    assert!(answered.is_answered(), "{answered:?}");
    assert_eq!(scene.stop_within(Duration::from_secs(20)), Some(0));
    scene.host.state().assert_same_as(&scene.before);
}

#[test]
fn an_interception_that_does_not_go_off_delays_neither_answers_nor_the_stop() {
    let mut scene = Scene::begin(&[("HAPROXY_STOP_DEADLINE", DEADLINE), INTERCEPT]);
    scene.tell("hang", &["-[DFX] .*-TPROXY"]);
    let begun = Instant::now();
    scene.instance.signal(Signal::SIGTERM);
    assert_eq!(scene.answers(), "stopping");
    let status = scene.instance.wait(LONG);
    assert!(begun.elapsed() <= IN_TIME, "it took {:?}", begun.elapsed());
    assert_eq!(status.code(), Some(70));
    scene.sweep();
}

#[test]
fn a_tear_down_that_hangs_delays_no_answer() {
    let mut scene = Scene::begin(&[("HAPROXY_STOP_DEADLINE", DEADLINE)]);
    scene.tell("hang", &["-[DFX] "]);
    let begun = Instant::now();
    scene.instance.signal(Signal::SIGTERM);
    scene.instance.log.await_line(" gone ");
    assert_eq!(scene.answers(), "stopping");
    let status = scene.instance.wait(LONG);
    assert!(begun.elapsed() <= IN_TIME, "it took {:?}", begun.elapsed());
    assert_eq!(status.code(), Some(70));
    scene.sweep();
}

/// With `auto` a sweep comes behind the launch.
#[test]
fn a_sweep_that_hangs_while_haproxy_serves_delays_no_answer_and_no_stop() {
    let settings = [("HAPROXY_STOP_DEADLINE", DEADLINE), ("HAPROXY_PIDS", "auto")];
    let mut scene = Scene::start(&settings, &[]);
    scene.instance.log.await_line("transparent proxying is set up");
    scene.tell("all", &["ip6tables-nft-save"]);
    scene.instance.log.await_line("INFO serving");
    assert_eq!(scene.answers(), "serving");
    let haproxy = scene.instance.current().pid;
    scene.instance.log.await_line("what a dead hapilot left on the host may be there still");
    assert_eq!(scene.instance.current().pid, haproxy);
    scene.tell("all", &[]);
    assert_eq!(scene.stop_within(IN_TIME), Some(0));
    scene.host.state().assert_same_as(&scene.before);
}

/// Where the kernel does not let a thread go: all changes of nftables wait for one lock.
#[test]
fn while_the_kernel_keeps_a_change_of_nftables_waiting_all_goes_on() {
    let host = Host::alone();
    let before = host.state();
    let file = host.write("haproxy.cfg", &config(""));
    for (step, state) in [("raise-barrier@1", "reloading"), ("undo@1", "stopping")] {
        let fault = ("HAPILOT_FAULT", &*format!("{step}=hang"));
        let settings = [
            fault,
            ("HAPROXY_FIREWALL", "nftables"),
            ("HAPROXY_RELOAD_GUARD", "drop"),
            ("HAPROXY_STOP_DEADLINE", DEADLINE),
        ];
        host.write("haproxy.cfg", &config(""));
        let spec = host.container("hapilot").config(&file).envs(&settings);
        let mut hapilot = spec.start().serving();
        let first = hapilot.current();
        let begun = Instant::now();
        host.write("haproxy.cfg", &config("interface lo"));
        let stops = state == "stopping";
        hapilot.signal(if stops { Signal::SIGTERM } else { Signal::SIGHUP });
        hapilot.log.await_line(&format!("fault: Hang {step}"));
        let socket = hapilot.run_directory().join(SOCKET);
        let ask = |request| Client::connect(&socket).unwrap().ask(&request, Some(AT_ONCE)).unwrap();
        let Answer::Status(status) = ask(Request::Status) else { panic!("no status") };
        assert_eq!(status.state, state, "{step}");
        let Answer::Health { .. } = ask(Request::Health) else { panic!("no health") };
        let begun = if stops {
            begun
        } else {
            // Without a guard, after some seconds.
            drop(hapilot.await_successor(&first));
            hapilot.signal(Signal::SIGTERM);
            Instant::now()
        };
        hapilot.wait(LONG);
        assert!(begun.elapsed() <= IN_TIME, "{step}: it took {:?}", begun.elapsed());
        host.container("sweep").args(&["sweep"]).finish().assert_code(0);
        host.state().assert_same_as(&before);
    }
}
