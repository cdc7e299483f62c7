//! Configurations that can be told from one another by their answers, and the generations that
//! answer with them.

use std::time::{Duration, Instant};

use super::haproxy_cfg::proxy;
use super::network::BALANCER4;
use super::{Generation, HostState, Instance, Lab, Outcome, generations, get, until};

pub fn web() -> String {
    format!("{BALANCER4}:80")
}

pub fn configure(lab: &Lab, via: &str) {
    lab.balancer.write("haproxy.cfg", &proxy(":80", via));
}

/// Which configuration answers.
pub fn via(lab: &Lab) -> String {
    let outcome = get(&lab.client, &web(), "/");
    let Outcome::Answered(answer) = outcome else { panic!("no answer: {outcome:?}") };
    let header = answer.head.lines().find_map(|line| line.strip_prefix("x-via: "));
    header.unwrap_or_else(|| panic!("not proxied: {}", answer.head)).to_owned()
}

pub fn end(lab: &Lab, mut hapilot: Instance, before: &HostState) {
    hapilot.stop();
    lab.balancer.state().assert_same_as(before);
}

pub fn await_gone(hapilot: &mut Instance, generation: &Generation, limit: Duration) -> Duration {
    let begun = Instant::now();
    until(limit, &format!("{generation:?} is gone"), || {
        let status = hapilot.status();
        generations(&status).iter().all(|other| other.id != generation.id).then_some(())
    });
    begun.elapsed()
}
