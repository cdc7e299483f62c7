//! A folder with a `compose.yaml`, and somebody who types there what its words say.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::container::{PATIENCE, words};
use crate::engine::Daemon;
use crate::world::BALANCER;

pub(crate) fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docker")
}

/// The words that stand for `docker compose`.
pub(crate) fn compose() -> String {
    std::env::var("HAPILOT_TEST_COMPOSE")
        .expect("HAPILOT_TEST_COMPOSE is a Compose: scripts/test sets it")
}

/// A folder with a `compose.yaml` on a daemon's host, and the text that says what to type there.
#[derive(Clone)]
pub(crate) struct Folder {
    path: PathBuf,
    text: String,
    engine: String,
    host: String,
}

impl Folder {
    /// `text` is the name of a file in it.
    pub(crate) fn new(daemon: &Daemon, path: &Path, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: std::fs::read_to_string(path.join(text)).expect("read what to type"),
            engine: daemon.address(),
            host: daemon.host().to_owned(),
        }
    }

    /// A line of the text, in a shell in that process's network.
    fn typed(&self, pid: &str, line: &str) -> Output {
        assert!(self.text.contains(line), "{} does not say {line:?}", self.path.display());
        self.shell(pid, &line.replace("ADDRESS-OF-THIS-HOST", BALANCER[0]))
    }

    fn shell(&self, pid: &str, line: &str) -> Output {
        let mut shell = Command::new("nsenter");
        for proxy in ["http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            shell.env_remove(proxy);
        }
        shell
            .args(["-t", pid, "-n", "--", "bash", "-c"])
            .arg(line.replace("docker compose", &compose()))
            .env("DOCKER_HOST", &self.engine)
            .current_dir(&self.path)
            .output()
            .expect("run a shell")
    }

    pub(crate) fn done(&self, line: &str) {
        let output = self.typed(&self.host, line);
        assert!(output.status.success(), "{line}: {}", words(&output));
    }

    /// Types it until it shows all of this; a line that is to show nothing must succeed.
    pub(crate) fn shows(&self, line: &str, hope: &[&str]) {
        if hope.is_empty() {
            self.done(line);
        } else {
            self.shows_to(&self.host, line, hope);
        }
    }

    /// The same on another machine: in that process's network.
    pub(crate) fn shows_to(&self, pid: &str, line: &str, hope: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shown = words(&self.typed(pid, line));
            if hope.iter().all(|word| shown.contains(word)) {
                return;
            }
            let logs = || words(&self.shell(&self.host, "docker compose logs"));
            assert!(Instant::now() < deadline, "{line} shows {shown}, not {hope:?}\n{}", logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn down(&self) {
        let output = self.shell(&self.host, "docker compose down");
        assert!(output.status.success(), "down: {}", words(&output));
    }
}
