//! A Docker daemon of our own, in namespaces of its own: for it they are the host, and every name of an image is free.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::container::{Container, Engine, image, succeed, wait_for};
use crate::host_state::HostState;
use crate::world::{bring_up_loopback, write};

/// A `/run` of its own, or the daemon would take the machine's containerd; `wait` reaps what the daemon leaves behind.
const WORLD: &str = "mount -t tmpfs none /run && echo ready && { sleep infinity & wait; }";

/// What happens to containers while the daemon is away.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Containers {
    /// `--live-restore`.
    LiveOn,
    AreEnded,
}

/// What containers can be given.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Networks {
    /// `--net=host` and `--net=none`.
    HostOnly,
    /// The daemon's own bridges too, and published ports.
    Bridges,
}

pub(crate) struct Daemon {
    files: TempDir,
    /// Everything inside goes with it.
    world: Child,
    /// What is the host for the daemon: PID 1 of the world.
    host: String,
    process: Option<Child>,
    engine: Engine,
    networks: Networks,
}

impl Daemon {
    pub(crate) fn new(networks: Networks) -> Self {
        let files = tempfile::tempdir_in("/var/tmp").expect("make a temporary directory");
        let mut world = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", WORLD])
            .stdout(Stdio::piped())
            .spawn()
            .expect("make namespaces");
        let mut line = String::new();
        let mut said = BufReader::new(world.stdout.take().expect("a pipe"));
        said.read_line(&mut line).expect("wait for the namespaces");
        assert_eq!(line, "ready\n");
        let host = succeed("ps", &["-o", "pid=", "--ppid", &world.id().to_string()]);
        bring_up_loopback(host.trim());
        let engine = Engine::at(&address(files.path()));
        Self { files, world, host: host.trim().to_owned(), process: None, engine, networks }
    }

    pub(crate) fn start(&mut self, containers: Containers) {
        let path = |name: &str| self.files.path().join(name).display().to_string();
        let settings = write(self.files.path(), "daemon.json", "{}");
        let log = std::fs::File::create(path("log")).expect("make a log");
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.host, "-m", "-n", "-p", "dockerd", "--config-file", &settings])
            .args(["--data-root", &path("data"), "--exec-root=/run/docker"])
            .args(["--pidfile=/run/docker.pid", "--host", &self.address()])
            .args(["--exec-opt=native.cgroupdriver=cgroupfs"])
            .stderr(log);
        if self.networks == Networks::HostOnly {
            command.args(["--bridge=none", "--iptables=false", "--ip-forward=false"]);
        }
        if containers == Containers::LiveOn {
            command.arg("--live-restore");
        }
        self.process = Some(command.spawn().expect("start dockerd"));
        wait_for("an answer of the daemon", || {
            self.engine.output(&["version"]).status.success().then_some(())
        });
    }

    pub(crate) fn end(&mut self, signal: &str) {
        let kill = format!("kill -{signal} $(cat /run/docker.pid)");
        succeed("nsenter", &["-t", &self.host, "-m", "-p", "sh", "-c", &kill]);
        let mut process = self.process.take().expect("a daemon that runs");
        wait_for("the daemon's end", || process.try_wait().expect("ask for its end"));
    }

    /// Gives it the image under test, by this name.
    pub(crate) fn load_image(&self, name: &str) {
        let load = "docker save \"$0\" | docker --host \"$1\" load";
        succeed("sh", &["-ec", load, &image(), &self.address()]);
        self.engine.succeed(&["tag", &image(), name]);
    }

    /// As `DOCKER_HOST` has it.
    pub(crate) fn address(&self) -> String {
        address(self.files.path())
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn has(&self, container: &Container) -> bool {
        self.engine.output(&["inspect", container.id()]).status.success()
    }

    /// A process in its network.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// A directory that goes with it.
    pub(crate) fn files(&self) -> &Path {
        self.files.path()
    }

    pub(crate) fn state(&self) -> HostState {
        HostState::of(&self.host)
    }
}

fn address(files: &Path) -> String {
    format!("unix://{}/socket", files.display())
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.files.path().join("log")).unwrap_or_default();
            #[allow(clippy::print_stderr, reason = "a test that fails shows what the daemon said")]
            {
                eprintln!("log of the daemon:\n{log}");
            }
        }
        // a daemon that is ended removes its mounts and control groups
        if self.process.is_some() {
            self.end("TERM");
        }
        let _ = self.world.kill();
        let _ = self.world.wait();
    }
}
