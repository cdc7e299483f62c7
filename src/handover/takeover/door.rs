//! Acts: the door for a successor, on the lease's abstract socket.
//!
//! Every container on the same network namespace can knock. Only peers with our own user are heard,
//! and only those that have shown what the door asks for (`host/introduction`) are let in. Who is there, the listeners, and what HAProxy knows is answered here; what changes our life is the
//! supervisor's to decide and comes to it as a `Knock`. A visitor that hangs up before it said `retire` is gone.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::protocol::{Answer, Caller, Hello, LONGEST_LINE, Request, SILENCE, stranger};
use crate::fault::{self, Point};
use crate::haproxy::runtime_api::THROUGH;
use crate::host::instance::Instance;
use crate::host::introduction::{self, Admission, CLOSED};
use crate::host::lease::Lease;
use crate::listeners::keeper::Offer;
use crate::listeners::wire;
use crate::process::visitors::{Heard, Visitors, accepted, refusal};

const PATIENCE: Duration = Duration::from_secs(5);
/// Each has a descriptor.
const MOST_AT_ONCE: usize = 100;
/// Of a process that has shown nothing yet, as of a hundred others at once.
const LONGEST_KNOCK: usize = 4096;
/// A successor may have others to wait for before it wants something of us.
const LONGEST_WAIT: Duration = Duration::from_mins(30);
/// For the last word to those whom we have told that we drain.
const FAREWELL: Duration = Duration::from_millis(200);

/// A visitor, by the order in which they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit(u64);

/// What only the supervisor can answer.
#[derive(Debug)]
pub enum Knock {
    Reserve {
        visit: Visit,
        by: Caller,
        answer: oneshot::Sender<Answer>,
    },
    /// Whatever is answered goes to the visitor, until the sender is dropped.
    Retire {
        visit: Visit,
        answers: mpsc::UnboundedSender<Answer>,
    },
    /// It hung up before it said `retire`.
    Left {
        visit: Visit,
    },
}

/// What everybody is told who says hello. The supervisor keeps it up to date.
pub type Facts = Rc<RefCell<Hello>>;

/// What every visit needs.
#[derive(Clone, Debug)]
struct Room {
    facts: Facts,
    offer: Offer,
    knocks: mpsc::UnboundedSender<Knock>,
    /// That leads to whoever serves.
    runtime_socket: PathBuf,
    instance: Instance,
    admission: Admission,
}

#[derive(Debug)]
pub struct Door {
    /// Nobody else is let in from then on.
    closing: Rc<Notify>,
    serving: JoinHandle<()>,
}

impl Door {
    pub fn open(
        lease: &Lease,
        facts: Facts,
        offer: Offer,
        knocks: mpsc::UnboundedSender<Knock>,
        runtime_socket: PathBuf,
        admission: Admission,
    ) -> Result<Self> {
        fault::at(Point::SuccessorsDoor).context("open the successor's door")?;
        let listener = lease.listener().try_clone().context("share the lease's socket")?;
        let listener = UnixListener::from_std(listener).context("watch the lease's socket")?;
        let instance = lease.instance();
        let room = Room { facts, offer, knocks, runtime_socket, instance, admission };
        let closing = Rc::new(Notify::new());
        let serving = tokio::task::spawn_local(serve(listener, room, Rc::clone(&closing)));
        Ok(Self { closing, serving })
    }

    /// Lets those read their last line who wait for our end.
    pub async fn farewell(self) {
        self.closing.notify_one();
        let over = async {
            // Whatever goes wrong, it is not worth more of our time.
            let _ = fault::within(Point::Farewell).await;
            let _ = self.serving.await;
        };
        let _ = tokio::time::timeout(FAREWELL, over).await;
    }
}

async fn serve(listener: UnixListener, room: Room, closing: Rc<Notify>) {
    let mut visitors = Visitors::new(MOST_AT_ONCE);
    tokio::select! {
        () = closing.notified() => {}
        () = accept(&listener, &room, &mut visitors) => {}
    }
    visitors.leave().await;
}

async fn accept(listener: &UnixListener, room: &Room, visitors: &mut Visitors) {
    for number in 0.. {
        let stream = accepted("of a successor", || listener.accept()).await;
        let (room, visit) = (room.clone(), Visit(number));
        let visit = async move |heard: Heard| {
            if let Err(error) = room.receive(stream, visit, &heard).await {
                tracing::debug!(error = format!("{error:#}"), "at the successor's door");
            }
        };
        visitors.admit(visit).await;
    }
}

type Stream = BufReader<UnixStream>;

impl Room {
    async fn receive(&self, stream: UnixStream, visit: Visit, heard: &Heard) -> Result<()> {
        fault::within(Point::Visit).await?;
        let refusal = refusal(&stream)?;
        let mut stream = BufReader::new(stream);
        if let Some(reason) = refusal.or_else(|| self.closed()) {
            return say(&mut stream, &Answer::Refused { reason, by: None }).await;
        }
        let introduced = self.introduced(&mut stream);
        let introduced = tokio::time::timeout(PATIENCE, introduced).await;
        match introduced.context("wait for an introduction")?? {
            Introduced::Welcome => {}
            Introduced::No(reason) => {
                return say(&mut stream, &Answer::Refused { reason, by: None }).await;
            }
            Introduced::Left => return Ok(()),
        }
        heard.note();
        let first = tokio::time::timeout(PATIENCE, line(&mut stream, LONGEST_LINE))
            .await
            .context("wait for a word")??;
        let Some(first) = first else { return Ok(()) };
        if first.as_bytes() == wire::REQUEST {
            return self.offer.give(&mut stream.into_inner()).await;
        }
        if first == THROUGH {
            return self.lead_to_haproxy(&mut stream).await;
        }
        let Request::Hello(caller) = understood(&first)? else { bail!("no hello came first") };
        let hello = self.facts.borrow().clone();
        say(&mut stream, &Answer::Hello(hello)).await?;
        let next = tokio::time::timeout(LONGEST_WAIT, line(&mut stream, LONGEST_LINE)).await;
        match next.context("wait for what it wants")?? {
            Some(next) => match understood(&next)? {
                Request::Reserve => self.reserve(stream, visit, caller).await,
                other => bail!("{other:?} came too early"),
            },
            None => Ok(()),
        }
    }

