//! A visitor with a cookie stays with a server; the application sees its own cookie only.

use crate::example::Example;
use crate::lab::{LONG, until};
use crate::visitor::{Request, field, header, name, names, set};

#[test]
fn a_visitor_stays_with_a_server_by_either_cookie() {
    let mut example = Example::open("cookies");
    let mut hapilot = example.serve();
    inserted(&example);
    prefixed(&example);

    // a server that is gone: its visitors go on with the other
    let faithful = Request::get("/").header("Cookie", "SERVERID=w2");
    example.servers.remove("web2");
    until(LONG, "its visitor is sent to the other", || {
        let answer = faithful.ask(&example, 80);
        (answer.status == 200 && name(&answer) == "web1").then_some(())
    });
    example.start_server("web2");
    until(LONG, "it is back", || (name(&faithful.ask(&example, 80)) == "web2").then_some(()));
    example.reload_under_load(&mut hapilot, 80, faithful.talk());
    example.end(hapilot);
}

fn inserted(example: &Example) {
    let plain = Request::get("/");
    assert_eq!(names(example, &plain, 4), set(["web1", "web2"]), "without a cookie, in turn");
    let answer = plain.ask(example, 80);
    let cookie = header(&answer, "set-cookie").expect("a cookie");
    let value = if name(&answer) == "web1" { "w1" } else { "w2" };
    assert_eq!(cookie, format!("SERVERID={value}; path=/; HttpOnly; Secure"));

    for (cookie, server) in [("w1", "web1"), ("w2", "web2")] {
        let request = Request::get("/").header("Cookie", &format!("mine=1; SERVERID={cookie}"));
        assert_eq!(names(example, &request, 4), set([server]));
        let answer = request.ask(example, 80);
        assert_eq!(field(&answer, "Cookie"), Some("mine=1"), "the server sees the visitor's own");
        assert_eq!(header(&answer, "set-cookie"), None, "there is one already");
    }
}

fn prefixed(example: &Example) {
    let first = Request::get("/app/").ask(example, 80);
    let server = first.body.split(' ').next().unwrap();
    let value = if server == "app1" { "a1~s0" } else { "a2~s0" };
    assert_eq!(header(&first, "set-cookie"), Some(&*format!("JSESSIONID={value}")));
    for (cookie, server) in [("a1", "app1"), ("a2", "app2")] {
        let cookie = format!("JSESSIONID={cookie}~mine");
        for _ in 0..4 {
            let answer = Request::get("/app/").header("Cookie", &cookie).ask(example, 80);
            assert_eq!(answer.body, format!("{server} has session mine\n"));
        }
    }
}
