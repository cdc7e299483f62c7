//! Clients: steady ones, and such as are in the middle of their handshake.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::GetStruct;

use crate::world::{BALANCER, BALANCER6, Namespace, OTHER_ADDRESS, PORT};

// The beginning of `struct tcp_info` (linux/tcp.h).
nix::getsockopt_impl!(TcpInfo, libc::IPPROTO_TCP, libc::TCP_INFO, Info, GetStruct<Info>);

const LIMIT: Duration = Duration::from_secs(8);
/// `tcpi_rtt` and `tcpi_total_retrans`.
const ROUND_TRIP: usize = 17;
const RESENT: usize = 25;

type Info = [u32; 26];

#[derive(Clone, Copy, Debug)]
struct TcpInfo;

/// A connection each so often, whether the ones before are done or not.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<io::Result<Waited>>>,
}

/// What the client's kernel saw of a connection: no thread of a busy machine is in between.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waited {
    /// From the SYN to its answer.
    pub(crate) handshake: Duration,
    /// How often anything was sent again, the SYN included.
    pub(crate) resent: u32,
}

#[derive(Debug)]
pub(crate) struct HalfOpen {
    client: Namespace,
    streams: Vec<TcpStream>,
    /// The rule about the clients' packets after the SYN.
    lost: String,
}

fn at(address: &str) -> SocketAddr {
    format!("{address}:{PORT}").parse().unwrap()
}

pub(crate) fn connect(address: &str, limit: Duration) -> io::Result<TcpStream> {
    connect_to(at(address), limit)
}

fn connect_to(address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// The answer tells the address that the client meant.
fn request(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let meant = format!("\r\n\r\n{}", stream.peer_addr()?.ip());
    let right = answer.starts_with("HTTP/1.1 200") && answer.ends_with(&meant);
    if right { Ok(()) } else { Err(io::Error::other(answer)) }
}

fn ask(address: SocketAddr) -> io::Result<Waited> {
    let mut stream = connect_to(address, LIMIT)?;
    let handshake = Duration::from_micros(getsockopt(&stream, TcpInfo)?[ROUND_TRIP].into());
    request(&mut stream)?;
    Ok(Waited { handshake, resent: getsockopt(&stream, TcpInfo)?[RESENT] })
}

/// Whether a SYN is answered before it would be sent again.
pub(crate) fn connects(client: &Namespace) -> bool {
    client.enter(|| connect(BALANCER, Duration::from_millis(50)).is_ok())
}

/// So many connects at once; how long the slowest took.
pub(crate) fn burst(client: &Namespace, count: usize) -> JoinHandle<Duration> {
    let client = client.clone();
    thread::spawn(move || {
        let one = || {
            let begin = Instant::now();
            connect(BALANCER, LIMIT).and_then(|mut s| request(&mut s)).unwrap();
            begin.elapsed()
        };
        client.enter(|| {
            let all: Vec<_> = (0..count).map(|_| thread::spawn(one)).collect();
            all.into_iter().map(|client| client.join().unwrap()).max().unwrap()
        })
    })
}

impl Load {
    pub(crate) fn start(client: &Namespace, each: Duration) -> Self {
        Self::to(client, each, vec![at(BALANCER), at(BALANCER6)])
    }

    /// By turns.
    pub(crate) fn to(client: &Namespace, each: Duration, addresses: Vec<SocketAddr>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (client, stopped) = (client.clone(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            client.enter(|| {
                let (begin, mut clients) = (Instant::now(), Vec::new());
                while !stopped.load(Ordering::Relaxed) {
                    let due = begin + each * u32::try_from(clients.len()).unwrap();
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    // Threads are born in the namespace of the one that makes them.
                    let address = addresses[clients.len() % addresses.len()];
                    clients.push(thread::spawn(move || ask(address)));
                }
                clients.into_iter().map(|client| client.join().unwrap()).collect()
            })
        });
        Self { stop, thread }
    }

    /// Nobody may have been refused, reset or forgotten; the most that anybody waited.
    pub(crate) fn stop(self) -> Waited {
        self.stop.store(true, Ordering::Relaxed);
        let answers = self.thread.join().unwrap();
        let lost: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
        assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), answers.len());
        eprintln!("{} connections, none lost", answers.len());
        answers.iter().flatten().fold(Waited::default(), |most, one| Waited {
            handshake: most.handshake.max(one.handshake),
            resent: most.resent.max(one.resent),
        })
    }
}

impl HalfOpen {
    /// The clients think that they are connected; the balancer's kernel still waits.
    pub(crate) fn connect(client: &Namespace, count: usize) -> Self {
        Self::to(client, at(OTHER_ADDRESS), count)
    }

    /// To an address of IPv4 that nobody else uses.
    pub(crate) fn to(client: &Namespace, address: SocketAddr, count: usize) -> Self {
        let lost =
            format!("OUTPUT -d {} -p tcp -m tcp --tcp-flags SYN,RST,ACK ACK -j DROP", address.ip());
        client.run(&format!("iptables -w -A {lost}"));
        let connect = |_| connect_to(address, LIMIT).unwrap();
        let streams = client.enter(|| (0..count).map(connect).collect());
        Self { client: client.clone(), streams, lost }
    }

    /// Lets the handshakes finish; each must be answered.
    pub(crate) fn finish(self) {
        let count = self.streams.len();
        let lost = self.count_lost();
        assert_eq!(lost, 0, "of {count} half-open connections");
    }

    pub(crate) fn count_lost(self) -> usize {
        self.client.run(&format!("iptables -w -D {}", self.lost));
        let ask = |mut stream: TcpStream| thread::spawn(move || request(&mut stream));
        let answers: Vec<_> = self.streams.into_iter().map(ask).collect();
        answers.into_iter().map(|a| a.join().unwrap()).filter(Result::is_err).count()
    }
}
