//! One hapilot that runs: what a test may ask of it and do to it.
//!
//! Whatever happens, none of its processes outlives the value.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::generation::{Generation, generations};
use super::log::Log;
use super::mounts::Mounts;
use super::{LONG, SHORT, bounded, process, until};

#[derive(Debug)]
pub struct Instance {
    pub(super) name: String,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) run: PathBuf,
    pub(super) mounts: Mounts,
    pub(super) child: Child,
    pub log: Log,
}

impl Instance {
    /// Waits until it says of itself that it serves.
    #[must_use]
    pub fn serving(mut self) -> Self {
        self.await_serving();
        self
    }

    pub fn await_serving(&mut self) {
        self.await_status("state is serving", |status| status["state"] == "serving");
    }

    /// Waits until the status answers and is as wanted.
    pub fn await_status(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LONG;
        loop {
            let status = self.try_status();
            if let Some(status) = status.as_ref().filter(|status| wanted(status)) {
                return status.clone();
            }
            if let Some(exit) = self.child.try_wait().unwrap() {
                panic!("{} ended ({exit}) before {what}", self.name);
            }
            assert!(Instant::now() < deadline, "{}: in vain: {what}: {status:?}", self.name);
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn try_status(&self) -> Option<Value> {
        if !self.run.join("hapilot/control.sock").exists() {
            return None;
        }
        let output = self.command(&["status", "--json"]);
        if output.status.success() { serde_json::from_slice(&output.stdout).ok() } else { None }
    }

    pub fn status(&self) -> Value {
        let output = self.command(&["status", "--json"]);
        assert!(output.status.success(), "status: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// `docker exec`: another hapilot command in the same container.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let hapilot = env!("CARGO_BIN_EXE_hapilot");
        self.exec(&[&[hapilot], arguments].concat())
    }

    pub fn exec(&self, words: &[&str]) -> Output {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid().to_string(), "--mount", "--net", "--pid", "--"]);
        command.args(words).env_clear().envs(&self.environment);
        bounded::output(&mut command, LONG)
    }

    /// `hapilot reload`, which must be taken.
    pub fn reload(&self) {
        let output = self.command(&["reload"]);
        assert!(output.status.success(), "reload: {output:?}");
    }

    /// Its `/run/hapilot`, as the test sees it.
    pub fn run_directory(&self) -> PathBuf {
        self.run.join("hapilot")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        process::kill(self.pid(), signal);
    }

    /// Waits for the end, which must come within the limit.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = &self.name;
        let child = &mut self.child;
        until(limit, &format!("the end of {name}"), || child.try_wait().unwrap())
    }

    /// SIGTERM, and a clean end.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait(LONG);
        assert_eq!(status.code(), Some(0), "a stop ends with 0, not with {status}");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The generation that serves, by the status.
    pub fn current(&self) -> Generation {
        let status = self.status();
        let all = generations(&status);
        let serving = all.into_iter().find(|generation| generation.state == "serving");
        serving.unwrap_or_else(|| panic!("no generation serves: {status}"))
    }

    /// Waits until another than that generation serves.
    pub fn await_successor(&mut self, of: &Generation) -> Generation {
        let newer = |status: &Value| {
            let mut all = generations(status).into_iter();
            all.find(|generation| generation.state == "serving" && generation.id > of.id)
        };
        let status = self.await_status("a newer generation serves", |status| {
            status["state"] == "serving" && newer(status).is_some()
        });
        newer(&status).unwrap()
    }

    /// That generation's process as the test sees it; its own PID counts inside the container.
    pub fn process_of(&self, generation: &Generation) -> u32 {
        let all = self.mounts.inhabitants().into_iter();
        let mut own = all.filter(|pid| process::inner_pid(*pid) == Some(generation.pid));
        own.next().unwrap_or_else(|| panic!("no process for {generation:?}"))
    }

    pub fn processes(&self) -> Vec<u32> {
        self.mounts.inhabitants()
    }

    /// A command for HAProxy's own runtime socket of that generation.
    pub fn runtime(&self, generation: &Generation, line: &str) -> String {
        let path = self.run.join(format!("hapilot/generation-{}.sock", generation.id));
        let mut stream = UnixStream::connect(&path)
            .unwrap_or_else(|error| panic!("connect {}: {error}", path.display()));
        stream.set_read_timeout(Some(SHORT)).unwrap();
        writeln!(stream, "{line}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        process::kill(self.child.id(), Signal::SIGKILL);
        let _ = self.child.wait();
        for pid in self.mounts.inhabitants() {
            process::kill(pid, Signal::SIGKILL);
        }
        if thread::panicking() {
            eprintln!("--- {} said:\n{}---", self.name, self.log.text());
        }
    }
}
