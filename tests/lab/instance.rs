//! One hapilot, run as a container would run it: its own mounts, its own `/run`, PID 1 or not.
//!
//! The `/run` is a directory that outlives the instance, as a container's does over a restart, and
//! through which the test reaches the sockets. Whatever happens, nothing of it outlives the value.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::thread::UnshareFlags;
use serde_json::Value;

use super::namespace::unshare;
use super::{Host, LONG, Namespace, SHORT, bounded, process, until};

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
}

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
        }
    }

    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.insert(key.to_owned(), value.to_owned());
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

    /// As Docker mounts it.
    pub fn read_only_proc_sys(mut self) -> Self {
        self.proc_sys = READ_ONLY_PROC_SYS;
        self
    }

    /// As a container without `--cap-add=NET_ADMIN`.
    pub fn without_net_admin(mut self) -> Self {
        self.wrapper = ["setpriv", "--bounding-set", "-net_admin"]
            .map(str::to_owned)
            .to_vec();
        self
    }

    pub fn start(self) -> Instance {
        let run = self.host.path(&format!("run-{}", self.name));
        std::fs::create_dir_all(&run).unwrap();
        let script = format!(
            "mount --make-rprivate / && mount --bind \"$0\" /run && mount -t proc proc /proc && \
             {}exec \"$@\"",
            self.proc_sys
        );
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(&run).args(&self.wrapper);
        command
            .arg(env!("CARGO_BIN_EXE_hapilot"))
            .args(&self.arguments);
        command.env_clear().envs(&self.environment);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let flags = match self.pid {
            Pid::One => UnshareFlags::NEWNS | UnshareFlags::NEWPID,
            Pid::OfTheHost => UnshareFlags::NEWNS,
        };
        let (mut child, mounts) = self.host.namespace.enter(|| {
            unshare(flags);
            let mounts = std::fs::read_link("/proc/thread-self/ns/mnt").unwrap();
            (
                command.spawn().unwrap(),
                mounts.to_string_lossy().into_owned(),
            )
        });
        let log = Log::default();
        log.follow(child.stdout.take().unwrap());
        log.follow(child.stderr.take().unwrap());
        Instance {
            name: self.name,
            namespace: self.host.namespace.clone(),
            environment: self.environment,
            run,
            mounts,
            child,
            log,
            begun: Instant::now(),
        }
    }

    /// For what is not to stay: runs it to its end.
    pub fn finish(self) -> Finished {
        let mut instance = self.start();
        let status = instance.wait(LONG);
        instance.log.wait_closed();
        Finished {
            status,
            text: instance.log.text(),
        }
    }
}

/// How a command ended and all that it said.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub text: String,
}

impl Finished {
    pub fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(
            self.status.code(),
            Some(code),
            "{}: it said:\n{}",
            self.status,
            self.text
        );
        self
    }

    /// Every one of these must have been said.
    pub fn assert_says(&self, words: &[&str]) -> &Self {
        for word in words {
            assert!(
                self.text.contains(word),
                "{word:?} is missing in:\n{}",
                self.text
            );
        }
        self
    }
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        let text = [output.stdout, output.stderr].concat();
        Self {
            status: output.status,
            text: String::from_utf8_lossy(&text).into_owned(),
        }
    }
}

