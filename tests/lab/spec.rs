//! What a container is given, and how it comes to life: its own mounts, its own `/run`, PID 1 or not.
//!
//! The `/run` is a directory that outlives the instance, as a container's does over a restart, and
//! through which the test reaches the sockets.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::thread::UnshareFlags;

use super::finished::Finished;
use super::instance::Instance;
use super::log::Log;
use super::mounts::Mounts;
use super::namespace::unshare;
use super::{Host, LONG};

/// Whether the instance is the first process of its container, or lives among the host's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pid {
    One,
    OfTheHost,
}

/// What the container is given; the words after `run` in `docker run`.
#[derive(Clone, Debug)]
pub struct Spec<'h> {
    host: &'h Host,
    name: String,
    environment: BTreeMap<String, String>,
    arguments: Vec<String>,
    wrapper: Vec<String>,
    pid: Pid,
    proc_sys: &'static str,
    hostname: Option<String>,
    binds: Vec<(PathBuf, &'static str)>,
    dev: &'static str,
}

/// What the machine has in the usual places of a configuration is not in the container.
const MOUNTS: &str = "mount --make-rprivate / && mount --bind \"$0\" /run && \
    mount -t proc proc /proc && for etc in /etc/haproxy /usr/local/etc/haproxy; do \
    [ ! -d $etc ] || mount -t tmpfs none $etc; done";

/// Where the image looks for its configuration.
pub const CONFIGURATION: &str = "/usr/local/etc/haproxy";
const OWN_DEV: &str = "mkdir -p \"$0/dev\" && \
    cp -af /dev/null /dev/zero /dev/random /dev/urandom \"$0/dev\" && mount --bind \"$0/dev\" /dev && ";

const READ_ONLY_PROC_SYS: &str = "mount --bind /proc/sys /proc/sys && \
    mount -o remount,ro,bind /proc/sys && ";

impl<'h> Spec<'h> {
    pub fn new(host: &'h Host, name: &str) -> Self {
        let path = std::env::var("PATH").unwrap();
        Self {
            host,
            name: name.to_owned(),
            environment: BTreeMap::from([("PATH".to_owned(), path)]),
            arguments: Vec::new(),
            wrapper: Vec::new(),
            pid: Pid::One,
            proc_sys: "",
            hostname: None,
            binds: Vec::new(),
            dev: "",
        }
    }

    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn envs(self, settings: &[(&str, &str)]) -> Self {
        settings.iter().fold(self, |spec, (key, value)| spec.env(key, value))
    }

    pub fn without_env(mut self, key: &str) -> Self {
        assert!(self.environment.remove(key).is_some(), "{key} was not set at all");
        self
    }

    pub fn config(self, path: &Path) -> Self {
        let path = path.to_str().unwrap().to_owned();
        self.env("HAPROXY_CONFIG", &path)
    }

    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    pub fn pid(mut self, pid: Pid) -> Self {
        self.pid = pid;
        self
    }

    /// A `/dev` as a container's: found again in the `/run` of that name.
    pub fn own_dev(mut self) -> Self {
        self.dev = OWN_DEV;
        self
    }

    /// As Docker mounts it.
    pub fn read_only_proc_sys(mut self) -> Self {
        self.proc_sys = READ_ONLY_PROC_SYS;
        self
    }

    pub fn hostname(mut self, name: &str) -> Self {
        self.hostname = Some(name.to_owned());
        self
    }

    /// `--volume`, read-only: a directory in the place of the configuration, or one file for another.
    pub fn bind(mut self, source: &Path, target: &'static str) -> Self {
        self.binds.push((source.to_owned(), target));
        self
    }

    /// As a container without `--cap-add=NET_ADMIN`.
    pub fn without_net_admin(self) -> Self {
        self.without_capabilities("-net_admin")
    }

    /// As `setpriv` writes them: `-net_admin,-dac_override`.
    pub fn without_capabilities(self, list: &str) -> Self {
        self.wrapped(&["setpriv", "--bounding-set", list])
    }

    /// Executed by a program that first makes itself less.
    pub fn wrapped(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    pub fn start(self) -> Instance {
        let run = self.host.path(&format!("run-{}", self.name));
        std::fs::create_dir_all(&run).unwrap();
        let mut mounts = MOUNTS.to_owned();
        for (source, target) in &self.binds {
            if *target == CONFIGURATION {
                mounts.push_str(
                    " && mount -t tmpfs none /usr/local/etc && mkdir /usr/local/etc/haproxy",
                );
            }
            let _ = write!(mounts, " && mount --bind -o ro {} {target}", source.display());
        }
        if let Some(name) = &self.hostname {
            let _ = write!(mounts, " && hostname {name}");
        }
        let script = format!("{mounts} && {}{}exec \"$@\"", self.proc_sys, self.dev);
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(&run).args(&self.wrapper);
        command.arg(env!("CARGO_BIN_EXE_hapilot")).args(&self.arguments);
        // In /, as in a container: where the tests are, not everybody may be.
        command.env_clear().envs(&self.environment).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let flags = match self.pid {
            Pid::One => UnshareFlags::NEWNS | UnshareFlags::NEWPID,
            Pid::OfTheHost => UnshareFlags::NEWNS,
        };
        let flags =
            flags | self.hostname.as_ref().map_or(UnshareFlags::empty(), |_| UnshareFlags::NEWUTS);
        let (mut child, mounts) = self.host.namespace.enter(|| {
            unshare(flags);
            // first: the child soon puts another /proc over ours
            let mounts = Mounts::of_this_thread();
            (command.spawn().unwrap(), mounts)
        });
        let log = Log::default();
        log.follow(child.stdout.take().unwrap());
        log.follow(child.stderr.take().unwrap());
        Instance { name: self.name, environment: self.environment, run, mounts, child, log }
    }

    /// For what is not to stay: runs it to its end.
    pub fn finish(self) -> Finished {
        let mut instance = self.start();
        let status = instance.wait(LONG);
        instance.log.wait_closed();
        Finished { status, text: instance.log.text() }
    }
}
