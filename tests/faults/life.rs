//! The lives in which faults happen: one hapilot alone, from start over a reload to its stop, or
//! one that relieves another.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::haproxy_cfg::DEFAULTS;
use crate::lab::spec::Spec;
use crate::lab::{Host, Instance, LONG, Pid, Plain, until};

/// Which firewall, and which guard its reload has: with `auto` what waits migrates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Way {
    pub(super) firewall: &'static str,
    pub(super) guard: &'static str,
}

impl Way {
    fn setting(self) -> &'static str {
        if self.firewall == "nftables" { "nftables" } else { "iptables" }
    }

    /// A host on which this is what hapilot finds.
    pub(super) fn host(self) -> Host {
        let host = Host::alone();
        if self.firewall == "iptables-legacy" {
            for program in ["iptables-legacy", "ip6tables-legacy"] {
                host.namespace.run(&format!("{program} -w -A INPUT -p tcp --dport 9 -j DROP"));
            }
        }
        host
    }
}

/// Who is there, and in whom the fault is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Life {
    /// Start, reload, stop.
    Alone,
    /// The same with the embedded page, among the host's processes.
    Bare,
    /// It relieves another hapilot.
    Successor,
    /// Another hapilot relieves it.
    Predecessor,
    /// It relieves a HAProxy without hapilot.
    SuccessorOfPlain,
}

/// What removes the leavings of one that was killed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum CleanUp {
    Sweep,
    /// The same container is started again, and stopped.
    NextLife,
}

impl CleanUp {
    pub(super) const BOTH: [Self; 2] = [Self::Sweep, Self::NextLife];

    /// One after the other.
    pub(super) fn at(turn: usize) -> Self {
        Self::BOTH[turn % Self::BOTH.len()]
    }

    pub(super) fn run(self, host: &Host, life: Life, way: Way) {
        match self {
            Self::Sweep => {
                host.container("sweep").args(&["sweep"]).finish().assert_code(0);
            }
            Self::NextLife => {
                let mut next = spec(host, life, way, "faulty").start();
                next.log.await_line(SERVING);
                next.stop();
            }
        }
    }
}

/// How far the instance with the fault has come.
#[derive(Debug, PartialEq)]
pub(super) enum Came {
    /// Its life is lived.
    Through,
    /// The fault has happened, which is the end of the way for who hangs or is to be killed.
    ToTheFault,
    /// It has ended by itself.
    ToAnEnd,
    /// It lives and does not move on.
    Nowhere,
}

/// A fifteenth of it is for the last resort, which runs a dozen programs beside those of all other lives.
pub(super) const STOP_DEADLINE: Duration = Duration::from_secs(18);
/// For a step to be come to. A reload gives up a hand-over, and a guard, only after some seconds.
const PATIENCE: Duration = Duration::from_secs(9);
const SERVING: &str = "INFO serving generation=";
const STUCK: [&str; 2] = ["fault: Hang", "fault: Halt"];

pub(super) struct Scene<'h> {
    pub(super) host: &'h Host,
    pub(super) instance: Instance,
    life: Life,
    way: Way,
    other: Option<Instance>,
    plain: Option<Plain>,
}

/// The listener of the second is no duplicate of the first's.
fn config(way: Way, number: u32) -> String {
    let option = match (way.guard, number % 2) {
        (_, 1) => "",
        // Only sockets of the same address and interface migrate.
        ("auto", _) => "transparent",
        _ => "interface lo",
    };
    let head = "global\n  log /dev/log local0\n";
    format!(
        "{head}{DEFAULTS}frontend web\n  bind :8080 {option}\n  http-request return status 200\n"
    )
}

