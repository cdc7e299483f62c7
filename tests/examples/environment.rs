//! Values from the environment, and a word about each that is missing.

use crate::example::Example;
use crate::visitor::{Request, header, name};

#[test]
fn values_come_from_the_environment_and_a_missing_one_is_named() {
    let example = Example::open("environment");
    let container = || example.container(&example.lab.balancer, "lb");
    container().without_env("SERVER").finish().assert_code(1).assert_says(&["SERVER is not set"]);
    container()
        .env("SERVER", "")
        .finish()
        .assert_code(1)
        .assert_says(&["haproxy.cfg:28", "'server'"]);

    let mut hapilot = example.serve();
    let answer = Request::get("/").ask(&example, 8000);
    assert_eq!(name(&answer), "web1");
    assert_eq!(header(&answer, "x-application"), Some("shop, build 7"));
    let info = hapilot.runtime(&hapilot.current(), "show info");
    assert!(info.contains("\nMaxconn: 2000\n"), "the value that stands in: {info}");
    example.reload_under_load(&mut hapilot, 8000, Request::get("/").talk());
    example.end(hapilot);
}
