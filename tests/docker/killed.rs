//! Docker ends or restarts a container in every way that it has, while rules, routes and sysctls are on the host: after the
//! next start and stop, or after one sweep, the host is what it was.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::container::{Container, run, words};
use crate::host_state::HostState;
use crate::network::Network;

/// Sockets in memory for few: HAProxy is to be the largest process, but not a large one.
const CONFIGURATION: &str = "
global
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
listen four
    bind 0.0.0.0:8080 transparent
    source 0.0.0.0 usesrc clientip
    server origin 127.0.0.1:8000
listen six
    bind [::]:8080 v6only transparent
    source [::] usesrc clientip
    server origin [::1]:8000
";

/// Lets it write sysctls, as on a host that mounts them.
const SYSCTLS: &str = "--security-opt=systempaths=unconfined";

/// hapilot with everything that it may have on a host.
struct Victim {
    network: Network,
    before: HostState,
    hapilot: Container,
    firewall: &'static str,
}

impl Victim {
    fn new(firewall: &'static str, options: &[&str]) -> Self {
        let network = Network::new();
        let before = network.state();
        let setting = format!("HAPROXY_FIREWALL={firewall}");
        let usual = [
            SYSCTLS,
            "-e",
            &setting,
            "-e",
            "HAPROXY_INTERCEPT=80:8080",
            "-e",
            "HAPROXY_PIDS=",
            "-e",
            "HAPROXY_TRANSPARENT=on",
        ];
        let hapilot = network.configured("hapilot", CONFIGURATION, &[&usual, options].concat());
        let victim = Self { network, before, hapilot, firewall };
        victim.serves();
        victim
    }

    fn serves(&self) {
        self.hapilot.wait_serving(1);
        assert!(self.network.state().has_rules(), "no rule is hapilot's");
    }

    fn haproxy(&self) -> String {
        let hapilot = self.hapilot.pid();
        let children = std::fs::read_to_string(format!("/proc/{hapilot}/task/{hapilot}/children"));
        children.expect("the children of hapilot").trim().to_owned()
    }

    fn is_dead(&self) {
        assert_eq!(self.hapilot.docker(&["wait"]), "137");
        self.has_left_something();
    }

    /// With iptables rules too; with nftables the kernel has removed them.
    fn has_left_something(&self) {
        let left = self.network.state();
        assert!(left.names_hapilot(), "nothing is left to clean up");
        assert_eq!(left.has_rules(), self.firewall == "iptables");
    }

    fn stops_clean(&self) {
        assert_eq!(self.hapilot.stop(), "0", "{}", self.hapilot.logs());
        self.is_clean();
    }

    fn is_clean(&self) {
        self.before.assert_same(&self.network.state());
    }
}

fn with_each_firewall(options: &[&str], test: impl Fn(Victim)) {
    for firewall in ["iptables", "nftables"] {
        test(Victim::new(firewall, options));
    }
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 5)"]
fn after_docker_kill_the_next_start_and_stop_leave_nothing() {
    with_each_firewall(&[], |victim| {
        victim.hapilot.docker(&["kill"]);
        victim.is_dead();
        victim.hapilot.docker(&["start"]);
        victim.serves();
        victim.stops_clean();
    });
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 5)"]
fn after_docker_rm_one_sweep_leaves_nothing() {
    with_each_firewall(&[], |victim| {
        victim.hapilot.docker(&["rm", "--force"]);
        victim.has_left_something();
        let swept = run(&["--cap-add=NET_ADMIN", SYSCTLS, &victim.network.option()], &["sweep"]);
        assert!(swept.status.success(), "{}", words(&swept));
        victim.is_clean();
    });
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 5)"]
fn docker_restart_patient_or_not_leaves_one_instance_and_its_stop_nothing() {
    with_each_firewall(&[], |victim| {
        for (patience, swept) in [("--time=300", 0), ("--time=0", 1)] {
            if swept > 0 {
                // or it might have ended before its patience does
                let haproxy = victim.haproxy().parse().expect("HAProxy is the only child");
                kill(Pid::from_raw(haproxy), Signal::SIGSTOP).expect("stop HAProxy");
            }
            victim.hapilot.docker(&["restart", patience]);
            victim.serves();
            let log = victim.hapilot.logs();
            assert_eq!(log.matches("what a dead instance had left").count(), swept, "{log}");
        }
        victim.stops_clean();
    });
}

/// Eats the container's memory until the kernel has killed somebody, then gives it back. If that is not enough at once, it
/// is the eater that is killed next.
const EAT: &str = "\
    until grep -qs 'oom_kill [1-9]' /sys/fs/cgroup/memory/memory.oom_control /sys/fs/cgroup/memory.events; \
    do (echo 500 >/proc/self/oom_score_adj; exec head -c 1000000 /dev/zero) >>/eaten/bites; done; rm /eaten/bites";
const LITTLE_MEMORY: [&str; 4] =
    ["--memory=96m", "--memory-swap=96m", "--tmpfs=/eaten", "--no-healthcheck"];

fn first_to_be_killed(pid: &str) {
    let file = format!("/proc/{pid}/oom_score_adj");
    std::fs::write(file, "1000").expect("make it the first that the kernel kills for memory");
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 5)"]
fn a_haproxy_killed_for_want_of_memory_is_replaced() {
    with_each_firewall(&LITTLE_MEMORY, |victim| {
        first_to_be_killed(&victim.haproxy());
        let eaten = victim.hapilot.exec(&["sh", "-c", EAT]);
        assert!(eaten.status.success(), "{}", words(&eaten));
        let status = victim.hapilot.wait_serving(2);
        assert_eq!(status["crashes"], 1, "{status}");
        assert!(victim.network.state().has_rules());
        victim.stops_clean();
    });
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 5)"]
fn with_on_crash_exit_its_end_for_want_of_memory_leaves_nothing_at_once() {
    let options = [&LITTLE_MEMORY[..], &["-e", "HAPROXY_ON_CRASH=exit"]].concat();
    with_each_firewall(&options, |victim| {
        first_to_be_killed(&victim.haproxy());
        victim.hapilot.exec(&["sh", "-c", EAT]);
        assert_eq!(victim.hapilot.docker(&["wait"]), "137");
        assert_eq!(victim.hapilot.inspect("{{.State.OOMKilled}}"), "true");
        victim.is_clean();
    });
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 5)"]
fn after_hapilot_was_killed_for_want_of_memory_the_next_start_and_stop_leave_nothing() {
    with_each_firewall(&LITTLE_MEMORY, |victim| {
        first_to_be_killed(&victim.hapilot.pid());
        victim.hapilot.exec(&["sh", "-c", EAT]);
        victim.is_dead();
        assert_eq!(victim.hapilot.inspect("{{.State.OOMKilled}}"), "true");
        victim.hapilot.docker(&["start"]);
        victim.serves();
        victim.stops_clean();
    });
}
