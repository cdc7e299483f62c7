//! Acts: a conversation with a generation that began before it was told to drain.
//!
//! From then on HAProxy takes no new one, but it still answers on this one: which sessions it has
//! is asked in that very moment, and at no cost to whoever waits for the drain. Then the
//! conversation ends, for HAProxy does not while it has one.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::session::Session;

/// A HAProxy that is stuck must not be kept alive by us.
const LIMIT: Duration = Duration::from_secs(2);
/// The oldest of them are what keeps a drain from ending.
const MOST: usize = 10_000;
const PROMPT: &[u8] = b"> ";

/// The sessions that there were, and when.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub at: Instant,
    pub sessions: Vec<Session>,
}

#[derive(Debug)]
pub struct Insider {
    drains: Option<oneshot::Sender<()>>,
    snapshot: Rc<RefCell<Option<Snapshot>>>,
    task: JoinHandle<()>,
}

impl Insider {
    #[must_use]
    pub fn enter(socket: PathBuf) -> Self {
        let (drains, told) = oneshot::channel();
        let snapshot = Rc::new(RefCell::new(None));
        let kept = Rc::clone(&snapshot);
        let task = tokio::task::spawn_local(async move {
            match converse(socket, told).await {
                Ok(found) => *kept.borrow_mut() = found,
                Err(error) => tracing::debug!("sessions at the drain: {error:#}"),
            }
        });
        Self { drains: Some(drains), snapshot, task }
    }

    /// It has just been told to drain.
    pub fn ask(&mut self) {
        if let Some(drains) = self.drains.take() {
            // A conversation that failed is over already.
            let _ = drains.send(());
        }
    }

    #[must_use]
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.snapshot.borrow().clone()
    }
}

impl Drop for Insider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn converse(socket: PathBuf, told: oneshot::Receiver<()>) -> Result<Option<Snapshot>> {
    let stream = UnixStream::connect(&socket).await.context("connect")?;
    let mut stream = BufReader::new(stream);
    // Else HAProxy hangs up after its first answer, or after ten idle seconds.
    for line in ["prompt\n", "set timeout cli 24d\n"] {
        stream.get_mut().write_all(line.as_bytes()).await.context("send")?;
        skip_answer(&mut stream).await?;
    }
    if told.await.is_err() {
        return Ok(None);
    }
    tokio::time::timeout(LIMIT, sessions(&mut stream)).await.context("wait for the sessions")?
}

/// To the next prompt.
async fn skip_answer(stream: &mut BufReader<UnixStream>) -> Result<()> {
    loop {
        let mut line = Vec::new();
        ensure!(stream.read_until(b' ', &mut line).await? > 0, "HAProxy hung up");
        if line.ends_with(PROMPT) {
            return Ok(());
        }
    }
}

async fn sessions(stream: &mut BufReader<UnixStream>) -> Result<Option<Snapshot>> {
    let at = Instant::now();
    stream.get_mut().write_all(b"show sess\n").await.context("send")?;
    let mut sessions = Vec::new();
    let mut line = String::new();
    // An empty line ends the answer.
    while stream.take(64 * 1024).read_line(&mut line).await.context("read")? > 0 {
        if line == "\n" {
            break;
        }
        sessions.extend(Session::read(&line));
        line.clear();
        if sessions.len() >= 2 * MOST {
            keep_oldest(&mut sessions);
        }
    }
    keep_oldest(&mut sessions);
    Ok(Some(Snapshot { at, sessions }))
}

fn keep_oldest(sessions: &mut Vec<Session>) {
    sessions.sort_by_key(|session| std::cmp::Reverse(session.age));
    sessions.truncate(MOST);
}
