//! Clients: what became of a connection, told apart as a user would see it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::origin::HALF;
use super::{Namespace, SHORT};

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Answered(Answer),
    Refused,
    Reset,
    TimedOut,
    /// The connection ended, properly, before the answer was complete.
    CutShort(usize),
    Other(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
    pub latency: Duration,
}

impl Outcome {
    /// The body of an answer with status 200; anything else fails the test.
    pub fn body(&self) -> &str {
        match self {
            Self::Answered(answer) if answer.status == 200 => answer.body.trim_end(),
            other => panic!("expected an answer with status 200, got {other:?}"),
        }
    }

    pub fn is_answered(&self) -> bool {
        matches!(self, Self::Answered(answer) if answer.status == 200)
    }

    pub fn from_error(error: &std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::TimedOut,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// One request on a connection of its own, from inside the namespace.
pub fn get(namespace: &Namespace, address: &str, path: &str) -> Outcome {
    get_within(namespace, address, path, SHORT)
}

pub fn get_within(namespace: &Namespace, address: &str, path: &str, limit: Duration) -> Outcome {
    namespace.enter(|| request(address, path, limit))
}

fn request(address: &str, path: &str, limit: Duration) -> Outcome {
    let begun = Instant::now();
    match connect(address, limit) {
        Ok(stream) => finish(stream, path, begun),
        Err(error) => Outcome::from_error(&error),
    }
}

pub fn connect(address: &str, limit: Duration) -> std::io::Result<TcpStream> {
    let address: SocketAddr = address.parse().unwrap();
    let stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    Ok(stream)
}

/// Sends the request on a connection that is there already and reads the answer to its end.
pub fn finish(mut stream: TcpStream, path: &str, begun: Instant) -> Outcome {
    if let Err(error) = send(&mut stream, path) {
        return Outcome::from_error(&error);
    }
    read_answer(&mut stream, Vec::new(), begun)
}

fn send(stream: &mut TcpStream, path: &str) -> std::io::Result<()> {
    // in one piece: after several the kernel waits for the ACK of the first, 40 ms
    let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())
}

/// Reads to the end of the connection; what has arrived before is given.
pub fn read_answer(stream: &mut impl Read, mut bytes: Vec<u8>, begun: Instant) -> Outcome {
    if let Err(error) = stream.read_to_end(&mut bytes) {
        return Outcome::from_error(&error);
    }
    let latency = begun.elapsed();
    let text = String::from_utf8_lossy(&bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Outcome::CutShort(bytes.len());
    };
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    if length(head).is_some_and(|length| body.len() < length) {
        return Outcome::CutShort(body.len());
    }
    Outcome::Answered(Answer { status, head: head.to_owned(), body: body.to_owned(), latency })
}

fn length(head: &str) -> Option<usize> {
    let mut headers = head.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    value.trim().parse().ok()
}

/// A download of which the first half has arrived: a session that is in use.
#[derive(Debug)]
pub struct Download {
    stream: TcpStream,
    received: Vec<u8>,
    begun: Instant,
}

impl Download {
    /// Of `/slow`, which finishes when the origin's gate opens, or of `/hang`, which never does.
    pub fn begin(namespace: &Namespace, address: &str, path: &str) -> Self {
        let begun = Instant::now();
        let mut stream = namespace.enter(|| connect(address, SHORT)).unwrap();
        send(&mut stream, path).unwrap();
        let mut received = Vec::new();
        let mut piece = [0; 16_384];
        while received.len() < HALF {
            let count = stream.read(&mut piece).unwrap();
            assert_ne!(count, 0, "the download ended before its first half was there");
            received.extend_from_slice(&piece[..count]);
        }
        Self { stream, received, begun }
    }

    /// Reads on to the end, whichever it is.
    pub fn finish(mut self) -> Outcome {
        read_answer(&mut self.stream, self.received, self.begun)
    }

    /// Whether the connection still stands: nothing to read, and nobody has closed it.
    pub fn is_open(&mut self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let mut piece = [0; 16_384];
        let open = loop {
            match self.stream.read(&mut piece) {
                Ok(0) => break false,
                Ok(count) => self.received.extend_from_slice(&piece[..count]),
                Err(error) => break error.kind() == ErrorKind::WouldBlock,
            }
        };
        self.stream.set_nonblocking(false).unwrap();
        open
    }
}

/// Steady new connections, until told to stop.
#[derive(Debug)]
pub struct Load {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    workers: Vec<JoinHandle<Tally>>,
}

#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub answered: usize,
    pub failed: Vec<Outcome>,
    pub slowest: Duration,
}

const WORKERS: usize = 3;
const PACE: Duration = Duration::from_millis(2);

impl Load {
    pub fn start(namespace: &Namespace, address: &str) -> Self {
        Self::of(namespace, address, |stream| finish(stream, "/", Instant::now()))
    }

    /// Connections on each of which that is said.
    pub fn of(
        namespace: &Namespace,
        address: &str,
        talk: impl Fn(TcpStream) -> Outcome + Clone + Send + 'static,
    ) -> Self {
        let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let worker = || {
            let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
            let (address, talk) = (address.to_owned(), talk.clone());
            namespace.spawn(move || work(&over, &answered, &address, &talk))
        };
        let workers = (0..WORKERS).map(|_| worker()).collect();
        Self { over, answered, workers }
    }

    /// How many were answered so far.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    pub fn finish(self) -> Tally {
        self.over.store(true, Ordering::SeqCst);
        let mut sum = Tally::default();
        for worker in self.workers {
            let tally = worker.join().unwrap();
            sum.answered += tally.answered;
            sum.failed.extend(tally.failed);
            sum.slowest = sum.slowest.max(tally.slowest);
        }
        sum
    }
}

fn work(
    over: &AtomicBool,
    answered: &AtomicUsize,
    address: &str,
    talk: &impl Fn(TcpStream) -> Outcome,
) -> Tally {
    let mut tally = Tally::default();
    while !over.load(Ordering::SeqCst) {
        let begun = Instant::now();
        let outcome = match connect(address, SHORT) {
            Ok(stream) => talk(stream),
            Err(error) => Outcome::from_error(&error),
        };
        match outcome {
            Outcome::Answered(answer) if answer.status == 200 => {
                tally.answered += 1;
                answered.fetch_add(1, Ordering::SeqCst);
                tally.slowest = tally.slowest.max(begun.elapsed());
            }
            other => tally.failed.push(other),
        }
        thread::sleep(PACE);
    }
    tally
}