#[derive(Debug)]
pub struct Instance {
    name: String,
    namespace: Namespace,
    environment: BTreeMap<String, String>,
    run: PathBuf,
    mounts: String,
    child: Child,
    pub log: Log,
    begun: Instant,
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
            assert!(
                Instant::now() < deadline,
                "{}: in vain: {what}: {status:?}",
                self.name
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn try_status(&self) -> Option<Value> {
        if !self.run.join("hapilot/control.sock").exists() {
            return None;
        }
        let output = self.command(&["status", "--json"]);
        if output.status.success() {
            serde_json::from_slice(&output.stdout).ok()
        } else {
            None
        }
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
        command.args([
            "--target",
            &self.pid().to_string(),
            "--mount",
            "--net",
            "--pid",
            "--",
        ]);
        command.args(words).env_clear().envs(&self.environment);
        bounded::output(&mut command, LONG)
    }

    /// `hapilot reload`, which must be taken.
    pub fn reload(&self) {
        let output = self.command(&["reload"]);
        assert!(output.status.success(), "reload: {output:?}");
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
        until(limit, &format!("the end of {name}"), || {
            child.try_wait().unwrap()
        })
    }

    /// SIGTERM, and a clean end.
    pub fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait(LONG);
        assert_eq!(
            status.code(),
            Some(0),
            "a stop ends with 0, not with {status}"
        );
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The generation that serves, by the status.
    pub fn current(&self) -> Generation {
        let status = self.status();
        let all = generations(&status);
        let serving = all
            .into_iter()
            .find(|generation| generation.state == "serving");
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
        let all = process::inhabitants(&self.mounts).into_iter();
        let mut own = all.filter(|pid| process::inner_pid(*pid) == Some(generation.pid));
        own.next()
            .unwrap_or_else(|| panic!("no process for {generation:?}"))
    }

    pub fn processes(&self) -> Vec<u32> {
        process::inhabitants(&self.mounts)
    }

    /// A command for HAProxy's own runtime socket of that generation.
    pub fn runtime(&self, generation: &Generation, line: &str) -> String {
        let path = self
            .run
            .join(format!("hapilot/generation-{}.sock", generation.id));
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
        for pid in process::inhabitants(&self.mounts) {
            process::kill(pid, Signal::SIGKILL);
        }
        if thread::panicking() {
            eprintln!("--- {} said:\n{}---", self.name, self.log.text());
        }
    }
}

#[derive(Clone, Debug)]
pub struct Generation {
    pub id: u64,
    pub pid: u32,
    pub state: String,
}

pub fn generations(status: &Value) -> Vec<Generation> {
    let all = status["generations"]
        .as_array()
        .expect("generations is a list");
    let one = |value: &Value| Generation {
        id: value["id"].as_u64().expect("id is a number"),
        pid: u32::try_from(value["pid"].as_u64().expect("pid is a number")).unwrap(),
        state: value["state"].as_str().expect("state is a word").to_owned(),
    };
    all.iter().map(one).collect()
}

/// Everything the instance said so far, as it says it.
#[derive(Clone, Debug, Default)]
pub struct Log {
    lines: Arc<(Mutex<Said>, Condvar)>,
}

#[derive(Debug, Default)]
struct Said {
    lines: Vec<String>,
    open: usize,
}

impl Log {
    fn follow(&self, stream: impl Read + Send + 'static) {
        let lines = Arc::clone(&self.lines);
        lines.0.lock().unwrap().open += 1;
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                lines.0.lock().unwrap().lines.push(line);
                lines.1.notify_all();
            }
            lines.0.lock().unwrap().open -= 1;
            lines.1.notify_all();
        });
    }

    pub fn text(&self) -> String {
        let said = self.lines.0.lock().unwrap();
        said.lines.iter().map(|line| format!("{line}\n")).collect()
    }

    pub fn count(&self, words: &str) -> usize {
        self.text()
            .lines()
            .filter(|line| line.contains(words))
            .count()
    }

    /// Waits for a line with those words.
    pub fn await_line(&self, words: &str) -> String {
        let find = |said: &Said| said.lines.iter().find(|line| line.contains(words)).cloned();
        let said = self.lines.0.lock().unwrap();
        let wait = self
            .lines
            .1
            .wait_timeout_while(said, LONG, |said| find(said).is_none());
        let (said, _) = wait.unwrap();
        find(&said).unwrap_or_else(|| panic!("no line with {words:?} came"))
    }

    fn wait_closed(&self) {
        let said = self.lines.0.lock().unwrap();
        let wait = self
            .lines
            .1
            .wait_timeout_while(said, SHORT, |said| said.open > 0)
            .unwrap();
        drop(wait);
    }
}
