//! A guard that cannot be taken away by any means: the stop says so, and how a person would.

use super::life::{Came, Life, Scene, Way};
use super::verdict::{assert_harmless, assert_same};
use crate::lab::LONG;

/// Every attempt fails, also those at the end of the stop.
fn what_is_left_is_named_with_the_command_that_removes_it(way: Way) {
    let host = way.host();
    let before = host.state();
    let mut scene = Scene::begin(&host, Life::Alone, way, "lower-barrier@*=fail");
    assert_eq!(scene.go_on(), Came::Through, "{}", scene.instance.log.text());
    assert_eq!(scene.instance.wait(LONG).code(), Some(70));
    scene.instance.log.wait_closed();
    let text = scene.instance.log.text();
    assert!(!host.state().difference(&before).is_empty(), "{way:?}: nothing is left: {text}");
    assert_harmless(&scene, way, "what is left");
    let named = text.split("the host is not as it was: could not undo ").nth(1).unwrap();
    let commands = named.lines().next().unwrap().split("; ");
    for command in commands.filter_map(|part| Some(part.split_once(": fault at ")?.0)) {
        command.split(" && ").for_each(|command| drop(host.namespace.run(command)));
    }
    assert_same(&host, &before, &format!("{way:?}: by the commands that it named: {named}"));
}

#[test]
fn a_guard_that_cannot_be_removed_is_named_with_iptables_nft() {
    for guard in ["drop", "auto"] {
        what_is_left_is_named_with_the_command_that_removes_it(Way {
            firewall: "iptables-nft",
            guard,
        });
    }
}

#[test]
fn a_guard_that_cannot_be_removed_is_named_with_iptables_legacy() {
    what_is_left_is_named_with_the_command_that_removes_it(Way {
        firewall: "iptables-legacy",
        guard: "hold",
    });
}

#[test]
fn a_note_that_cannot_be_removed_is_named_with_nftables() {
    what_is_left_is_named_with_the_command_that_removes_it(Way {
        firewall: "nftables",
        guard: "auto",
    });
}
