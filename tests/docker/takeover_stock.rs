//! A container with HAProxy alone is relieved, by the README's command, with the rights that a container has.

use std::process::Command;

use crate::container::{Container, docker, image, words};
use crate::network::{Network, ends_with_0, serving, state};

const EXPOSED: &str = "stats socket /run/admin.sock level admin expose-fd listeners";
/// It says no more than that it exists to whoever has no right to look into it.
const CHANGED_USER: &str = "user haproxy";

fn pid_of(stock: &Container) -> String {
    format!("HAPROXY_PIDS={}", stock.pid())
}

/// Under load, with a download that the old one is to finish.
fn is_relieved(global: &str, arguments: &[&str], rights: &[&str], rung: &str, guard: &str) {
    let network = Network::new();
    let before = network.state();
    let stock = network.stock(global, arguments);
    let (download, load) = (network.download(), network.load());
    // `auto` where it is not named: it is alone in this network
    let named = pid_of(&stock);
    let wanted = if rung == "stats-socket" { &named } else { "HAPROXY_PIDS=auto" };
    let new = network.hapilot("new", &[&["--pid=host", "-e", wanted], rights].concat());
    let status = new.wait_status("a take-over", |status| !status["last_takeover"].is_null());
    let receipt = &status["last_takeover"];
    let predecessor = &receipt["predecessors"][0];
    assert_eq!(
        (&predecessor["rung"], &receipt["guard"]),
        (&rung.into(), &guard.into()),
        "{status}"
    );
    assert_eq!(predecessor["state"], "draining", "{status}");
    let answer = network.answer();
    assert_eq!(words(&answer), "new");
    assert_eq!(state(&stock), "running 0", "it has a download to finish");
    download.finishes();
    ends(&stock, global);
    new.wait_status("the old one's end", |status| {
        status["last_takeover"]["predecessors"][0]["state"] == "gone"
    });
    load.lost_nobody();
    assert!(!new.logs().contains("did not end as it should"), "{}", new.logs());
    assert_eq!(new.stop(), "0");
    before.assert_same(&network.state());
}

/// HAProxy 2.6, once it has changed its user, crashes now and then when it ends, whoever follows.
fn ends(stock: &Container, global: &str) {
    let version = std::env::var("HAPILOT_TEST_HAPROXY").unwrap_or_default();
    if version == "2.6" && global.contains(CHANGED_USER) {
        let status = docker(&["wait", stock.id()]);
        assert!(["0", "139"].contains(&status.as_str()), "{status}");
    } else {
        ends_with_0(stock);
    }
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn by_its_stats_socket_with_no_further_right() {
    is_relieved(EXPOSED, &["-db"], &[], "stats-socket", "none");
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn a_master_by_the_stats_socket_of_its_worker() {
    is_relieved(EXPOSED, &["-W", "-db"], &[], "stats-socket", "none");
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn out_of_its_table_of_descriptors_though_it_changed_its_user() {
    is_relieved(CHANGED_USER, &["-db"], &["--cap-add=SYS_PTRACE"], "pidfd-getfd", "none");
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn without_a_stats_socket_and_without_the_right_under_a_guard() {
    is_relieved("maxconn 1000", &["-db"], &[], "separate", "hold");
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn a_new_container_with_a_broken_configuration_leaves_it_serving() {
    let network = Network::new();
    let before = network.state();
    let stock = network.stock(EXPOSED, &["-db"]);
    let load = network.load();
    let wanted = pid_of(&stock);
    let broken = network.configured(
        "broken",
        "frontend bad\n    bnid :8080\n",
        &["--pid=host", "-e", &wanted],
    );
    assert_eq!(docker(&["wait", broken.id()]), "1", "{}", broken.logs());
    assert!(broken.logs().contains("unknown keyword 'bnid'"), "{}", broken.logs());
    assert_eq!(words(&network.answer()), "stock");
    load.lost_nobody();
    assert_eq!(state(&stock), "running 0");
    before.assert_same(&network.state());
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn without_the_pids_of_the_host_one_line_says_so() {
    let network = Network::new();
    let stock = network.stock(EXPOSED, &["-db"]);
    for wanted in ["HAPROXY_PIDS=auto", &pid_of(&stock)] {
        let new = network.hapilot("new", &["-e", wanted]);
        serving(&new);
        let log = new.logs();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("--pid=host")).collect();
        assert_eq!(lines.len(), 1, "{wanted}: {log}");
        assert_eq!(state(&stock), "running 0");
        assert_eq!(new.stop(), "0");
    }
}

/// The container's first process is tini then, which would not know what to do with a SIGUSR1.
#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn the_script_finds_haproxy_under_an_init_and_as_a_master() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/replace");
    for arguments in [&["-db"][..], &["-W", "-db"]] {
        let network = Network::new();
        let name = format!("hapilot-stock-{}", std::process::id());
        let old = network.stock_with(&["--init", "--name", &name], EXPOSED, arguments);
        let load = network.load();
        let replaced = Command::new(script)
            .args([&name, &image(), "-e", "HAPROXY_PORTS=8080"])
            .output()
            .expect("run scripts/replace");
        assert!(replaced.status.success(), "{}", words(&replaced));
        assert!(words(&replaced).contains("by its stats socket"), "{}", words(&replaced));
        assert_ne!(docker(&["inspect", "--format", "{{.Id}}", &name]), old.id());
        load.lost_nobody();
        docker(&["rm", "--force", &name]);
    }
}
