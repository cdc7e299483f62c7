//! `docker/compose.yaml` as it is, with the Compose that `HAPILOT_TEST_COMPOSE` names: v1 and v2 have different ideas of which
//! container to keep, and of when to stop one.

use std::path::{Path, PathBuf};

use crate::container::{Container, succeed, wait_for, words};
use crate::engine::{Containers, Daemon, Networks};
use crate::folder::{Folder, compose, tree};
use crate::network::{Download, Load, configuration, ends_with_0, get, serving};
use crate::world::write;

const UPGRADE: &str = "docker compose rm -f lb && docker compose up -d --no-recreate --scale lb=2";
const BACK: &str = "docker compose up -d --no-recreate --scale lb=1";

/// The newest container of the service.
fn balancer(daemon: &Daemon) -> Container {
    daemon.engine().newest("com.docker.compose.service=lb")
}

fn configure(folder: &Path, text: &str) {
    write(&folder.join("haproxy"), "haproxy.cfg", text);
}

fn answers(daemon: &Daemon, hope: &str) {
    let output = get(daemon.host(), 8080);
    assert_eq!(words(&output), hope);
}

fn status(container: &Container) -> String {
    container.inspect("{{.State.Status}}")
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 4)"]
fn what_the_compose_file_says_starts_reloads_upgrades_and_stops_and_no_connection_is_lost() {
    let mut daemon = Daemon::new(Networks::HostOnly);
    daemon.start(Containers::AreEnded);
    daemon.load_image("hapilot");
    daemon.engine().succeed(&["tag", "hapilot", "hapilot:next"]);
    let directory = daemon.files().join("folder");
    std::fs::create_dir(&directory).expect("make a folder");
    std::fs::copy(tree().join("compose.yaml"), directory.join("compose.yaml")).expect("copy it");
    let folder = Folder::new(&daemon, &directory, "compose.yaml");
    let before = daemon.state();

    folder.done("docker compose up -d");
    let bare = balancer(&daemon);
    bare.wait_serving(1);
    let page = words(&get(daemon.host(), 80));
    assert!(page.contains("HAProxy is up"), "{page}");
    folder.down();
    assert!(!daemon.has(&bare), "it was to be removed");
    before.assert_same(&daemon.state());

    configure(&directory, &configuration("", "first"));
    folder.done("docker compose up -d");
    let first = balancer(&daemon);
    first.wait_serving(1);
    answers(&daemon, "first");
    let load = Load::begin(daemon.host().to_owned());

    configure(&directory, &configuration("", "second"));
    folder.done("docker compose kill -s HUP lb");
    first.wait_serving(2);
    answers(&daemon, "second");

    configure(&directory, &configuration("", "third"));
    write(&directory, ".env", "HAPILOT_IMAGE=hapilot:next\n");
    let download = Download::begin(daemon.host());
    folder.done(UPGRADE);
    let second = balancer(&daemon);
    assert_eq!(second.inspect("{{.Config.Image}}"), "hapilot:next");
    second.wait_status("a take-over", |status| !status["last_takeover"].is_null());
    answers(&daemon, "third");
    assert_eq!(status(&first), "running", "it has a session to finish");
    download.finishes();
    ends_with_0(&first);

    // the next one does not come to serve
    configure(&directory, "frontend broken\n    bnid :8080\n");
    folder.done(UPGRADE);
    let broken = balancer(&daemon);
    assert!(!daemon.has(&first), "rm -f was to remove the first one");
    wait_for("it to be refused", || broken.logs().contains("unknown keyword 'bnid'").then_some(()));
    folder.done(BACK);
    assert!(!daemon.has(&broken), "the broken one was to go");
    serving(&second);
    answers(&daemon, "third");

    configure(&directory, &configuration("", "fourth"));
    folder.done(UPGRADE);
    let third = balancer(&daemon);
    third.wait_status("a take-over", |status| !status["last_takeover"].is_null());
    ends_with_0(&second);
    answers(&daemon, "fourth");
    load.lost_nobody();

    // down waits for the sessions
    let download = Download::begin(daemon.host());
    let down = std::thread::spawn({
        let folder = folder.clone();
        move || folder.down()
    });
    third.wait_status("a stop", |status| status["state"] == "stopping");
    download.finishes();
    down.join().expect("docker compose down");
    assert!(!daemon.has(&third));
    before.assert_same(&daemon.state());
}

#[test]
#[ignore = "needs docker-compose: scripts/test installs it and runs this (issue 6)"]
fn compose_understands_every_file() {
    let examples = std::fs::read_dir(tree().join("examples")).expect("list the examples");
    let folders = examples.map(|entry| entry.expect("list the examples").path());
    let files: Vec<PathBuf> = folders
        .chain([tree()])
        .map(|folder| folder.join("compose.yaml"))
        .filter(|file| file.exists())
        .collect();
    assert!(files.len() > 15, "few files: {files:?}");
    for file in files {
        let file = file.to_str().expect("a path in UTF-8");
        succeed("sh", &["-ec", &format!("{} -f \"$0\" config -q", compose()), file]);
    }
}
