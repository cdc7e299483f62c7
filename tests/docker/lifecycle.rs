//! Run, reload and stop by the README's commands, on the host's own network and on none of it.

use std::net::TcpListener;

use crate::container::{Container, docker, image, machines_network, output, wait_for, words};
use crate::host_state::HostState;
use crate::world::{url, write};

/// A look into the network that `--net=host` means, wherever this test itself runs.
fn window() -> Container {
    Container::start(&["--net=host", "--entrypoint=sleep"], &["infinity"])
}

fn get(address: &str, port: u16) -> String {
    let url = url(address, port);
    wait_for(&format!("an answer from {url}"), || {
        let answer =
            output("curl", &["-sS", "-i", "-g", "--noproxy", "*", "--max-time", "5", &url]);
        answer.status.success().then(|| words(&answer))
    })
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a free port");
    listener.local_addr().expect("ask for its port").port()
}

fn configuration(port: u16, answer: &str) -> String {
    format!(
        "
defaults
    mode http
    timeout client 10s
frontend test
    bind 127.0.0.1:{port}
    http-request return status 200 content-type text/plain string {answer}
"
    )
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn run_reload_and_stop_on_the_hosts_network_leave_the_host_as_it_was() {
    let _alone = machines_network();
    let files = tempfile::tempdir().expect("make a temporary directory");
    let port = free_port();
    let file = write(files.path(), "haproxy.cfg", &configuration(port, "first"));
    let mount = format!("{file}:/usr/local/etc/haproxy/haproxy.cfg:ro");
    let window = window();
    let before = HostState::of(&window.pid());

    let hapilot = Container::start(&["--net=host", "--cap-add=NET_ADMIN", "-v", &mount], &[]);
    hapilot.wait_serving(1);
    assert!(get("127.0.0.1", port).ends_with("first"));
    assert!(HostState::of(&window.pid()).names_hapilot(), "no rule names hapilot");

    write(files.path(), "haproxy.cfg", &configuration(port, "second"));
    docker(&["kill", "-s", "HUP", hapilot.id()]);
    let status = hapilot.wait_serving(2);
    assert!(get("127.0.0.1", port).ends_with("second"));
    assert!(status["last_reload"].is_object(), "no receipt: {status}");

    assert_eq!(hapilot.stop(), "0", "{}", hapilot.logs());
    before.assert_same(&HostState::of(&window.pid()));
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 5)"]
fn after_docker_kill_on_the_hosts_network_a_sweep_leaves_the_host_as_it_was() {
    let _alone = machines_network();
    let files = tempfile::tempdir().expect("make a temporary directory");
    let file = write(files.path(), "haproxy.cfg", &configuration(free_port(), "first"));
    let mount = format!("{file}:/usr/local/etc/haproxy/haproxy.cfg:ro");
    let window = window();
    let before = HostState::of(&window.pid());

    let hapilot = Container::start(&["--net=host", "--cap-add=NET_ADMIN", "-v", &mount], &[]);
    hapilot.wait_serving(1);
    hapilot.docker(&["kill"]);
    assert_eq!(hapilot.docker(&["wait"]), "137");
    assert!(HostState::of(&window.pid()).names_hapilot(), "nothing was left to sweep");
    docker(&["run", "--rm", "--net=host", "--cap-add=NET_ADMIN", &image(), "sweep"]);
    before.assert_same(&HostState::of(&window.pid()));
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn the_bare_container_serves_its_page_and_warns_once_of_each_thing_that_it_lacks_net_admin_for() {
    let _alone = machines_network();
    let hapilot = Container::start(&["-p", "127.0.0.1::80"], &[]);
    hapilot.wait_serving(1);
    let published = docker(&["port", hapilot.id(), "80/tcp"]);
    let port =
        published.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a published port");
    let page = get("127.0.0.1", port);
    assert!(page.contains("HAProxy is up"), "{page}");
    assert!(page.contains("<dt>Generation</dt><dd>1</dd>"), "{page}");
    let version = std::env::var("HAPILOT_TEST_HAPROXY")
        .expect("HAPILOT_TEST_HAPROXY is the version: scripts/test sets it");
    assert!(page.contains(&format!("<dt>HAProxy</dt><dd>{version}.")), "{page}");

    let logs = hapilot.logs();
    let warnings: Vec<&str> = logs.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 2, "{logs}");
    assert!(warnings[0].contains("transparent proxying is off"), "{logs}");
    assert!(warnings[0].contains("NET_ADMIN"), "does not say what is missing: {logs}");
    // The same lack means that a successor cannot be told from another process of this user.
    assert!(warnings[1].contains("may take over") && warnings[1].contains("SECRET_FILE"), "{logs}");

    assert!(hapilot.exec(&["hapilot", "health"]).status.success());
    assert_eq!(hapilot.stop(), "0", "{}", hapilot.logs());
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn a_refused_reload_shows_haproxys_words_and_the_old_generation_serves_on() {
    let _alone = machines_network();
    let files = tempfile::tempdir().expect("make a temporary directory");
    let port = free_port();
    let file = write(files.path(), "haproxy.cfg", &configuration(port, "first"));
    let mount = format!("{file}:/usr/local/etc/haproxy/haproxy.cfg:ro");
    let hapilot = Container::start(&["--net=host", "--cap-add=NET_ADMIN", "-v", &mount], &[]);
    hapilot.wait_serving(1);

    write(files.path(), "haproxy.cfg", "frontend broken\n    bnid 127.0.0.1:1\n");
    let refused = hapilot.exec(&["hapilot", "reload"]);
    assert!(!refused.status.success(), "{refused:?}");
    assert!(words(&refused).contains("unknown keyword 'bnid'"), "{refused:?}");
    assert!(hapilot.logs().contains("unknown keyword 'bnid'"), "{}", hapilot.logs());
    assert!(get("127.0.0.1", port).ends_with("first"));

    write(files.path(), "haproxy.cfg", &configuration(port, "second"));
    let taken = hapilot.exec(&["hapilot", "reload"]);
    assert!(taken.status.success(), "{taken:?}");
    assert!(get("127.0.0.1", port).ends_with("second"));
    assert_eq!(hapilot.stop(), "0", "{}", hapilot.logs());
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn under_an_init_signals_work_and_the_log_says_which_do_not() {
    let hapilot = Container::start(&["--init", "--net=none", "-e", "HAPROXY_PORTS=8080"], &[]);
    hapilot.wait_serving(1);
    assert!(hapilot.logs().contains("does not pass SIGTTOU and SIGTTIN on"), "{}", hapilot.logs());
    docker(&["kill", "--signal=HUP", hapilot.id()]);
    hapilot.wait_serving(2);
    // Its parent ends at once: it is the init's then, which is to reap it.
    hapilot.exec(&["sh", "-c", "sleep 0.01 & exit"]);
    wait_for("no zombie and no orphan", || {
        let all = docker(&["top", hapilot.id(), "-eo", "pid,stat,comm"]);
        (!all.contains("sleep") && !all.contains("defunct")).then_some(())
    });
    assert_eq!(hapilot.stop(), "0", "{}", hapilot.logs());
}
