//! Promise: a bug of hapilot's own ends no session: a panic in a task beside the loop ends that task, and
//! after one in the loop itself HAProxy drains, and the host is given back.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::haproxy_cfg::{DEFAULTS, proxy};
use crate::lab::network::BALANCER4;
use crate::lab::{Download, Host, LONG, Lab, get};

/// A pause is a signal that the loop sends.
const IN_THE_LOOP: (&str, &str) = ("HAPILOT_FAULT", "signal@1=panic");

#[test]
fn after_a_panic_of_the_loop_sessions_finish_and_the_host_is_given_back() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = lab.balancer.write("haproxy.cfg", &proxy(":80", "one"));
    let spec = lab.balancer.container("hapilot").config(&config).envs(&[IN_THE_LOOP]);
    let mut hapilot = spec.start().serving();
    let session = Download::begin(&lab.client, &format!("{BALANCER4}:80"), "/slow");
    let pid = hapilot.current().pid;
    hapilot.signal(Signal::SIGTTOU);
    hapilot.log.await_line("hapilot failed, which is a bug");
    hapilot.log.await_line("draining");
    let status = hapilot.status();
    assert_eq!(status["state"], "stopping", "{status}");
    assert_eq!(status["generations"][0]["pid"], pid, "{status}");
    lab.origin.open_gate();
    assert!(session.finish().is_answered(), "{}", hapilot.log.text());
    assert_eq!(hapilot.wait(LONG).code(), Some(70));
    hapilot.log.wait_closed();
    assert_eq!(hapilot.log.count("SIGKILL"), 0, "{}", hapilot.log.text());
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn after_a_panic_of_the_loop_the_stop_deadline_holds() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = lab.balancer.write("haproxy.cfg", &proxy(":80", "one"));
    let spec = lab.balancer.container("hapilot").config(&config).envs(&[IN_THE_LOOP]);
    let mut hapilot = spec.env("HAPROXY_STOP_DEADLINE", "3s").start().serving();
    let _session = Download::begin(&lab.client, &format!("{BALANCER4}:80"), "/hang");
    hapilot.signal(Signal::SIGTTOU);
    hapilot.log.await_line("hapilot failed, which is a bug");
    assert_eq!(hapilot.wait(Duration::from_secs(3)).code(), Some(70));
    lab.balancer.state().assert_same_as(&before);
}

fn config(answer: &str) -> String {
    format!(
        "{DEFAULTS}frontend web\n  bind :8080\n  http-request return status 200 content-type text/plain string {answer}\n"
    )
}

/// That a new HAProxy is ready is asked beside the loop.
#[test]
fn a_panic_beside_the_loop_refuses_a_reload_and_the_next_is_taken() {
    let host = Host::alone();
    let before = host.state();
    let file = host.write("haproxy.cfg", &config("one"));
    let spec = host.container("hapilot").config(&file).env("HAPILOT_FAULT", "listeners@2=panic");
    let mut hapilot = spec.start().serving();
    let first = hapilot.current();
    host.write("haproxy.cfg", &config("two"));
    let refused = hapilot.command(&["reload"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let told = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(told.contains("hapilot failed to wait for it, which is a bug"), "{told}");
    assert_eq!(hapilot.current().pid, first.pid);
    assert_eq!(get(&host.namespace, "127.0.0.1:8080", "/").body(), "one");
    hapilot.reload();
    assert_eq!(get(&host.namespace, "127.0.0.1:8080", "/").body(), "two");
    hapilot.stop();
    host.state().assert_same_as(&before);
}