    fn closed(&self) -> Option<String> {
        (self.admission == Admission::Closed).then(|| CLOSED.to_owned())
    }

    async fn introduced(&self, stream: &mut Stream) -> Result<Introduced> {
        // It may only look whether we live (`lease::lives`).
        let Some(first) = line(stream, LONGEST_KNOCK).await? else { return Ok(Introduced::Left) };
        let received = introduction::receive(stream, &first, self.instance, self.admission).await;
        Ok(received.map_or_else(Introduced::No, |_| Introduced::Welcome))
    }

    async fn reserve(&self, mut stream: Stream, visit: Visit, by: Caller) -> Result<()> {
        if let Some(reason) = stranger(by.protocol) {
            return say(&mut stream, &Answer::Refused { reason, by: None }).await;
        }
        let (answer, answered) = oneshot::channel();
        self.knock(Knock::Reserve { visit, by, answer })?;
        let left = self.until_retire(&mut stream, visit, answered).await;
        match left {
            Ok(Next::Retire) => self.retire(stream, visit).await,
            other => {
                // Whatever went wrong: it does not take over, and we need not hold still.
                self.knock(Knock::Left { visit })?;
                other.map(drop)
            }
        }
    }

    async fn until_retire(
        &self,
        stream: &mut Stream,
        visit: Visit,
        answered: oneshot::Receiver<Answer>,
    ) -> Result<Next> {
        let answer = tokio::select! {
            answer = answered => answer.unwrap_or_else(|_| Answer::Refused {
                reason: "this hapilot is ending".to_owned(),
                by: None,
            }),
            early = line(stream, LONGEST_LINE) => {
                ensure!(early?.is_none(), "{visit:?} spoke before it was answered");
                return Ok(Next::Left);
            }
        };
        say(stream, &answer).await?;
        let reserved = matches!(answer, Answer::Reserved { .. });
        let until = Instant::now() + LONGEST_WAIT;
        while Instant::now() < until {
            let Ok(next) = tokio::time::timeout(SILENCE, line(stream, LONGEST_LINE)).await else {
                break;
            };
            let Some(next) = next? else { return Ok(Next::Left) };
            match understood(&next)? {
                Request::Still => {}
                Request::Retire if reserved => return Ok(Next::Retire),
                other => bail!("{other:?} came after {answer:?}"),
            }
        }
        let reason = format!(
            "nothing was heard from the successor for {} s, so it is not waited for any more",
            SILENCE.as_secs()
        );
        tracing::warn!("{reason}");
        // It may be paused, and read this when it goes on.
        say(stream, &Answer::Refused { reason, by: None }).await?;
        Ok(Next::Left)
    }

    async fn retire(&self, mut stream: Stream, visit: Visit) -> Result<()> {
        let (answers, mut answered) = mpsc::unbounded_channel();
        self.knock(Knock::Retire { visit, answers })?;
        while let Some(answer) = answered.recv().await {
            say(&mut stream, &answer).await?;
        }
        Ok(())
    }

    /// For a successor that carries over what it knows.
    async fn lead_to_haproxy(&self, visitor: &mut Stream) -> Result<()> {
        let path = &self.runtime_socket;
        let connected = UnixStream::connect(path).await;
        let mut haproxy = connected.with_context(|| format!("connect to {}", path.display()))?;
        tokio::io::copy_bidirectional(visitor, &mut haproxy).await.context("talk to HAProxy")?;
        Ok(())
    }

    fn knock(&self, knock: Knock) -> Result<()> {
        self.knocks.send(knock).ok().context("hapilot is ending")
    }
}

/// What came of the first words of a visitor.
enum Introduced {
    Welcome,
    No(String),
    Left,
}

enum Next {
    Retire,
    Left,
}

/// `None` at the end of the connection.
pub(super) async fn line(stream: &mut Stream, longest: usize) -> io::Result<Option<String>> {
    let mut line = String::new();
    let limit = u64::try_from(longest).unwrap_or(u64::MAX);
    let read = stream.take(limit).read_line(&mut line).await?;
    Ok((read > 0).then_some(line))
}

fn understood(line: &str) -> Result<Request> {
    serde_json::from_str(line).with_context(|| format!("understand {:?}", excerpt(line)))
}

/// The beginning of what a stranger may have said, for a message.
pub(super) fn excerpt(line: &str) -> String {
    line.trim_end().chars().take(200).collect()
}

async fn say(stream: &mut Stream, answer: &Answer) -> Result<()> {
    let mut line = serde_json::to_vec(answer).context("write an answer")?;
    line.push(b'\n');
    tokio::time::timeout(PATIENCE, stream.get_mut().write_all(&line))
        .await
        .context("the peer does not read its answer")?
        .context("send an answer")
}
