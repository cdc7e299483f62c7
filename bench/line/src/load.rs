//! An open-loop load: connections are begun when they are due, whatever became of those before, and
//! each is measured from when it was due.
//!
//! The first line that it writes is the time at which the first one is due (`CLOCK_MONOTONIC`, in
//! nanoseconds); at the end there is one for each: due, sent late by, took (microseconds), outcome,
//! the client's own address.

use std::fmt::Write as _;
use std::io::{Write as _, stdout};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::{Errno, read, write};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect, getsockname, socket_with, sockopt,
};
use rustix::time::{ClockId, clock_gettime};

const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
const WHOLE: &[u8] = b"served\n";
const LEAD: Duration = Duration::from_millis(20);

pub(crate) struct Order {
    pub(crate) to: SocketAddr,
    pub(crate) from: Vec<IpAddr>,
    pub(crate) every: Duration,
    pub(crate) count: u32,
    pub(crate) patience: Duration,
}

enum Stage {
    Connecting,
    Answering(Vec<u8>),
}

struct Connection {
    socket: OwnedFd,
    stage: Stage,
}

#[derive(Clone, Copy)]
struct Measured {
    from: SocketAddr,
    late: Duration,
    took: Duration,
    outcome: &'static str,
}

struct Load<'a> {
    order: &'a Order,
    start: Instant,
    epoll: OwnedFd,
    open: Vec<Option<Connection>>,
    results: Vec<Measured>,
    /// All before it have ended.
    oldest: u32,
}

pub(crate) fn run(order: &Order) -> Result<()> {
    let start = Instant::now() + LEAD;
    let clock = Duration::try_from(clock_gettime(ClockId::Monotonic))? + LEAD;
    writeln!(stdout(), "{}", clock.as_nanos())?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut load = Load { order, start, epoll, open: Vec::new(), results: Vec::new(), oldest: 0 };
    load.all()?;
    let mut lines = String::new();
    for (number, result) in (0..).zip(&load.results) {
        let due = (order.every * number).as_micros();
        let (late, took) = (result.late.as_micros(), result.took.as_micros());
        writeln!(lines, "{due} {late} {took} {} {}", result.outcome, result.from)?;
    }
    stdout().write_all(lines.as_bytes())?;
    Ok(())
}

impl Load<'_> {
    fn all(&mut self) -> Result<()> {
        let mut events = Vec::with_capacity(256);
        while self.oldest < self.order.count {
            while self.next() < self.order.count && self.due(self.next()) <= Instant::now() {
                self.begin()?;
            }
            let limit = Timespec::try_from(self.until_something_is_due())?;
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&limit)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for connections"),
            }
            for event in &events {
                self.go_on(u32::try_from(event.data.u64())?)?;
            }
            self.pass_over_ended();
        }
        Ok(())
    }

    fn next(&self) -> u32 {
        u32::try_from(self.open.len()).unwrap_or(u32::MAX)
    }

    fn due(&self, number: u32) -> Instant {
        self.start + self.order.every * number
    }

    fn until_something_is_due(&self) -> Duration {
        let end = self.due(self.oldest) + self.order.patience;
        let at = if self.next() < self.order.count { end.min(self.due(self.next())) } else { end };
        at.saturating_duration_since(Instant::now())
    }

    fn begin(&mut self) -> Result<()> {
        let number = self.next();
        let late = self.due(number).elapsed();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let from = self.order.from[number as usize % self.order.from.len()];
        let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        bind(&socket, &SocketAddr::new(from, 0)).with_context(|| format!("bind to {from}"))?;
        match connect(&socket, &self.order.to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => bail!("connect from {from} to {}: {error}", self.order.to),
        }
        let from = getsockname(&socket)?.try_into().context("read the client's own address")?;
        let data = epoll::EventData::new_u64(number.into());
        epoll::add(&self.epoll, &socket, data, epoll::EventFlags::OUT)?;
        self.open.push(Some(Connection { socket, stage: Stage::Connecting }));
        self.results.push(Measured { from, late, took: Duration::ZERO, outcome: "open" });
        Ok(())
    }

    /// And give up on those that nobody has patience for.
    fn pass_over_ended(&mut self) {
        while self.oldest < self.next() {
            if self.open[self.oldest as usize].is_some() {
                if self.due(self.oldest).elapsed() < self.order.patience {
                    return;
                }
                self.end(self.oldest, "timeout");
            }
            self.oldest += 1;
        }
    }

    fn end(&mut self, number: u32, outcome: &'static str) {
        let took = self.due(number).elapsed();
        let result = &mut self.results[number as usize];
        (result.took, result.outcome) = (took, outcome);
        self.open[number as usize] = None;
    }

    fn go_on(&mut self, number: u32) -> Result<()> {
        let Some(connection) = &mut self.open[number as usize] else { return Ok(()) };
        let done = match &mut connection.stage {
            Stage::Connecting => {
                let asked = connection.ask()?;
                if asked.is_none() {
                    let data = epoll::EventData::new_u64(number.into());
                    let answers = epoll::EventFlags::IN;
                    epoll::modify(&self.epoll, &connection.socket, data, answers)?;
                }
                asked
            }
            Stage::Answering(answer) => listen(&connection.socket, answer)?,
        };
        if let Some(outcome) = done {
            self.end(number, outcome);
        }
        Ok(())
    }
}

impl Connection {
    /// It is connected, or is not: then with the outcome.
    fn ask(&mut self) -> Result<Option<&'static str>> {
        let connected = sockopt::socket_error(&self.socket)?;
        if let Err(error) = connected.and_then(|()| write(&self.socket, REQUEST)) {
            return failure(error).map(Some);
        }
        self.stage = Stage::Answering(Vec::new());
        Ok(None)
    }
}

fn listen(socket: &OwnedFd, answer: &mut Vec<u8>) -> Result<Option<&'static str>> {
    let mut bytes = [0; 4096];
    match read(socket, &mut bytes) {
        Ok(0) if answer.ends_with(WHOLE) => Ok(Some("ok")),
        Ok(0) => Ok(Some("reset")),
        Ok(count) => {
            answer.extend(&bytes[..count]);
            Ok(None)
        }
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => failure(error).map(Some),
    }
}

/// What happened to the connection; anything else happened to the measurement.
fn failure(error: Errno) -> Result<&'static str> {
    match error {
        Errno::CONNREFUSED => Ok("refused"),
        Errno::CONNRESET | Errno::PIPE => Ok("reset"),
        Errno::TIMEDOUT => Ok("timeout"),
        error => bail!("a connection failed: {error}"),
    }
}
