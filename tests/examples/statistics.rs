//! Statistics for whom knows the password: page, CSV, Prometheus; and a runtime socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::example::Example;
use crate::lab::{Instance, SHORT};
use crate::visitor::{Request, header};

/// `admin:change-me`
const RIGHT: &str = "Basic YWRtaW46Y2hhbmdlLW1l";
/// `admin:`
const EMPTY: &str = "Basic YWRtaW46";

#[test]
fn statistics_are_for_whom_knows_the_password() {
    let example = Example::open("statistics");
    without_a_password(&example);
    let mut hapilot = example.serve();
    let ask = |path: &str| Request::get(path).header("Authorization", RIGHT).ask(&example, 8404);
    for path in ["/", "/;csv", "/metrics"] {
        for request in [Request::get(path), Request::get(path).header("Authorization", EMPTY)] {
            let answer = request.ask(&example, 8404);
            assert_eq!(answer.status, 401, "{path}");
            assert!(header(&answer, "www-authenticate").is_some());
        }
        assert_eq!(ask(path).status, 200, "{path}");
    }
    assert!(ask("/").body.contains("Statistics Report"));
    let csv = ask("/;csv").body;
    assert!(csv.contains("# pxname,svname,"), "{csv}");
    assert!(csv.contains("\nweb,web1,"), "{csv}");
    assert!(ask("/metrics").body.contains("haproxy_backend_active_servers{proxy=\"web\"} 1"));

    let old = hapilot.current();
    assert!(socket(&hapilot).contains(&format!("\nPid: {}\n", old.pid)));
    example.reload_under_load(&mut hapilot, 80, Request::get("/").talk());
    let new = hapilot.current();
    assert!(socket(&hapilot).contains(&format!("\nPid: {}\n", new.pid)), "it leads to the new one");
    example.end(hapilot);
}

fn without_a_password(example: &Example) {
    let unset = example.container(&example.lab.balancer, "lb").without_env("STATS_PASSWORD");
    unset.finish().assert_code(1).assert_says(&["STATS_PASSWORD is not set"]);
}

/// `show info` at the path that the configuration gives.
fn socket(hapilot: &Instance) -> String {
    let path = hapilot.run_directory().with_file_name("haproxy-stats.sock");
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(SHORT)).unwrap();
    stream.write_all(b"show info\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
