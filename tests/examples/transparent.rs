//! The servers see the clients' own addresses.

use crate::example::{Example, reload_between};
use crate::lab::network::{BALANCER4, BALANCER6, BALANCER6_OTHER, CLIENT4, CLIENT6};
use crate::visitor::{Request, field, header};

#[test]
fn the_servers_see_the_clients_own_addresses() {
    let example = Example::open("transparent");
    let mut hapilot = example.serve();
    for (balancer, client) in [(BALANCER4, CLIENT4), (BALANCER6, &format!("[{CLIENT6}]"))] {
        for _ in 0..4 {
            let answer = Request::get("/").ask_at(&example, &format!("{balancer}:80"));
            let seen = field(&answer, "RemoteAddr").unwrap();
            assert!(seen.starts_with(&format!("{client}:")), "{seen}");
            assert_eq!(header(&answer, "x-via"), Some("lb"));
        }
    }
    example.reload_under_load(&mut hapilot, 80, Request::get("/").talk());
    let address = |ip: &str| format!("{ip}:80").parse().unwrap();
    let other = format!("[{BALANCER6_OTHER}]");
    let (one, two) = (address(BALANCER6), address(&other));
    reload_between(&mut hapilot, &example.lab.client, one, two, Request::get("/").talk());
    example.end(hapilot);
}
