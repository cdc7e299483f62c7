//! Busy clients with keep-alive: each asks again as soon as it has its answer, over the same
//! connection, and makes a new one where the server said `Connection: close`.
//!
//! Writes how many requests were answered, how many met a connection that was closed without that
//! word, and how many connections could not be made.

use std::io::{BufRead, BufReader, Read, Write, stdout};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Tally {
    answered: u64,
    closed: u64,
    refused: u64,
}

pub(crate) fn run(to: SocketAddr, clients: u64, time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    let clients: Vec<_> = (0..clients).map(|_| thread::spawn(move || ask(to, until))).collect();
    let mut all = Tally::default();
    for client in clients {
        let Ok(tally) = client.join() else { bail!("a client failed") };
        let tally = tally?;
        all.answered += tally.answered;
        all.closed += tally.closed;
        all.refused += tally.refused;
    }
    writeln!(stdout(), "{} {} {}", all.answered, all.closed, all.refused)?;
    Ok(())
}

fn ask(to: SocketAddr, until: Instant) -> Result<Tally> {
    let mut tally = Tally::default();
    while Instant::now() < until {
        let Ok(stream) = TcpStream::connect_timeout(&to, PATIENCE) else {
            tally.refused += 1;
            continue;
        };
        stream.set_read_timeout(Some(PATIENCE)).context("bound the wait for an answer")?;
        stream.set_nodelay(true).context("send at once")?;
        let mut stream = BufReader::new(stream);
        while Instant::now() < until {
            match answer(&mut stream) {
                Some(Next::Same) => tally.answered += 1,
                Some(Next::New) => {
                    tally.answered += 1;
                    break;
                }
                None => {
                    tally.closed += 1;
                    break;
                }
            }
        }
    }
    Ok(tally)
}

enum Next {
    Same,
    New,
}

/// `None` where the connection was closed instead.
fn answer(stream: &mut BufReader<TcpStream>) -> Option<Next> {
    stream.get_mut().write_all(REQUEST).ok()?;
    let (mut length, mut next) = (0, Next::Same);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "connection: close" {
            next = Next::New;
        }
    }
    stream.read_exact(&mut vec![0; length]).ok()?;
    Some(next)
}
