//! With the capability `NET_ADMIN` only: the server sees the client's own address, and afterwards nothing is left.

use crate::host_state::HostState;
use crate::world::{BALANCER, CLIENT, SERVER, World};

const USESRC: &str = "
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
listen four
    bind 10.77.1.1:80
    source 0.0.0.0 usesrc clientip
    http-response set-header via hapilot
    server origin 10.77.2.2:80
listen six
    bind [fd77:1::1]:80
    source [::] usesrc clientip
    http-response set-header via hapilot
    server origin [fd77:2::2]:80
";

const INTERCEPT: &str = "
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
listen four
    bind 0.0.0.0:8080 transparent
    source 0.0.0.0 usesrc clientip
    http-response set-header via hapilot
    server origin 10.77.2.2:80
listen six
    bind [::]:8080 v6only transparent
    source [::] usesrc clientip
    http-response set-header via hapilot
    server origin [fd77:2::2]:80
";

/// As the README has it.
pub(crate) const LEAST: [&str; 5] = [
    "--read-only",
    "--tmpfs=/run",
    "--cap-drop=ALL",
    "--cap-add=NET_ADMIN",
    "--security-opt=no-new-privileges",
];

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn the_server_sees_the_clients_own_address_and_the_stop_leaves_nothing() {
    let world = World::new();
    let before = HostState::of(&world.balancer.pid());
    let (hapilot, _files) = world.hapilot(&[], USESRC);
    hapilot.wait_serving(1);
    assert!(HostState::of(&world.balancer.pid()).names_hapilot(), "no rule names hapilot");
    seen_as_client(&world, &BALANCER);

    crate::container::docker(&["kill", "-s", "HUP", hapilot.id()]);
    hapilot.wait_serving(2);
    seen_as_client(&world, &BALANCER);

    assert_eq!(hapilot.stop(), "0", "{}", hapilot.logs());
    before.assert_same(&HostState::of(&world.balancer.pid()));
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn a_client_that_addresses_the_server_itself_is_intercepted_and_the_stop_leaves_nothing() {
    let world = World::new();
    let before = HostState::of(&world.balancer.pid());
    let (hapilot, _files) = world.hapilot(&["-e", "HAPROXY_INTERCEPT=80:8080"], INTERCEPT);
    hapilot.wait_serving(1);
    seen_as_client(&world, &SERVER);
    assert_eq!(hapilot.stop(), "0", "{}", hapilot.logs());
    before.assert_same(&HostState::of(&world.balancer.pid()));
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 5)"]
fn the_least_that_the_readme_names_is_enough_and_the_stop_leaves_nothing() {
    let world = World::new();
    let before = HostState::of(&world.balancer.pid());
    let (hapilot, _files) = world.hapilot(&LEAST, USESRC);
    hapilot.wait_serving(1);
    seen_as_client(&world, &BALANCER);
    crate::container::docker(&["kill", "-s", "HUP", hapilot.id()]);
    hapilot.wait_serving(2);
    seen_as_client(&world, &BALANCER);
    assert_eq!(hapilot.stop(), "0", "{}", hapilot.logs());
    before.assert_same(&HostState::of(&world.balancer.pid()));
}

/// Through HAProxy, and yet from the client's own address, in both families.
fn seen_as_client(world: &World, addresses: &[&str; 2]) {
    for (address, client) in addresses.iter().zip(CLIENT) {
        let answer = world.fetch(address);
        assert!(answer.contains("via: hapilot"), "{address} was not proxied: {answer}");
        assert!(
            answer.ends_with(&format!("\r\n\r\n{client}")),
            "{address} did not see {client}: {answer}"
        );
    }
}
