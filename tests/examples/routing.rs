//! Who answers goes by path, host, and a table of hosts.

use crate::example::Example;
use crate::visitor::{Request, field, name};

#[test]
fn requests_go_by_path_and_host_and_the_prefix_is_gone() {
    let example = Example::open("routing");
    let mut hapilot = example.serve();
    let by_host = [
        ("www.example.com", "www"),
        ("anything.else", "www"),
        ("shop.example.com", "shop"),
        ("SHOP.example.com:8080", "shop"),
        ("Store.example.com", "shop"),
        ("api.example.com", "api"),
    ];
    for (host, server) in by_host {
        assert_eq!(name(&Request::get("/").host(host).ask(&example, 80)), server, "{host}");
    }
    let by_path = [
        ("/api", "api", "/"),
        ("/api/", "api", "/"),
        ("/api/users/1", "api", "/users/1"),
        ("/api/a/api/b?c=/api/", "api", "/a/api/b?c=/api/"),
        ("/apiary", "www", "/apiary"),
        ("/other/api/", "www", "/other/api/"),
    ];
    for (path, server, seen) in by_path {
        let answer = Request::get(path).ask(&example, 80);
        assert_eq!(name(&answer), server, "{path}");
        assert!(answer.body.contains(&format!("\nGET {seen} HTTP/1.1\n")), "{path}: {answer:?}");
        let prefix = (server == "api").then_some("/api");
        assert_eq!(field(&answer, "X-Forwarded-Prefix"), prefix, "{path}");
    }
    example.reload_under_load(&mut hapilot, 80, Request::get("/api/users").talk());
    std::fs::write(example.path("hosts.map"), "new.example.com shop\n").unwrap();
    hapilot.reload();
    assert_eq!(name(&Request::get("/").host("new.example.com").ask(&example, 80)), "shop");
    example.end(hapilot);
}
