//! One container relieves another, by the README's commands: no right, no PID and no file of the other's is needed.

use std::process::Command;

use crate::container::{docker, image, wait_for, words};
use crate::network::{Network, ends_with_0, serving};
use crate::transparent::LEAST;

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn a_new_container_relieves_the_old_one_without_seeing_its_processes() {
    let network = Network::new();
    let before = network.state();
    let mut old = network.hapilot("n0", &[]);
    serving(&old);
    let load = network.load();
    for number in 1..=5 {
        // tini is PID 1 in every other one
        let options: &[&str] = if number % 2 == 0 { &["--init"] } else { &[] };
        let new = network.hapilot(&format!("n{number}"), options);
        let status = new.wait_status("a take-over", |status| !status["last_takeover"].is_null());
        let rung = &status["last_takeover"]["predecessors"][0]["rung"];
        assert_eq!(rung, "hapilot", "{status}");
        ends_with_0(&old);
        old = new;
    }
    load.lost_nobody();
    assert_eq!(old.stop(), "0");
    before.assert_same(&network.state());
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 5)"]
fn the_least_that_the_readme_names_is_enough_on_both_sides() {
    let network = Network::new();
    let before = network.state();
    let old = network.hapilot("old", &LEAST);
    serving(&old);
    let (download, load) = (network.download(), network.load());
    let new = network.hapilot("new", &LEAST);
    new.wait_status("a take-over", |status| !status["last_takeover"].is_null());
    download.finishes();
    ends_with_0(&old);
    load.lost_nobody();
    assert_eq!(new.stop(), "0");
    before.assert_same(&network.state());
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn two_that_are_always_restarted_come_to_rest_with_one_serving() {
    let network = Network::new();
    let options = ["--restart=always"];
    let one = network.hapilot("one", &options);
    serving(&one);
    let load = network.load();
    let two = network.hapilot("two", &options);
    two.wait_status("a take-over", |status| !status["last_takeover"].is_null());
    // Restarted again and again, it says so and touches nothing.
    wait_for("some restarts", || {
        let count = docker(&["inspect", "--format", "{{.RestartCount}}", one.id()]);
        (count.parse::<u32>().expect("a count") >= 3).then_some(())
    });
    let log = one.logs();
    assert!(log.matches("was relieved by hapilot").count() >= 2, "{log}");
    let status = two.status().expect("a status");
    assert_eq!(status["state"], "serving", "{status}");
    assert_eq!(status["generations"].as_array().map(Vec::len), Some(1), "{status}");
    load.lost_nobody();
    // When the successor is gone the other one may serve again.
    docker(&["rm", "--force", two.id()]);
    serving(&one);
    docker(&["rm", "--force", one.id()]);
}

/// Nothing that is written in such a container is there when it is started again.
#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 4)"]
fn without_a_memory_the_newer_of_two_that_are_always_restarted_keeps_the_service() {
    const NO_MEMORY: [&str; 3] = ["--restart=always", "--read-only", "--tmpfs=/run"];
    let network = Network::new();
    let start = |name: &str, number| {
        let hostname = network.own_hostname(number);
        let hostname = hostname.each_ref().map(String::as_str);
        network.hapilot(name, &[&NO_MEMORY[..], &hostname].concat())
    };
    let one = start("one", 1);
    serving(&one);
    let load = network.load();
    let two = start("two", 2);
    two.wait_status("a take-over", |status| !status["last_takeover"].is_null());
    let restarts = || one.inspect("{{.RestartCount}}").parse::<u32>().expect("a count");
    let more_restarts = |how_many| {
        let before = restarts();
        wait_for("some restarts", || (restarts() >= before + how_many).then_some(()));
    };
    more_restarts(2);
    assert!(one.logs().contains("was relieved by hapilot"), "{}", one.logs());
    load.lost_nobody();
    // Not while the new one is away: then it may serve. When both are back, neither knows that it
    // relieved the other, or was relieved.
    one.docker(&["stop"]);
    two.docker(&["restart", "--time=300"]);
    serving(&two);
    one.docker(&["start"]);
    wait_for("the other one to stay away", || {
        one.logs().contains("made after this one, which is taken for relieved").then_some(())
    });
    let load = network.load();
    more_restarts(2);
    let status = two.status().expect("a status");
    assert_eq!(status["state"], "serving", "{status}");
    load.lost_nobody();
    docker(&["rm", "--force", two.id()]);
    serving(&one);
    docker(&["rm", "--force", one.id()]);
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn the_script_replaces_a_container_and_leaves_it_when_the_new_one_is_broken() {
    let network = Network::new();
    let name = format!("hapilot-replaced-{}", std::process::id());
    let old = network
        .hapilot("first", &["--name", &name, "-e", "HAPROXY_PORTS=8080", "--stop-timeout=300"]);
    serving(&old);
    let load = network.load();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/replace");
    let replace = |more: &[&str]| {
        Command::new(script)
            .args([&name, &image()])
            .args(more)
            .output()
            .expect("run scripts/replace")
    };

    let broken = replace(&["-e", "HAPROXY_PORTS=none"]);
    assert_eq!(broken.status.code(), Some(1), "{}", words(&broken));
    assert!(words(&broken).contains("serves on"), "{}", words(&broken));
    serving(&old);

    let done = replace(&["-e", "HAPROXY_LOG_FORMAT=json"]);
    assert!(done.status.success(), "{}", words(&done));
    let inspect = |what: &str| docker(&["inspect", "--format", what, &name]);
    assert_ne!(inspect("{{.Id}}"), old.id());
    assert_eq!(inspect("{{.State.Status}} {{.Config.StopTimeout}}"), "running 300");
    let environment = inspect("{{.Config.Env}}");
    for variable in ["HAPROXY_PORTS=8080", "HAPROXY_LOG_FORMAT=json", "HAPROXY_PIDS=auto"] {
        assert!(environment.contains(variable), "{variable} in {environment}");
    }
    load.lost_nobody();
    docker(&["rm", "--force", &name]);
}
