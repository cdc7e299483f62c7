//! TLS begins again towards the servers, and a server with somebody else's certificate gets nothing.

use crate::example::Example;
use crate::lab::network::BALANCER4;
use crate::lab::{LONG, Outcome, SHORT, client, until};
use crate::secure;
use crate::visitor::{Request, field, name};

const CERTIFICATES: &str = "../make-certificates certs www.example.com web1 web2";
const ANOTHER: &str = "../make-certificates other web2 && cp other/web2.* certs/";

#[test]
fn the_servers_certificates_are_verified() {
    let mut example = Example::prepare("reencryption", &[CERTIFICATES]);
    let mut hapilot = example.serve();
    let config = secure::client(&example.path("certs/ca.crt"));
    let talk = secure::talk(config, &Request::get("/"));
    let ask = |example: &Example| {
        let address = format!("{BALANCER4}:443");
        match talk(example.lab.client.enter(|| client::connect(&address, SHORT).unwrap())) {
            Outcome::Answered(answer) => answer,
            other => panic!("{other:?}"),
        }
    };
    let both: Vec<_> = (0..2).map(|_| name(&ask(&example)).to_owned()).collect();
    assert_ne!(both[0], both[1], "in turn");
    assert_eq!(field(&ask(&example), "X-Forwarded-Proto"), Some("https"));

    // the same name, another authority
    example.servers.remove("web2");
    example.sh(ANOTHER);
    example.start_server("web2");
    hapilot.log.await_line("Server web/web2 is DOWN");
    for _ in 0..4 {
        assert_eq!(name(&ask(&example)), "web1");
    }
    // the right authority, another name: web1's certificate
    example.servers.remove("web1");
    for kind in ["crt", "key"] {
        let file = |name: &str| example.path(&format!("certs/{name}.{kind}"));
        std::fs::copy(file("web1"), file("web2")).unwrap();
    }
    example.servers.remove("web2");
    example.start_server("web2");
    hapilot.log.await_line("Server web/web1 is DOWN");
    assert_eq!(ask(&example).status, 503);
    example.start_server("web1");
    until(LONG, "web1 is back", || (ask(&example).status == 200).then_some(()));
    example.reload_under_load(&mut hapilot, 443, talk.clone());
    example.end(hapilot);
}
