//! A mail client hears a banner, always of the same server.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::example::Example;
use crate::lab::client::{Answer, connect};
use crate::lab::network::{BALANCER4, CLIENT4};
use crate::lab::{LONG, Outcome, SHORT, until};

#[test]
fn the_banner_of_one_server_arrives_and_another_address_may_get_another() {
    let mut example = Example::open("mail");
    let mut hapilot = example.serve();
    let mine = banner(&example);
    assert!(mine.starts_with("220 mail"), "{mine}");
    for _ in 0..8 {
        assert_eq!(banner(&example), mine, "one address, one server");
    }
    let others: BTreeSet<_> =
        (0..20).map(|number| from_another_address(&example, number)).collect();
    assert_eq!(others.len(), 2, "twenty addresses are not all sent to one: {others:?}");

    let server = mine.split(' ').nth(1).unwrap().to_owned();
    example.servers.remove(&server);
    until(LONG, "another takes over", || {
        let now = converse(&example).ok()?;
        (now.starts_with("220 mail") && now != mine).then_some(())
    });
    example.start_server(&server);
    until(LONG, "it is back", || (converse(&example).ok()? == mine).then_some(()));
    example.reload_under_load(&mut hapilot, 25, talk);
    example.end(hapilot);
}

fn banner(example: &Example) -> String {
    converse(example).unwrap()
}

fn converse(example: &Example) -> std::io::Result<String> {
    let address = format!("{BALANCER4}:25");
    example.lab.client.enter(|| speak(connect(&address, SHORT)?))
}

/// The client's host gets that address as well, and uses it.
fn from_another_address(example: &Example, number: u8) -> String {
    let client = &example.lab.client;
    let own = format!("10.1.0.{}", 100 + number);
    client.run(&format!("ip addr add {own}/24 dev c0"));
    let way = |src: &str| client.run(&format!("ip route replace {BALANCER4}/32 dev c0 src {src}"));
    way(&own);
    let heard = banner(example);
    way(CLIENT4);
    heard
}

/// The whole conversation; the banner.
fn speak(mut stream: TcpStream) -> std::io::Result<String> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let closed = || std::io::Error::other("the connection ended without a word");
    let banner = lines.next().ok_or_else(closed)??;
    stream.write_all(b"QUIT\r\n")?;
    let bye = lines.next().ok_or_else(closed)??;
    if bye.starts_with("221") { Ok(banner) } else { Err(std::io::Error::other(bye)) }
}

fn talk(stream: TcpStream) -> Outcome {
    let begun = Instant::now();
    match speak(stream) {
        Ok(body) => {
            let (status, head, latency) = (200, String::new(), begun.elapsed());
            Outcome::Answered(Answer { status, head, body, latency })
        }
        Err(error) => Outcome::from_error(&error),
    }
}
