//! Docker's daemon restarted. It is a daemon of our own: the machine's has others to serve.

use crate::container::{Container, wait_for, words};
use crate::engine::{Containers, Daemon, Networks};
use crate::network::{Load, configuration};
use crate::world::write;

fn instance(hapilot: &Container) -> String {
    hapilot.wait_serving(1)["instance"].as_str().expect("a name").to_owned()
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 5)"]
fn a_daemon_that_restarts_lets_it_serve_on_or_starts_it_anew_on_a_clean_host() {
    let mut daemon = Daemon::new(Networks::HostOnly);
    daemon.start(Containers::LiveOn);
    daemon.load_image("hapilot");
    let file = write(daemon.files(), "haproxy.cfg", &configuration("", "hapilot"));
    let mount = format!("{file}:/usr/local/etc/haproxy/haproxy.cfg:ro");
    let before = daemon.state();
    let options = ["--net=host", "--cap-add=NET_ADMIN", "--restart=always", "-v", &mount];
    let hapilot = daemon.engine().start(&[&options[..], &["hapilot"]].concat());
    let first = instance(&hapilot);
    let load = Load::begin(daemon.host().to_owned());

    daemon.end("TERM");
    daemon.start(Containers::LiveOn);
    load.lost_nobody();
    assert_eq!(instance(&hapilot), first, "it was to live on");
    let reload = hapilot.exec(&["hapilot", "reload"]);
    assert!(reload.status.success(), "{}", words(&reload));

    // killed, it comes back without live-restore and kills what it finds
    daemon.end("KILL");
    assert!(daemon.state().names_hapilot());
    daemon.start(Containers::AreEnded);
    let second = wait_for("another instance", || {
        let status = hapilot.status()?;
        let instance = status["instance"].as_str()?.to_owned();
        (instance != first && status["state"] == "serving").then_some(instance)
    });

    // ended in order, it ends its containers in order
    daemon.end("TERM");
    before.assert_same(&daemon.state());
    daemon.start(Containers::AreEnded);
    assert_ne!(instance(&hapilot), second);
    assert_eq!(hapilot.stop(), "0", "{}", hapilot.logs());
    before.assert_same(&daemon.state());
}
