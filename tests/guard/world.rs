//! Two namespaces, a wire, and a hapilot in a mount namespace of its own, by which all that it
//! started is known and ended.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;
use tempfile::TempDir;

use crate::load::connect;

pub(crate) const BALANCER: &str = "10.9.0.1";
pub(crate) const BALANCER6: &str = "[fd00:9::1]";
/// How many addresses HAProxy listens on.
pub(crate) const LISTENERS: usize = 3;
/// For half-open connections.
pub(crate) const OTHER_ADDRESS: &str = "10.9.0.11";
pub(crate) const PORT: u16 = 8080;

const LONG: Duration = Duration::from_secs(20);

/// A network namespace without a name: it lives as long as somebody holds it.
#[derive(Clone, Debug)]
pub(crate) struct Namespace(Arc<File>);

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) client: Namespace,
    pub(crate) balancer: Namespace,
    dir: TempDir,
}

/// A hapilot that serves.
#[derive(Debug)]
pub(crate) struct Serving {
    child: Child,
    mounts: PathBuf,
    /// Held open, so that the kernel gives its number to nobody else.
    held: File,
    balancer: Namespace,
    config: PathBuf,
}

#[track_caller]
pub(crate) fn until<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

impl Namespace {
    fn create() -> Self {
        let file = thread::spawn(|| {
            let outside = fs::read_link("/proc/thread-self/ns/net").unwrap();
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            assert_ne!(outside, fs::read_link("/proc/thread-self/ns/net").unwrap());
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = Self(Arc::new(file.join().unwrap()));
        namespace.run("ip link set lo up");
        namespace
    }

    /// Does something inside, on a thread of its own.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&*self.0, CloneFlags::CLONE_NEWNET).expect("these tests need root");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub(crate) fn run(&self, line: &str) -> String {
        let output = self.enter(|| Command::new("sh").args(["-c", line]).output().unwrap());
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {words}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn sysctl(&self, name: &str) -> String {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.enter(|| fs::read_to_string(&path).unwrap()).trim().to_owned()
    }

    pub(crate) fn set_sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.enter(|| fs::write(&path, value).unwrap());
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let (client, balancer) = (Namespace::create(), Namespace::create());
        let peer = format!("/proc/{}/fd/{}", std::process::id(), client.0.as_raw_fd());
        balancer.run(&format!(
            "ip link add b0 type veth peer name c0 netns {peer} && ip link set b0 up && \
             ip addr add {BALANCER}/24 dev b0 && ip addr add {OTHER_ADDRESS}/24 dev b0 && ip addr add fd00:9::1/64 dev b0 nodad"
        ));
        client.run("ip link set c0 up && ip addr add 10.9.0.2/24 dev c0");
        client.run("ip addr add fd00:9::2/64 dev c0 nodad");
        // The wire is there a moment after both its ends are up.
        for address in [BALANCER, BALANCER6] {
            until(LONG, "somebody refuses", || {
                let refused = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
                let answer = client.enter(|| connect(address, Duration::from_millis(200)));
                answer.is_err_and(refused).then_some(())
            });
        }
        Self { client, balancer, dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn serve(&self, option: &str, settings: &[(&str, &str)]) -> Serving {
        self.serve_frontend(&frontend(option), LISTENERS, settings)
    }

    pub(crate) fn serve_frontend(
        &self,
        frontend: &str,
        listeners: usize,
        settings: &[(&str, &str)],
    ) -> Serving {
        let (config, run) = (self.dir.path().join("haproxy.cfg"), self.dir.path().join("run"));
        write_config(&config, frontend);
        fs::create_dir(&run).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", "mount --bind \"$0\" /run && exec \"$@\""])
            .arg(&run)
            .arg(env!("CARGO_BIN_EXE_hapilot"))
            .env("HAPROXY_CONFIG", &config)
            .env("HAPROXY_PORTS", PORT.to_string())
            .envs(settings.iter().copied())
            .stdin(Stdio::null());
        let child = self.balancer.enter(|| command.spawn().unwrap());
        let link = PathBuf::from(format!("/proc/{}/ns/mnt", child.id()));
        let outside = fs::read_link("/proc/self/ns/mnt").unwrap();
        let mounts = until(LONG, "hapilot has mounts of its own", || {
            fs::read_link(&link).ok().filter(|mounts| *mounts != outside)
        });
        let held = File::open(&link).unwrap();
        let balancer = self.balancer.clone();
        let serving = Serving { child, mounts, held, balancer, config };
        until(LONG, "it serves", || {
            thread::sleep(Duration::from_millis(20));
            run_directory_socket(&run).filter(|()| serving.state() == "serving")
        });
        // It asks the first generation for its listeners a moment after it serves.
        until(LONG, "it holds its listeners", || {
            let count = serving.status()["listeners"].as_array().unwrap().len();
            (count == listeners).then_some(())
        });
        serving
    }

    /// Of all instances, without counters.
    pub(crate) fn rules(&self) -> String {
        let saved =
            self.balancer.run("iptables-nft-save -t mangle && ip6tables-nft-save -t mangle");
        saved
            .lines()
            .filter(|line| line.starts_with("-A") || line.starts_with(":HAPILOT"))
            .map(|line| line.split(" [").next().unwrap().to_owned() + "\n")
            .chain([self.tables()])
            .collect()
    }

    /// Our tables of nftables, without counters.
    fn tables(&self) -> String {
        let list = self.balancer.run("nft -s list ruleset");
        let tables = list.split_inclusive("\n}\n").map(str::trim_start);
        tables.filter(|table| table.starts_with("table inet HAPILOT")).collect()
    }

    /// Rules for SYNs that wait or are dropped, or a note that a sysctl was changed.
    pub(crate) fn guard_is_up(&self) -> bool {
        // One program, which shows the chains of iptables-nft too: a guard waits for handshakes for a
        // moment only, and on a busy machine each program takes a good part of it.
        let rules = self.balancer.run("nft -s list ruleset");
        ["-GUARD", "tcp dport @guarded", "-MIGRATE"].iter().any(|mark| rules.contains(mark))
    }

    /// Packets that wait for a verdict: the third column, for the one queue that there is.
    pub(crate) fn queued(&self) -> usize {
        let table = self.balancer.run("cat /proc/self/net/netfilter/nfnetlink_queue");
        table.split_whitespace().nth(2).map_or(0, |waiting| waiting.parse().unwrap())
    }

    /// How many sockets listen on the port.
    pub(crate) fn listeners(&self) -> usize {
        self.balancer.run(&format!("ss -Htln 'sport = :{PORT}'")).lines().count()
    }
}

fn run_directory_socket(run: &Path) -> Option<()> {
    run.join("hapilot/control.sock").exists().then_some(())
}

/// With `v6only`: the kernel makes a socket of one IPv6 address so, and HAProxy then takes it for
/// another one than it wants.
fn frontend(option: &str) -> String {
    format!(
        "bind {BALANCER}:{PORT} {option}\n  bind {OTHER_ADDRESS}:{PORT} {option}\n  \
         bind {BALANCER6}:{PORT} v6only {option}"
    )
}

fn write_config(path: &Path, frontend: &str) {
    let text = format!(
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 10s\n  timeout server 10s\n\
         frontend web\n  {frontend}\n  \
         http-request return status 200 content-type text/plain lf-string %[dst]\n"
    );
    fs::write(path, text).unwrap();
}

impl Serving {
    pub(crate) fn configure(&self, option: &str) {
        self.configure_frontend(&frontend(option));
    }

