//! A network that containers share and that is nobody else's: `--net=host` but for whose it is.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::container::{Container, output, wait_for, words};
use crate::host_state::HostState;
use crate::world::{bring_up_loopback, url, write};

const DOWNLOAD: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(50);

/// Says who answers; a download comes from the origin that `Network::download` makes.
pub(crate) fn configuration(global: &str, answer: &str) -> String {
    format!(
        "
global
    {global}
defaults
    mode http
    timeout client 60s
    timeout connect 5s
    timeout server 60s
frontend test
    bind :8080
    http-request return status 200 content-type text/plain string {answer} unless {{ path /download }}
    default_backend origin
backend origin
    server origin 127.0.0.1:8000
"
    )
}

#[derive(Debug)]
pub(crate) struct Network {
    holder: Container,
    files: TempDir,
}

impl Network {
    pub(crate) fn new() -> Self {
        let holder = Container::start(&["--net=none", "--entrypoint=sleep"], &["infinity"]);
        bring_up_loopback(&holder.pid());
        Self { holder, files: tempfile::tempdir().expect("make a temporary directory") }
    }

    pub(crate) fn option(&self) -> String {
        format!("--net=container:{}", self.holder.id())
    }

    /// Relieves whoever is there, unless `options` say otherwise.
    pub(crate) fn hapilot(&self, answer: &str, options: &[&str]) -> Container {
        self.configured(answer, &configuration("", answer), options)
    }

    pub(crate) fn configured(&self, name: &str, text: &str, options: &[&str]) -> Container {
        let file = write(self.files.path(), name, text);
        let mount = format!("{file}:/usr/local/etc/haproxy/haproxy.cfg:ro");
        let network = self.option();
        let given = ["--cap-add=NET_ADMIN", &network, "-v", &mount, "-e", "HAPROXY_PIDS=auto"];
        Container::start(&[&given, options].concat(), &[])
    }

    /// The options that give a container a hostname file of its own, as one on `--net=host` has: here it
    /// would be the holder's.
    pub(crate) fn own_hostname(&self, number: u8) -> [String; 2] {
        let directory = self.files.path().join(format!("{number:064x}"));
        std::fs::create_dir(&directory).expect("make a directory");
        let file = write(&directory, "hostname", "balancer\n");
        ["-v".to_owned(), format!("{file}:/etc/hostname:ro")]
    }

    /// HAProxy alone is PID 1: what stands for Docker's own image of it.
    pub(crate) fn stock(&self, global: &str, arguments: &[&str]) -> Container {
        self.stock_with(&[], global, arguments)
    }

    pub(crate) fn stock_with(
        &self,
        options: &[&str],
        global: &str,
        arguments: &[&str],
    ) -> Container {
        let file = write(self.files.path(), "stock", &configuration(global, "stock"));
        let mount = format!("{file}:/usr/local/etc/haproxy/haproxy.cfg:ro");
        let given = [&self.option(), "-v", &mount, "--no-healthcheck", "--entrypoint=haproxy"];
        let command = ["-f", "/usr/local/etc/haproxy/haproxy.cfg"];
        let stock = Container::start(&[&given, options].concat(), &[&command, arguments].concat());
        wait_for("an answer", || self.answer().status.success().then_some(()));
        stock
    }

    pub(crate) fn state(&self) -> HostState {
        HostState::of(&self.holder.pid())
    }

    pub(crate) fn answer(&self) -> Output {
        get(&self.holder.pid(), 8080)
    }

    pub(crate) fn load(&self) -> Load {
        Load::begin(self.holder.pid())
    }

    pub(crate) fn download(&self) -> Download {
        Download::begin(&self.holder.pid())
    }
}

/// What is answered in that process's network.
pub(crate) fn get(pid: &str, port: u16) -> Output {
    let url = url("127.0.0.1", port);
    let curl = ["curl", "-sS", "--noproxy", "*", "--max-time", "5", &url];
    output("nsenter", &[&["-t", pid, "-n", "--"][..], &curl].concat())
}

