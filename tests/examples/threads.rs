//! TLS and compression on threads of their own, joined by a socket.

use crate::example::Example;
use crate::lab::network::{BALANCER4, CLIENT4};
use crate::lab::{Outcome, SHORT, client};
use crate::secure;
use crate::visitor::{Request, field, header};

const CERTIFICATES: &str = "../make-certificates certs www.example.com";

#[test]
fn tls_and_compression_are_joined_and_the_client_is_known_behind_both() {
    let example = Example::prepare("threads", &[CERTIFICATES]);
    let mut hapilot = example.serve();
    let config = secure::client(&example.path("certs/ca.crt"));
    let ask = |request: &Request| {
        let talk = secure::talk(config.clone(), request);
        let address = format!("{BALANCER4}:443");
        match talk(example.lab.client.enter(|| client::connect(&address, SHORT).unwrap())) {
            Outcome::Answered(answer) => answer,
            other => panic!("{other:?}"),
        }
    };
    let plain = ask(&Request::get("/"));
    assert_eq!(header(&plain, "content-encoding"), None);
    assert_eq!(field(&plain, "X-Forwarded-For"), Some(CLIENT4), "through both");
    let large = Request::get("/data?size=100000");
    let answer = ask(&large.clone().header("Accept-Encoding", "gzip"));
    assert_eq!(header(&answer, "content-encoding"), Some("gzip"));
    assert!(answer.body.len() < 10_000 && ask(&large).body.len() > 90_000);

    example.reload_under_load(&mut hapilot, 443, secure::talk(config.clone(), &Request::get("/")));
    example.end(hapilot);
}