    pub(crate) fn configure_frontend(&self, frontend: &str) {
        write_config(&self.config, frontend);
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Another hapilot command in the same container.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount=/proc/{}/fd/{}", std::process::id(), self.held.as_raw_fd()))
            .arg(env!("CARGO_BIN_EXE_hapilot"))
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.command(&["status", "--json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn state(&self) -> String {
        self.status()["state"].as_str().unwrap_or_default().to_owned()
    }

    /// The receipt.
    pub(crate) fn reload(&self) -> Value {
        self.begin_reload()()
    }

    /// What waits for the end of it.
    pub(crate) fn begin_reload(&self) -> impl FnOnce() -> Value + use<> {
        let mut reload = self.command(&["reload"]).stdout(Stdio::null()).spawn().unwrap();
        let mut status = self.command(&["status", "--json"]);
        move || {
            assert!(reload.wait().unwrap().success());
            let output = status.output().unwrap();
            let status: Value = serde_json::from_slice(&output.stdout).unwrap();
            status["last_reload"].clone()
        }
    }

    /// Stops the HAProxy that serves.
    /// HAProxy; none of its threads accepts anybody after that.
    pub(crate) fn freeze(&self) {
        let status = self.status();
        let pid = status["generations"][0]["pid"].as_i64().unwrap();
        kill("STOP", u32::try_from(pid).unwrap());
        until(LONG, "every thread of HAProxy has stopped", || {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            let stopped = |thread: io::Result<fs::DirEntry>| {
                let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
                stat.rsplit_once(") ").unwrap().1.starts_with('T')
            };
            threads.into_iter().all(stopped).then_some(())
        });
    }

    pub(crate) fn signal(&self, name: &str) {
        kill(name, self.child.id());
    }

    pub(crate) fn wait(&mut self) {
        until(LONG, "hapilot has ended", || self.child.try_wait().unwrap());
    }

    pub(crate) fn sweep(&self) {
        let mut sweep = self.command(&["sweep"]);
        let output = self.balancer.enter(|| sweep.output().unwrap());
        assert!(output.status.success(), "{output:?}");
    }
}

fn kill(signal: &str, pid: u32) {
    let signal = format!("SIG{signal}").parse::<nix::sys::signal::Signal>().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    // Gone already is as good.
    let _ = nix::sys::signal::kill(pid, signal);
}

impl Drop for Serving {
    fn drop(&mut self) {
        let inhabitants = || {
            let pids = fs::read_dir("/proc")
                .unwrap()
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
            let here = |pid: &u32| {
                fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|m| m == self.mounts)
            };
            pids.filter(here).collect::<Vec<_>>()
        };
        // hapilot first, or it would start another HAProxy.
        kill("KILL", self.child.id());
        let _ = self.child.wait();
        for pid in inhabitants() {
            kill("KILL", pid);
        }
    }
}