impl<'h> Scene<'h> {
    /// `fault`: as `HAPILOT_FAULT` takes it.
    pub(super) fn begin(host: &'h Host, life: Life, way: Way, fault: &str) -> Self {
        let fault = ("HAPILOT_FAULT", fault);
        let (mut other, mut plain) = (None, None);
        let instance = match life {
            Life::Alone | Life::Bare | Life::Predecessor => {
                spec(host, life, way, "faulty").envs(&[fault]).start()
            }
            Life::Successor => {
                other = Some(spec(host, life, way, "other").start().serving());
                spec(host, life, way, "faulty").envs(&[fault, ("HAPROXY_PIDS", "auto")]).start()
            }
            Life::SuccessorOfPlain => {
                plain = Some(Plain::start(host, "plain", "-db", &config(way, 1)));
                spec(host, life, way, "faulty").envs(&[fault, ("HAPROXY_PIDS", "auto")]).start()
            }
        };
        Self { host, instance, life, way, other, plain }
    }

    /// Through all of its life, or as far as it comes.
    pub(super) fn go_on(&mut self) -> Came {
        let came = self.await_words(&[SERVING]);
        if came != Came::Through {
            return came;
        }
        let came = match self.life {
            Life::Alone | Life::Bare => {
                self.host.write("faulty.cfg", &config(self.way, 2));
                self.instance.signal(Signal::SIGHUP);
                self.await_words(&["reload taken", "reload refused"])
            }
            Life::Successor | Life::SuccessorOfPlain => self.await_words(&["it is gone"]),
            Life::Predecessor => {
                let pids = ("HAPROXY_PIDS", "auto");
                let other = spec(self.host, self.life, self.way, "other").envs(&[pids]).start();
                self.other = Some(other);
                return self.await_words(&[" ended "]);
            }
        };
        if came == Came::ToTheFault || came == Came::ToAnEnd {
            return came;
        }
        self.instance.signal(Signal::SIGTERM);
        self.await_words(&[" ended "])
    }

    /// `Through` when one of these was said.
    fn await_words(&mut self, words: &[&str]) -> Came {
        let all: Vec<&str> = words.iter().chain(&STUCK).copied().collect();
        match self.instance.log.await_one_of(&all, PATIENCE) {
            Some(line) if STUCK.iter().any(|stuck| line.contains(stuck)) => Came::ToTheFault,
            Some(_) => Came::Through,
            None if self.instance.log.is_closed() => Came::ToAnEnd,
            None => Came::Nowhere,
        }
    }

    /// The name of the hapilot beside the faulty one, as soon as it has said it.
    pub(super) fn other_instance(&self) -> Option<String> {
        let text = self.other.as_ref()?.log.text();
        let name = text.split("hapilot instance=\"").nth(1)?.split('"').next()?;
        Some(name.to_owned())
    }

    /// Ends whoever is there beside the faulty one.
    pub(super) fn end_others(&mut self) {
        if let Some(mut other) = self.other.take() {
            until(LONG, "the other one has ended", || {
                // One that was just started may not hear the first.
                other.signal(Signal::SIGTERM);
                (!other.is_running()).then_some(())
            });
        }
        if let Some(mut plain) = self.plain.take() {
            if plain.is_running() {
                plain.signal(Signal::SIGKILL);
            }
            until(LONG, "the plain HAProxy has ended", || (!plain.is_running()).then_some(()));
        }
    }
}

fn spec<'h>(host: &'h Host, life: Life, way: Way, name: &str) -> Spec<'h> {
    let spec = host.container(name).own_dev().envs(&[
        ("HAPROXY_FIREWALL", way.setting()),
        ("HAPROXY_STOP_DEADLINE", "18s"),
        ("HAPROXY_RELOAD_GUARD", way.guard),
        ("HAPROXY_LOG_LEVEL", "debug"),
    ]);
    if life == Life::Bare {
        return spec.pid(Pid::OfTheHost);
    }
    let config = host.write(&format!("{name}.cfg"), &config(way, 1));
    let spec = spec.config(&config);
    match life {
        Life::Alone => {
            spec.env("HAPROXY_INTERCEPT", "80:8080").env("HAPROXY_METRICS", "127.0.0.1:9101")
        }
        Life::SuccessorOfPlain => spec.pid(Pid::OfTheHost),
        _ => spec,
    }
}
