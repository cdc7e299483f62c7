//! Servers come and go by DNS, and stay when nobody answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use crate::example::Example;
use crate::lab::{Instance, LONG, until};
use crate::names::{self, NameServer, Record, Records};
use crate::standin::{Server, Whoami};
use crate::visitor::{Request, name};

type Zone = Arc<Mutex<Records>>;

#[test]
fn servers_come_and_go_and_the_last_answer_is_kept_while_nobody_answers() {
    let example = Example::open("dns");
    let (_docker, web) = docker(&example);
    let registry: Zone = Arc::new(Mutex::new(names::zone(&example.path("registry/zone"))));
    let (ours, at) = (&example.lab.server, "10.2.0.40:53");
    let name_server = NameServer::start(ours, at, &registry);
    let containers: Vec<_> = (1..=4).map(|number| container(&example, number)).collect();

    let mut hapilot = example.serve();
    for count in [2, 4] {
        scale(&web, count);
        await_web(&example, 1..=count);
    }
    // At a reload HAProxy moves what is left to the first places, and for a moment nobody has it.
    let left = in_first_place(&hapilot);
    web.lock().unwrap().insert("web".to_owned(), vec![Record::Address(address(left))]);
    await_web(&example, left..=left);
    await_api(&example, 25);

    drop(name_server);
    let begun = count(&hapilot, "sent");
    until(LONG, "it was asked in vain, again and again", || {
        (count(&hapilot, "sent") > begun + 10).then_some(())
    });
    await_api(&example, 25);
    example.reload_under_load(&mut hapilot, 80, Request::get("/").talk());

    let _back = NameServer::start(ours, at, &registry);
    // a 2.6 that has not seen a record since its start would not see it go
    until(LONG, "it is answered", || (count(&hapilot, "valid") > 0).then_some(()));
    let service = "_http._tcp.api.example.internal";
    registry.lock().unwrap().get_mut(service).unwrap().truncate(1);
    await_api(&example, 100);
    drop(containers);
    example.end(hapilot);
}

/// The last answer is kept because the configuration says so, not because it is too early.
#[test]
fn without_the_hold_lines_the_servers_are_lost_with_the_name_server() {
    let example = Example::open("dns");
    let (docker, _web) = docker(&example);
    let _containers: Vec<_> = (1..=2).map(|number| container(&example, number)).collect();
    let config = std::fs::read_to_string(example.path("haproxy.cfg")).unwrap();
    assert_eq!(config.matches(" 24h\n").count(), 6);
    std::fs::write(example.path("haproxy.cfg"), config.replace(" 24h\n", " 1s\n")).unwrap();
    let hapilot = example.serve();
    await_web(&example, 1..=2);
    drop(docker);
    until(LONG, "the servers are lost", || {
        (Request::get("/").ask(&example, 80).status == 503).then_some(())
    });
    example.end(hapilot);
}

/// Docker's own DNS, where it is in every container.
fn docker(example: &Example) -> (NameServer, Zone) {
    let zone = Zone::default();
    scale(&zone, 2);
    let balancer = &example.lab.balancer.namespace;
    (NameServer::start(balancer, "127.0.0.11:53", &zone), zone)
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 2, 0, 128 + number)
}

fn scale(zone: &Zone, count: u8) {
    let records = (1..=count).map(|number| Record::Address(address(number))).collect();
    zone.lock().unwrap().insert("web".to_owned(), records);
}

/// One of the service's, on the address that Docker gave it.
fn container(example: &Example, number: u8) -> Server {
    let server = &example.lab.server;
    server.run(&format!("ip addr add {}/24 dev s0", address(number)));
    let serve = Whoami::new(&format!("web-{number}")).serve();
    Server::start(server, &[IpAddr::V4(address(number))], 80, &serve)
}

/// Who answers, and how often of a hundred.
fn shares(example: &Example, path: &str) -> Option<BTreeMap<String, usize>> {
    let mut shares = BTreeMap::new();
    for _ in 0..100 {
        let answer = Request::get(path).ask(example, 80);
        if answer.status != 200 {
            return None;
        }
        *shares.entry(name(&answer).to_owned()).or_default() += 1;
    }
    Some(shares)
}

fn await_web(example: &Example, numbers: RangeInclusive<u8>) {
    let wanted: BTreeSet<_> = numbers.map(|number| format!("web-{number}")).collect();
    until(LONG, &format!("{wanted:?} share the requests"), || {
        wanted.iter().eq(shares(example, "/")?.keys()).then_some(())
    });
}

fn in_first_place(hapilot: &Instance) -> u8 {
    let text = hapilot.runtime(&hapilot.current(), "show servers state web");
    let first = |line: &str| {
        let mut words = line.split(' ').skip(3);
        (words.next()? == "web1").then(|| words.next()?.parse().ok()).flatten()
    };
    let first: Option<Ipv4Addr> = text.lines().find_map(first);
    first.unwrap_or_else(|| panic!("no web1 in {text}")).octets()[3] - address(0).octets()[3]
}

/// How many of a hundred go to `api1`.
fn await_api(example: &Example, share: usize) {
    until(LONG, &format!("{share} % of the requests go to api1"), || {
        (shares(example, "/api/")?.get("api1")? == &share).then_some(())
    });
}

/// One of the counters of the registry's name server.
fn count(hapilot: &Instance, wanted: &str) -> u64 {
    let text = hapilot.runtime(&hapilot.current(), "show resolvers registry");
    let value =
        |line: &str| line.trim().strip_prefix(wanted)?.strip_prefix(':')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or_else(|| panic!("no {wanted} in {text}"))
}