fn enter<T: Send>(pid: &str, work: impl FnOnce() -> T + Send) -> T {
    let path = format!("/proc/{pid}/ns/net");
    let there = File::open(path).expect("open the network namespace");
    let enter = || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(there.as_fd(), kind).expect("this needs root");
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter).join().expect("work in that network"))
}

#[derive(Debug)]
pub(crate) struct Load {
    over: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Vec<String>)>,
}

impl Load {
    /// New connections all the time, in that process's network; what went wrong with each that was not answered.
    pub(crate) fn begin(pid: String) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let (mut answered, mut failed) = (0, Vec::new());
            while !told.load(Ordering::SeqCst) {
                let done = fetch(&pid);
                if done.status.success() {
                    answered += 1;
                } else {
                    failed.push(words(&done));
                }
            }
            (answered, failed)
        });
        Self { over, thread }
    }

    pub(crate) fn lost_nobody(self) {
        self.over.store(true, Ordering::SeqCst);
        let (answered, failed) = self.thread.join().expect("join the load");
        assert!(answered > 0 && failed.is_empty(), "of {answered} times fifty: {failed:?}");
    }
}

#[derive(Debug)]
pub(crate) struct Download {
    client: BufReader<TcpStream>,
    gate: Sender<()>,
    origin: JoinHandle<()>,
}

impl Download {
    /// In that process's network; half of it has come when this comes back.
    pub(crate) fn begin(pid: &str) -> Self {
        let (gate, opened) = channel();
        let listener = enter(pid, || TcpListener::bind("127.0.0.1:8000").expect("bind the origin"));
        let origin = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("accept a download");
            // whatever is not read makes a reset of the end
            skip_head(&mut BufReader::new(&client));
            let half = vec![b'x'; DOWNLOAD / 2];
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {DOWNLOAD}\r\n\r\n");
            client.write_all(head.as_bytes()).expect("send a head");
            client.write_all(&half).expect("send one half");
            opened.recv_timeout(LIMIT).expect("wait for the gate");
            client.write_all(&half).expect("send the other half");
        });
        let mut client = enter(pid, || TcpStream::connect("127.0.0.1:8080").expect("connect"));
        client.set_read_timeout(Some(LIMIT)).expect("limit how long a download may take");
        client.write_all(b"GET /download HTTP/1.0\r\n\r\n").expect("ask for a download");
        let mut client = BufReader::new(client);
        skip_head(&mut client);
        client.read_exact(&mut vec![0; DOWNLOAD / 2]).expect("read one half");
        Self { client, gate, origin }
    }

    pub(crate) fn finishes(mut self) {
        self.gate.send(()).expect("open the gate");
        let mut rest = Vec::new();
        self.client.read_to_end(&mut rest).expect("read the other half");
        assert_eq!(rest.len(), DOWNLOAD / 2);
        self.origin.join().expect("join the origin");
    }
}

fn skip_head(from: &mut impl BufRead) {
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        assert_ne!(from.read_line(&mut line).expect("read a head"), 0, "it ended in the head");
    }
}

/// Fifty connections one after the other, each answered.
fn fetch(pid: &str) -> Output {
    let script = "for n in $(seq 50); do exec 3<>/dev/tcp/127.0.0.1/8080 || exit 1; \
        printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; grep -q '200 OK' <&3 || exit 2; exec 3>&-; done";
    output("nsenter", &["-t", pid, "-n", "--", "bash", "-c", script])
}

pub(crate) fn serving(container: &Container) {
    container.wait_status("serving", |status| status["state"] == "serving");
}

/// `running 0` while it runs.
pub(crate) fn state(container: &Container) -> String {
    container.inspect("{{.State.Status}} {{.State.ExitCode}}")
}

pub(crate) fn ends_with_0(container: &Container) {
    wait_for("the relieved one's end with 0", || (state(container) == "exited 0").then_some(()));
}
