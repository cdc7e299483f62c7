//! Two balancers send a client to the same server, also when one of them was away.

use nix::sys::signal::Signal;

use crate::example::{Example, reload_between};
use crate::lab::network::CLIENT4;
use crate::lab::{Host, Instance, LONG, until};
use crate::visitor::{Request, name};

const FIRST: &str = "10.1.0.1:80";
const FIRST_FOR_OTHERS: &str = "10.3.0.1:80";
const SECOND: &str = "10.3.0.2:80";

#[test]
fn what_one_balancer_learnt_the_other_knows_and_keeps_when_the_first_is_lost() {
    let example = Example::open("peers");
    let host = example.lab.second_host();
    let (before, between) = (host.state(), example.lab.balancer.state());
    let start = |host: &Host, name| example.container(host, name).start().serving();
    let mut first = start(&example.lab.balancer, "lb1");
    let mut second = start(&host, "lb2");
    assert_eq!(table(&second), "", "nobody came yet");

    let ask = |address: &str| name(&Request::get("/").ask_at(&example, address)).to_owned();
    let mine = ask(FIRST);
    await_entry(&second, &mine);
    for _ in 0..4 {
        assert_eq!([ask(FIRST), ask(SECOND)], [mine.clone(), mine.clone()]);
    }

    first.signal(Signal::SIGKILL);
    first.wait(LONG);
    drop(first);
    for _ in 0..4 {
        assert_eq!(ask(SECOND), mine, "the other knows");
    }
    let mut first = start(&example.lab.balancer, "lb1");
    await_entry(&first, &mine);
    assert_eq!(ask(FIRST), mine, "it learnt from the other");

    // Others than the one who is looked for: whoever comes between a new HAProxy's first accept and
    // the last word of the old one may be sent elsewhere.
    let at = |address: &str| address.parse().unwrap();
    let (load, half_open) = (at(FIRST_FOR_OTHERS), at(FIRST));
    let talk = Request::get("/").talk();
    reload_between(&mut first, &host.namespace, load, half_open, talk);
    await_entry(&first, &mine);
    assert_eq!(ask(FIRST), mine, "and from its predecessor");
    second.stop();
    host.state().assert_same_as(&before);
    first.stop();
    example.lab.balancer.state().assert_same_as(&between);
}

/// Without its first line.
fn table(hapilot: &Instance) -> String {
    let text = hapilot.runtime(&hapilot.current(), "show table web");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.collect::<Vec<_>>().join("\n")
}

fn await_entry(hapilot: &Instance, server: &str) {
    until(LONG, "the client's address is in the table", || {
        let table = table(hapilot);
        let there = |word: &str| table.contains(word);
        (there(&format!("key={CLIENT4} ")) && there(&format!("server_key={server}"))).then_some(())
    });
}
