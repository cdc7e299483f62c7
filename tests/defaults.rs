//! Promise: with nothing set, nothing mounted and no right, the page is served.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use lab::network::{BALANCER4, BALANCER6};
use lab::{Lab, Outcome, get};

#[test]
fn with_no_configuration_no_right_and_no_setting_the_page_is_served_with_one_clear_warning() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = lab.balancer.container("hapilot").without_net_admin().start().serving();
    for address in [BALANCER4, BALANCER6] {
        for port in [80, 443] {
            let outcome = get(&lab.client, &format!("{address}:{port}"), "/");
            assert!(outcome.body().contains("<html"), "{outcome:?}");
        }
    }
    let text = hapilot.log.text();
    let warnings = text.lines().filter(|line| line.to_lowercase().contains("warn"));
    let transparent: Vec<_> = warnings.filter(|line| line.contains("transparent")).collect();
    assert_eq!(transparent.len(), 1, "one clear line: {text}");
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
    assert_eq!(get(&lab.client, &format!("{BALANCER4}:80"), "/"), Outcome::Refused);
}

#[test]
fn the_default_page_is_served_on_every_port_asked_for() {
    let lab = Lab::new();
    let spec = lab.balancer.container("hapilot").env("HAPROXY_PORTS", "8081, 8082");
    let mut hapilot = spec.start().serving();
    for port in [8081, 8082] {
        assert!(get(&lab.client, &format!("{BALANCER4}:{port}"), "/").body().contains("<html"));
    }
    assert_eq!(get(&lab.client, &format!("{BALANCER4}:80"), "/"), Outcome::Refused);
    hapilot.stop();
}
