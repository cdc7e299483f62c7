//! Acts: `/run/hapilot/haproxy.sock`, which leads to the runtime API of whoever serves.
//!
//! A door rather than a symbolic link: whoever comes while no HAProxy serves (it died, and the next
//! one is starting) waits here instead of being refused, and whoever was not answered yet when the
//! generation that he had reached ended is led to the next one, with what he said. Descriptors do
//! not pass: listeners are handed over by the keeper.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::fault::{self, Point};
use crate::process::private;
use crate::process::visitors::{Heard, Visitors, accepted};

pub const SOCKET: &str = "haproxy.sock";
/// HAProxy itself takes a hundred (`stats maxconn` in our fragment).
const MOST_AT_ONCE: usize = 64;
/// While nobody serves.
const PATIENCE: Duration = Duration::from_secs(30);
/// For an answer of one that has just been replaced.
const LAST_WORD: Duration = Duration::from_secs(1);
/// What is kept to be said again; HAProxy's own bound for a command is 16 KiB.
const LONGEST_SPEECH: usize = 64 * 1024;
const PIECE: usize = 16 * 1024;

/// Where the door leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    To(PathBuf),
    /// Somebody will serve.
    NotYet,
    /// We are stopping.
    NoMore,
}

#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    way: watch::Sender<Way>,
    visits: Rc<Notify>,
}

impl Door {
    /// What a killed hapilot left there is replaced; the run directory is ours alone.
    pub fn open(path: &Path) -> Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
        let listener = fault::at(Point::RuntimeDoor).and_then(|()| private::listen(path));
        let listener = listener.and_then(|listener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        });
        let listener = listener.with_context(|| format!("open {}", path.display()))?;
        let (way, ways) = watch::channel(Way::NotYet);
        let visits = Rc::new(Notify::new());
        tokio::task::spawn_local(accept(listener, ways, Rc::clone(&visits)));
        Ok(Self { path: path.to_owned(), way, visits })
    }

    /// Notified whenever somebody leaves, who may have set something by hand.
    #[must_use]
    pub fn visits(&self) -> Rc<Notify> {
        Rc::clone(&self.visits)
    }

    pub fn lead(&self, to: Way) {
        self.way.send_if_modified(|way| {
            let other = *way != to;
            *way = to;
            other
        });
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, way: watch::Receiver<Way>, visits: Rc<Notify>) {
    let mut visitors = Visitors::new(MOST_AT_ONCE);
    loop {
        let stream = accepted("for the runtime API", || listener.accept()).await;
        let mut visitor = Visitor::new(stream, way.clone());
        let visits = Rc::clone(&visits);
        let visit = async move |heard: Heard| {
            let led = visitor.lead(&heard).await;
            tracing::trace!(?led, "runtime API");
            visits.notify_one();
        };
        visitors.admit(visit).await;
    }
}

/// What became of a connection before HAProxy's first word.
enum Fate {
    /// It spoke: the visitor is its own from now on.
    Answered(Vec<u8>),
    /// It ended without a word, or was replaced and has none.
    Lost,
    VisitorLeft,
}

struct Visitor {
    stream: UnixStream,
    way: watch::Receiver<Way>,
    said: Vec<u8>,
    /// He says no more, but may wait for an answer.
    silent: bool,
}

impl Visitor {
    fn new(stream: UnixStream, way: watch::Receiver<Way>) -> Self {
        Self { stream, way, said: Vec::new(), silent: false }
    }

    async fn lead(&mut self, heard: &Heard) -> std::io::Result<()> {
        // Who says nothing takes no place at HAProxy, who would soon hang up.
        let mut piece = vec![0; PIECE];
        match timeout(PATIENCE, self.stream.read(&mut piece)).await {
            Ok(Ok(count)) if count > 0 => self.said.extend_from_slice(&piece[..count]),
            _ => return Ok(()),
        }
        heard.note();
        loop {
            let Ok(path) = timeout(PATIENCE, self.somebody()).await else {
                return self.tell("hapilot: no HAProxy serves\n").await;
            };
            let Some(path) = path else {
                return self.tell("hapilot: stopping, HAProxy answers no more\n").await;
            };
            let fate = match UnixStream::connect(&path).await {
                Ok(mut haproxy) => match self.first_word(&mut haproxy, &path).await {
                    Fate::Answered(word) => {
                        self.stream.write_all(&word).await?;
                        copy_bidirectional(&mut self.stream, &mut haproxy).await?;
                        return Ok(());
                    }
                    fate => fate,
                },
                Err(_) => Fate::Lost,
            };
            if matches!(fate, Fate::VisitorLeft) {
                return Ok(());
            }
            // Whoever is gone is soon replaced, or the last one to go.
            if timeout(PATIENCE, self.other_than(&path)).await.is_err() {
                return self.tell("hapilot: HAProxy does not answer\n").await;
            }
        }
    }

    async fn tell(&mut self, words: &str) -> std::io::Result<()> {
        self.stream.write_all(words.as_bytes()).await
    }

    /// `None` when nobody will.
    async fn somebody(&mut self) -> Option<PathBuf> {
        match self.way.wait_for(|way| *way != Way::NotYet).await.ok()?.clone() {
            Way::To(path) => Some(path),
            Way::NotYet | Way::NoMore => None,
        }
    }

    async fn other_than(&mut self, path: &Path) {
        // An error says that the door is closed, which is another way too.
        let _ = self.way.wait_for(|way| !matches!(way, Way::To(to) if to == path)).await;
    }

    async fn first_word(&mut self, haproxy: &mut UnixStream, path: &Path) -> Fate {
        if haproxy.write_all(&self.said).await.is_err() {
            return Fate::Lost;
        }
        if self.silent && haproxy.shutdown().await.is_err() {
            return Fate::Lost;
        }
        let Self { stream, way, said, silent } = self;
        let replaced = async {
            let _ = way.wait_for(|way| !matches!(way, Way::To(to) if to == path)).await;
            sleep(LAST_WORD).await;
        };
        tokio::select! {
            fate = converse(stream, haproxy, said, silent) => fate,
            () = replaced => Fate::Lost,
        }
    }
}

async fn converse(
    visitor: &mut (impl AsyncRead + Unpin),
    haproxy: &mut (impl AsyncRead + AsyncWrite + Unpin),
    said: &mut Vec<u8>,
    silent: &mut bool,
) -> Fate {
    let (mut hears, mut speaks) = tokio::io::split(haproxy);
    let (mut piece, mut word) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        tokio::select! {
            answer = hears.read(&mut word) => return match answer {
                Ok(0) | Err(_) => Fate::Lost,
                Ok(count) => Fate::Answered(word[..count].to_vec()),
            },
            more = visitor.read(&mut piece), if !*silent => {
                let passed = match more {
                    Err(_) => return Fate::VisitorLeft,
                    Ok(0) => {
                        *silent = true;
                        speaks.shutdown().await
                    }
                    Ok(count) => {
                        said.extend_from_slice(&piece[..count]);
                        speaks.write_all(&piece[..count]).await
                    }
                };
                if passed.is_err() {
                    return Fate::Lost;
                }
                if said.len() > LONGEST_SPEECH {
                    // Too much to be said again.
                    return Fate::Answered(Vec::new());
                }
            }
        }
    }
}
