//! A HAProxy that runs without hapilot, in a container of its own that shares the host's network
//! and, for the test, its PIDs.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::thread::UnshareFlags;

use super::log::Log;
use super::mounts::Mounts;
use super::namespace::unshare;
use super::network::version;
use super::{Host, LONG, SHORT, process, until};

#[derive(Debug)]
pub struct Plain {
    child: Child,
    mounts: Mounts,
    run: PathBuf,
    pub log: Log,
}

/// With no more rights than a container has: who looks into a process needs all of its.
const MOUNTS: &str = "mount --make-rprivate / && mount --bind \"$0\" /run && \
    exec setpriv --bounding-set -sys_ptrace,-sys_admin \"$@\"";

impl Plain {
    /// `-db`, or `-W -db` for a master with a worker. It is there when it listens on so many
    /// addresses, and its master on none of them.
    pub fn start(host: &Host, name: &str, arguments: &str, config: &str) -> Self {
        Self::wrapped(host, name, &[], arguments, config)
    }

    /// Executed by a program that first makes itself less.
    pub fn wrapped(
        host: &Host,
        name: &str,
        wrapper: &[&str],
        arguments: &str,
        config: &str,
    ) -> Self {
        let file = host.write(&format!("{name}.cfg"), config);
        let run = host.path(&format!("run-{name}"));
        std::fs::create_dir_all(&run).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", MOUNTS]).arg(&run).args(wrapper);
        command.arg("haproxy").args(arguments.split_whitespace());
        command.arg("-f").arg(file);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (mut child, mounts) = host.namespace.enter(|| {
            unshare(UnshareFlags::NEWNS);
            (command.spawn().unwrap(), Mounts::of_this_thread())
        });
        let log = Log::default();
        log.follow(child.stdout.take().unwrap());
        log.follow(child.stderr.take().unwrap());
        let mut plain = Self { child, mounts, run, log };
        let binds = config.matches("\n  bind ").count();
        let is_master = arguments.split_whitespace().any(|word| word == "-W");
        until(LONG, "the plain HAProxy listens", || {
            if let Some(exit) = plain.child.try_wait().unwrap() {
                panic!("the plain HAProxy ended: {exit}: {}", plain.log.text());
            }
            let table = host.namespace.run("ss -Htxlnp");
            let of = |line: &str, pid: u32| line.contains(&format!("pid={pid},"));
            let (master, mut pids) = (plain.pid(), plain.processes());
            if is_master {
                pids.retain(|pid| *pid != master);
            }
            // A master has them as well until it has started its worker.
            let own = |line: &&str| {
                pids.iter().any(|pid| of(line, *pid)) && !(is_master && of(line, master))
            };
            (table.lines().filter(own).count() >= binds).then_some(())
        });
        plain
    }

    /// The master, or the only process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn worker(&self) -> u32 {
        let mut others = self.processes().into_iter().filter(|pid| *pid != self.pid());
        others.next().expect("a master has a worker")
    }

    pub fn processes(&self) -> Vec<u32> {
        let mut all = self.mounts.inhabitants();
        all.retain(|pid| process::name(*pid).as_deref() == Some("haproxy"));
        all
    }

    pub fn signal(&self, signal: Signal) {
        process::kill(self.pid(), signal);
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let child = &mut self.child;
        until(limit, "the end of the plain HAProxy", || child.try_wait().unwrap())
    }

    /// After its last session. HAProxy 2.6, once it has changed its user, then crashes now and
    /// then, also where nobody takes over from it.
    pub fn wait_gone(&mut self) {
        let status = self.wait(SHORT);
        let crashed = status.signal() == Some(Signal::SIGSEGV as i32)
            || status.code() == Some(128 + Signal::SIGSEGV as i32);
        let excused = crashed && version().starts_with("HAProxy version 2.6");
        assert!(status.success() || excused, "{status}: {}", self.log.text());
    }

    /// Where its `/run` is for the test.
    pub fn run(&self) -> &std::path::Path {
        &self.run
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        process::kill(self.child.id(), Signal::SIGKILL);
        let _ = self.child.wait();
        for pid in self.mounts.inhabitants() {
            process::kill(pid, Signal::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!("--- the plain HAProxy said:\n{}---", self.log.text());
        }
    }
}
