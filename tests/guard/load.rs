//! Clients: steady ones, and such as are in the middle of their handshake.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::world::{BALANCER, BALANCER6, Namespace, OTHER_ADDRESS, PORT};

const LIMIT: Duration = Duration::from_secs(8);
/// The client's packets after the SYN.
const LOST: &str = "OUTPUT -d 10.9.0.11 -p tcp -m tcp --tcp-flags SYN,RST,ACK ACK -j DROP";

/// A connection each so often, whether the ones before are done or not.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(io::Result<()>, Duration)>>,
}

#[derive(Debug)]
pub(crate) struct HalfOpen {
    client: Namespace,
    streams: Vec<TcpStream>,
}

pub(crate) fn connect(address: &str, limit: Duration) -> io::Result<TcpStream> {
    let address: SocketAddr = format!("{address}:{PORT}").parse().unwrap();
    let stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

fn request(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(io::Error::other(answer)) }
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
        let stop = Arc::new(AtomicBool::new(false));
        let (client, stopped) = (client.clone(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            client.enter(|| {
                let (begin, mut clients) = (Instant::now(), Vec::new());
                while !stopped.load(Ordering::Relaxed) {
                    let due = begin + each * u32::try_from(clients.len()).unwrap();
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    // Threads are born in the namespace of the one that makes them.
                    let address = [BALANCER, BALANCER6][clients.len() % 2];
                    clients.push(thread::spawn(move || {
                        let answer = connect(address, LIMIT).and_then(|mut s| request(&mut s));
                        (answer, due.elapsed())
                    }));
                }
                clients.into_iter().map(|client| client.join().unwrap()).collect()
            })
        });
        Self { stop, thread }
    }

    /// Nobody may have been refused, reset or forgotten; the slowest.
    pub(crate) fn stop(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let answers = self.thread.join().unwrap();
        let lost: Vec<_> = answers.iter().filter_map(|(answer, _)| answer.as_ref().err()).collect();
        assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), answers.len());
        eprintln!("{} connections, none lost", answers.len());
        answers.iter().map(|(_, time)| *time).max().unwrap()
    }
}

impl HalfOpen {
    /// The clients think that they are connected; the balancer's kernel still waits.
    pub(crate) fn connect(client: &Namespace, count: usize) -> Self {
        client.run(&format!("iptables -w -A {LOST}"));
        let streams =
            client.enter(|| (0..count).map(|_| connect(OTHER_ADDRESS, LIMIT).unwrap()).collect());
        Self { client: client.clone(), streams }
    }

    /// Lets the handshakes finish; each must be answered.
    pub(crate) fn finish(self) {
        let count = self.streams.len();
        let lost = self.count_lost();
        assert_eq!(lost, 0, "of {count} half-open connections");
    }

    pub(crate) fn count_lost(self) -> usize {
        self.client.run(&format!("iptables -w -D {LOST}"));
        let ask = |mut stream: TcpStream| thread::spawn(move || request(&mut stream));
        let answers: Vec<_> = self.streams.into_iter().map(ask).collect();
        answers.into_iter().map(|a| a.join().unwrap()).filter(Result::is_err).count()
    }
}
