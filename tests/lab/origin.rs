//! The origin server: remembers who came, and answers when the test lets it.
//!
//! It answers at once, except that `/slow` sends the first half and the second when the test opens the gate.
//! `/hang` sends the first half and nothing more.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::Namespace;
use super::network::ORIGIN_PORT;

/// What `/slow` and `/hang` send at first; `/slow` sends as much again.
pub const HALF: usize = 100_000;

#[derive(Debug)]
pub struct Origin {
    shared: Arc<Shared>,
    server: Namespace,
}

#[derive(Debug, Default)]
struct Shared {
    peers: Mutex<Vec<IpAddr>>,
    gate: Mutex<Gate>,
    moved: Condvar,
    over: AtomicBool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Gate {
    #[default]
    Shut,
    Open,
    Over,
}

impl Origin {
    pub fn start(server: &Namespace) -> Self {
        let shared = Arc::new(Shared::default());
        for address in addresses() {
            let listener = server.enter(|| TcpListener::bind(address).unwrap());
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || accept(&listener, &shared));
        }
        Self { shared, server: server.clone() }
    }

    /// The addresses seen so far, and none of them again.
    pub fn take_peers(&self) -> Vec<IpAddr> {
        std::mem::take(&mut *self.shared.peers.lock().unwrap())
    }

    /// Lets every `/slow` download finish, those that come later too.
    pub fn open_gate(&self) {
        self.move_gate(Gate::Open);
    }

    fn move_gate(&self, to: Gate) {
        *self.shared.gate.lock().unwrap() = to;
        self.shared.moved.notify_all();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.move_gate(Gate::Over);
        for address in addresses() {
            self.server.enter(|| drop(TcpStream::connect(address)));
        }
    }
}

fn addresses() -> [SocketAddr; 2] {
    ["10.2.0.2", "fd00:2::2"].map(|ip| SocketAddr::new(ip.parse().unwrap(), ORIGIN_PORT))
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.over.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let shared = Arc::clone(shared);
        std::thread::spawn(move || drop(answer(&stream, &shared)));
    }
}

fn answer(stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    let peer = stream.peer_addr()?.ip();
    let mut lines = BufReader::new(stream).lines();
    let Some(request) = lines.next().transpose()? else {
        return Ok(());
    };
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    shared.peers.lock().unwrap().push(peer);
    let mut out = stream;
    let hang = request.starts_with("GET /hang");
    if !hang && !request.starts_with("GET /slow") {
        let body = format!("{peer}\n");
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        return out.write_all((head + &body).as_bytes());
    }
    let half = vec![b'x'; HALF];
    write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * HALF)?;
    out.write_all(&half)?;
    let gate = shared.gate.lock().unwrap();
    let gate = shared
        .moved
        .wait_while(gate, |gate| *gate == Gate::Shut || (hang && *gate == Gate::Open))
        .unwrap();
    let opened = *gate == Gate::Open;
    drop(gate);
    if opened { out.write_all(&half) } else { Ok(()) }
}
