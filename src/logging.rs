//! Where log lines go: stderr, and never at the price of waiting.
//!
//! Whoever reads our stderr (a log driver, a terminal) may be slow or stopped. A line that does not
//! fit into the pipe right now waits in memory, up to a bound; beyond it lines are dropped, counted,
//! and the count is logged as soon as there is room again.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::Notify;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::printable::printable;
use crate::process::readiness::writable as writable_again;
use crate::settings::LogFormat;

const MOST_WAITING: usize = 1024 * 1024;
/// A pipe that is writable takes this much without blocking (`PIPE_BUF`, pipe(7)).
const PIECE: usize = 4096;
pub const LAST_WORDS: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    /// Since somebody was told.
    dropped: u64,
    dropped_ever: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Log {
    waiting: Arc<Mutex<Waiting>>,
    stuck: Arc<Notify>,
}

/// Sets up logging for the whole process; the returned log is to be flushed.
#[must_use]
pub fn start(format: LogFormat, level: LevelFilter) -> Log {
    let log = Log::default();
    let fmt = tracing_subscriber::fmt::layer().with_writer(log.clone()).with_ansi(false);
    let registry = tracing_subscriber::registry().with(level);
    // A second start in one process (only tests do that) keeps the first.
    let _ = match format {
        LogFormat::Text => registry.with(fmt.with_target(false)).try_init(),
        LogFormat::Json => registry.with(fmt.json().flatten_event(true)).try_init(),
    };
    log
}

impl Log {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lines that were dropped since the start.
    #[must_use]
    pub fn dropped_so_far(&self) -> u64 {
        self.waiting().dropped_ever
    }

    fn push(&self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = line.strip_suffix('\n').unwrap_or(&line);
        // Names of processes, sockets and peers are anybody's, and so are HAProxy's words.
        let line = printable(line) + "\n";
        let line = line.as_bytes();
        let mut waiting = self.waiting();
        if waiting.bytes.len() + line.len() > MOST_WAITING {
            waiting.dropped += 1;
            waiting.dropped_ever += 1;
        } else {
            waiting.bytes.extend(line);
        }
        if !waiting.write_what_fits() {
            self.stuck.notify_one();
        }
    }

    /// Writes what had to wait as soon as it can be written; to be run beside everything else.
    pub async fn flush_when_possible(&self) {
        loop {
            self.stuck.notified().await;
            while !self.waiting().write_what_fits() {
                // A regular file cannot be watched, and never makes us wait either.
                let Ok(stderr) = rustix::io::dup(io::stderr().as_fd()) else {
                    break;
                };
                if writable_again(stderr).await.is_err() {
                    break;
                }
            }
        }
    }

    /// At the end: gives the reader a moment to take the last words.
    pub fn finish(&self) {
        let until = Instant::now() + LAST_WORDS;
        while !self.waiting().write_what_fits() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !writable(left) {
                return;
            }
        }
    }
}

impl Waiting {
    /// True when nothing waits any more.
    fn write_what_fits(&mut self) -> bool {
        while !self.bytes.is_empty() {
            if !writable(Duration::ZERO) {
                return false;
            }
            let (front, _) = self.bytes.as_slices();
            let piece = &front[..front.len().min(PIECE)];
            match rustix::io::write(io::stderr().as_fd(), piece) {
                Ok(written) => drop(self.bytes.drain(..written)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return false,
                // Nobody reads any more; there is nobody to tell.
                Err(_) => self.bytes.clear(),
            }
            if self.bytes.is_empty() && self.dropped > 0 {
                let dropped = std::mem::take(&mut self.dropped);
                let note = format!("hapilot: {dropped} log lines dropped: the reader was slow\n");
                self.bytes.extend(note.as_bytes());
            }
        }
        true
    }
}

fn writable(wait: Duration) -> bool {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    let wait = Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
    // An end without a reader counts as writable: the write then says so.
    matches!(poll(&mut fds, Some(&wait)), Ok(1..))
}

/// One line; tracing writes each event with a single call, but is not obliged to.
#[derive(Debug)]
pub struct Line {
    log: Log,
    bytes: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.log.push(&self.bytes);
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { log: self.clone(), bytes: Vec::new() }
    }
}
