//! Servers take turns while they are healthy, and checks are not in the log.

use crate::example::Example;
use crate::lab::{LONG, until};
use crate::visitor::{Request, names, set};

#[test]
fn requests_go_round_the_servers_whose_checks_are_as_expected() {
    let example = Example::open("round-robin");
    let mut hapilot = example.serve();
    let request = Request::get("/some/path");
    assert_eq!(names(&example, &request, 4), set(["web1", "web2"]));
    hapilot.log.await_line("\"GET /some/path HTTP/1.1\"");

    example.whoami["web2"].set_health(500);
    hapilot.log.await_line("Server web/web2 is DOWN");
    assert_eq!(names(&example, &request, 4), set(["web1"]));
    hapilot.reload();
    assert_eq!(names(&example, &request, 4), set(["web1"]), "the new one knows from the start");
    assert_eq!(Request::get("/alive").ask(&example, 80).status, 200);
    example.whoami["web1"].set_health(404);
    hapilot.log.await_line("Server web/web1 is DOWN");
    assert_eq!(Request::get("/alive").ask(&example, 80).status, 503);

    example.whoami.values().for_each(|whoami| whoami.set_health(200));
    hapilot.log.await_line("Server web/web2 is UP");
    until(LONG, "both are back", || {
        (names(&example, &request, 4) == set(["web1", "web2"])).then_some(())
    });
    for quiet in ["/health", "/alive"] {
        assert_eq!(hapilot.log.count(quiet), 0, "{quiet} is in the log");
    }
    example.reload_under_load(&mut hapilot, 80, request.talk());
    example.end(hapilot);
}
