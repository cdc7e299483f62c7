//! Whoever speaks to any address on port 80 speaks to HAProxy, and does not notice.

use crate::example::{Example, reload_between};
use crate::lab::network::{CLIENT4, CLIENT6};
use crate::visitor::{Request, field, header};

const SERVERS: [(&str, &str); 2] = [("10.2.0.31:80", CLIENT4), ("[fd00:2::31]:80", CLIENT6)];

#[test]
fn any_address_on_port_80_is_reached_through_haproxy_as_oneself() {
    let example = Example::open("interception");
    let request = Request::get("/some/path");
    for (address, _) in SERVERS {
        assert_eq!(header(&request.ask_at(&example, address), "x-via"), None, "its own way");
    }
    let mut hapilot = example.serve();
    for (address, client) in SERVERS {
        let answer = request.ask_at(&example, address);
        assert_eq!(header(&answer, "x-via"), Some("lb"), "{address}");
        let seen = field(&answer, "RemoteAddr").unwrap();
        assert!(seen.trim_start_matches('[').starts_with(client), "{seen}");
    }
    hapilot.log.await_line("\"GET /some/path HTTP/1.1\"");
    // the second address is for the half-open connections
    example.lab.server.run("ip addr add 10.2.0.33/24 dev s0");
    let serve = example.whoami["web1"].serve();
    let there = ["10.2.0.33".parse().unwrap()];
    let other = crate::standin::Server::start(&example.lab.server, &there, 80, &serve);
    let address = |text: &str| text.parse().unwrap();
    let (one, two) = (address(SERVERS[0].0), address("10.2.0.33:80"));
    reload_between(&mut hapilot, &example.lab.client, one, two, request.talk());
    drop(other);
    hapilot.stop();
    for (address, _) in SERVERS {
        assert_eq!(header(&request.ask_at(&example, address), "x-via"), None, "its own way again");
    }
    example.ended();
}
