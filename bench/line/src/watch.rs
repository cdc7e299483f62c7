//! Who answers: one request after the other, each on a connection of its own, until standard input is
//! closed.
//!
//! A line whenever the first word of the answer is another one than before: the time
//! (`CLOCK_MONOTONIC`, in nanoseconds) at which the whole answer was there, and the word.

use std::io::{Read, Write, stdin, stdout};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
/// Between an answer and the next request.
const PAUSE: Duration = Duration::from_micros(500);
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn run(address: SocketAddr) -> Result<()> {
    let mut last = String::new();
    while wanted()? {
        let who = ask(address).with_context(|| format!("ask {address}"))?;
        if who != last {
            let at = Duration::try_from(clock_gettime(ClockId::Monotonic))?.as_nanos();
            writeln!(stdout(), "{at} {who}")?;
            last = who;
        }
    }
    Ok(())
}

fn wanted() -> Result<bool> {
    let input = stdin();
    let mut sources = [PollFd::new(&input, PollFlags::IN | PollFlags::HUP)];
    poll(&mut sources, Some(&Timespec::try_from(PAUSE)?)).context("wait")?;
    Ok(sources[0].revents().is_empty())
}

fn ask(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    Ok(body.split_whitespace().next().context("an empty answer")?.to_owned())
}
