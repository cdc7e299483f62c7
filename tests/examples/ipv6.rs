//! Clients, servers, checks and statistics over IPv6.

use crate::example::{Example, reload_between};
use crate::lab::network::{BALANCER4, BALANCER6, BALANCER6_OTHER, CLIENT6};
use crate::lab::{LONG, Outcome, until};
use crate::visitor::{Request, field, name};

#[test]
fn everything_is_served_over_ipv6_and_nothing_over_ipv4() {
    let example = Example::open("ipv6");
    let mut hapilot = example.serve();
    let web = format!("{BALANCER6}:80");
    let answers: Vec<_> = (0..2).map(|_| Request::get("/").ask_at(&example, &web)).collect();
    assert_ne!(name(&answers[0]), name(&answers[1]), "in turn");
    for answer in &answers {
        assert!(field(answer, "RemoteAddr").unwrap().starts_with("[fd00:2::1]:"), "{answer:?}");
        assert_eq!(field(answer, "X-Forwarded-For"), Some(CLIENT6));
    }
    let refused = Request::get("/").outcome(&example, &format!("{BALANCER4}:80"));
    assert_eq!(refused, Outcome::Refused);
    until(LONG, "the check is passed", || {
        let page = example.lab.balancer.namespace.run("curl -sS http://[::1]:8404/;csv");
        let line = page.lines().find(|line| line.starts_with("web,web2,")).unwrap();
        line.contains(",UP,").then_some(())?;
        line.contains(",L7OK,200,").then_some(())
    });

    example.whoami["web2"].set_health(500);
    until(LONG, "the check finds it", || {
        let names = (0..4).map(|_| name(&Request::get("/").ask_at(&example, &web)).to_owned());
        names.collect::<Vec<_>>().iter().all(|name| name == "web1").then_some(())
    });
    let other = format!("[{BALANCER6_OTHER}]:80");
    let (one, two) = (web.parse().unwrap(), other.parse().unwrap());
    reload_between(&mut hapilot, &example.lab.client, one, two, Request::get("/").talk());
    example.end(hapilot);
}
