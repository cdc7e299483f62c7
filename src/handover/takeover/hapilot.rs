//! Acts: another hapilot, at whose door we knock.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::door::{excerpt, line};
use super::protocol::{Answer, Caller, HAS_HAPROXY, Hello, LONGEST_LINE, Request, STILL};
use crate::fault::{self, Point};
use crate::host::instance::Instance;
use crate::host::introduction::{Admission, Shown};
use crate::host::lease;
use crate::listeners::fetch::{self, Listener};
use crate::process::patience::within;

/// Of those that answer.
const MOST: usize = 64;
const AT_ONCE: usize = 32;
/// For all of them: those that do not answer may be many.
const MEET_LIMIT: Duration = Duration::from_secs(20);
/// One that starts sets its host up without a pause to answer us.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// It may be starting or reloading, and its HAProxy may take as long as ours may.
const RESERVE_LIMIT: Duration = Duration::from_mins(6);
const PACE: Duration = Duration::from_millis(50);
/// Of a doubtful one: its hello, and what it listens on.
const LONGEST_DOUBTFUL: usize = 8 * 1024;
const MOST_DOUBTFUL: usize = 1024;
/// The kernel closes a killed one's sockets one by one.
const DEATH_LIMIT: Duration = Duration::from_secs(5);
/// It has to take its interception away first.
const RETIRE_LIMIT: Duration = Duration::from_secs(10);

/// One that lives here, and has said so.
#[derive(Debug)]
pub struct Hapilot {
    pub hello: Hello,
    instance: Instance,
    /// As we see it; `None` where it is in a PID namespace that we do not see.
    pub pid: Option<i32>,
    /// It has not shown what we could check: it may be a stranger that has our user. Its word may give
    /// us listeners, but it neither keeps us from starting nor sets anything in our HAProxy.
    pub is_doubtful: bool,
    /// `None` while it is held.
    stream: Option<BufReader<UnixStream>>,
    held: Option<Held>,
}

/// What came of asking it to hold still.
#[derive(Debug)]
pub enum Reserved {
    Yes {
        paused: bool,
    },
    /// Another successor came first, or it is on its way out.
    No {
        reason: String,
        by: Option<String>,
    },
    /// It ended meanwhile.
    Gone,
}

/// What came of telling it that we serve.
#[derive(Debug)]
pub enum Retired {
    /// How many sessions it has to finish, if it knows.
    Drains { sessions: Option<u64> },
    /// It does not hold still for us any more, and serves on.
    LetDown { reason: String },
    /// It had ended before.
    Gone,
}

/// One that holds still for us, for as long as it hears from us.
#[derive(Debug)]
struct Held {
    /// `None` once it is released.
    task: Option<JoinHandle<Result<BufReader<UnixStream>, Over>>>,
    release: Option<oneshot::Sender<()>>,
    let_down: Option<oneshot::Receiver<String>>,
}

/// Why it does not hold still any more.
#[derive(Debug)]
enum Over {
    LetDown(String),
    Gone,
}

impl Held {
    fn hold(stream: BufReader<UnixStream>) -> Self {
        let (release, released) = oneshot::channel();
        let (tell, let_down) = oneshot::channel();
        let task = tokio::task::spawn_local(async move {
            let held = hold(stream, released).await;
            if let Err(Over::LetDown(reason)) = &held {
                let _ = tell.send(reason.clone());
            }
            held
        });
        Self { task: Some(task), release: Some(release), let_down: Some(let_down) }
    }

    async fn release(mut self) -> Result<BufReader<UnixStream>, Over> {
        drop(self.release.take());
        match self.task.take() {
            Some(task) => task.await.unwrap_or(Err(Over::Gone)),
            None => Err(Over::Gone),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The connection ends with the task, and with it what it held still for.
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn hold(
    mut stream: BufReader<UnixStream>,
    mut released: oneshot::Receiver<()>,
) -> Result<BufReader<UnixStream>, Over> {
    let mut ticks = tokio::time::interval(STILL);
    loop {
        let heard = tokio::select! {
            biased;
            heard = stream.fill_buf() => match heard {
                Ok([]) => Err(io::ErrorKind::UnexpectedEof.into()),
                heard => heard.map(drop),
            },
            _ = &mut released => return Ok(stream),
            _ = ticks.tick() => say(&mut stream, &Request::Still).await.map_err(io::Error::other),
        };
        // It has said something, or did not hear us because it has hung up.
        if heard.is_err() || !stream.buffer().is_empty() {
            return Err(match hear(&mut stream).await {
                Ok(Some(Answer::Refused { reason, .. })) => Over::LetDown(reason),
                _ => Over::Gone,
            });
        }
    }
}

impl Hapilot {
    pub async fn meet(instance: Instance, caller: &Caller) -> Result<Self> {
        within(HELLO_LIMIT, Self::greet(instance, caller))
            .await
            .with_context(|| format!("say hello to hapilot {instance}"))
    }

    /// In this order. Any process may have taken such a name: of the answers no more are waited for
    /// at once, and kept, than there is room for.
    pub async fn meet_each(instances: &[Instance], caller: &Caller) -> Vec<Result<Self>> {
        let (mut met, begun): (Vec<Result<Self>>, _) = (Vec::new(), Instant::now());
        for some in instances.chunks(AT_ONCE) {
            let answered = met.iter().filter(|met| met.is_ok()).count();
            if answered + some.len() > MOST || begun.elapsed() > MEET_LIMIT {
                let why = || anyhow!("{} names like hapilots' were looked at before it", met.len());
                met.extend(some.iter().map(|_| why()).map(Err).collect::<Vec<_>>());
                continue;
            }
            let some = some.iter().map(|instance| Self::meet(*instance, caller));
            met.extend(futures_util::future::join_all(some).await);
        }
        met
    }

    async fn greet(instance: Instance, caller: &Caller) -> Result<Self> {
        fault::within(Point::Meet).await?;
        let (stream, shown) = lease::enter(instance).await?;
        let pid = stream.peer_cred().context("ask who it is")?.pid().filter(|pid| *pid > 0);
        let mut stream = BufReader::new(stream);
        let is_doubtful = shown == Shown::Nothing && Admission::here().0 == Admission::Shown;
        let longest = if is_doubtful { LONGEST_DOUBTFUL } else { LONGEST_LINE };
        say(&mut stream, &Request::Hello(caller.clone())).await?;
        match hear_up_to(longest, &mut stream).await? {
            Some(Answer::Hello(hello)) => {
                let stream = Some(stream);
                Ok(Self { hello, instance, pid, is_doubtful, stream, held: None })
            }
            Some(Answer::Refused { reason, .. }) => bail!(reason),
            Some(other) => bail!("it answered {other:?}"),
            None => bail!("it hung up"),
        }
    }

    #[must_use]
    pub fn name(&self) -> String {
        let Hello { version, haproxy_version, .. } = &self.hello;
        format!("hapilot {} (hapilot {version}, HAProxy {haproxy_version})", self.instance)
    }

    /// Waits until it has nothing under way; for a doubtful one no longer than `doubt`.
    pub async fn reserve(&mut self, doubt: Duration) -> Result<Reserved> {
        let limit = if self.is_doubtful { doubt } else { RESERVE_LIMIT };
        let mut stream = self.stream.take().context("ask it again")?;
        if say(&mut stream, &Request::Reserve).await.is_err() {
            return Ok(Reserved::Gone);
        }
        let answer = tokio::time::timeout(limit, hear_at(Point::Reserve, &mut stream));
        match answer.await.context("wait until it holds still")?? {
            Some(Answer::Reserved { paused }) => {
                self.held = Some(Held::hold(stream));
                Ok(Reserved::Yes { paused })
            }
            Some(Answer::Refused { reason, by }) => Ok(Reserved::No { reason, by }),
            Some(other) => bail!("it answered {other:?}"),
            None => Ok(Reserved::Gone),
        }
    }

    /// Its door leads there too. `None` while its HAProxy is dead, and of a doubtful one: what it says of
    /// servers and counters is not put into ours.
    #[must_use]
    pub fn runtime_socket(&self) -> Option<PathBuf> {
        if self.is_doubtful {
            return None;
        }
        let name = format!("@{}", self.instance.lease_name());
        HAS_HAPROXY.contains(&self.hello.state.as_str()).then(|| name.into())
    }

    /// Duplicates of what it listens on.
    pub async fn listeners(&self) -> Result<Vec<Listener>> {
        let fetch = async {
            fault::within(Point::Borrow).await?;
            let most = if self.is_doubtful { MOST_DOUBTFUL } else { fetch::MOST };
            fetch::from(lease::enter(self.instance).await?.0, most).await
        };
        within(HELLO_LIMIT, fetch)
            .await
            .with_context(|| format!("ask hapilot {} for its listeners", self.instance))
    }

    /// Told why it does not hold still for us any more, should that come before `retire`. Not of a
    /// doubtful one.
    pub fn let_down(&mut self) -> Option<oneshot::Receiver<String>> {
        if self.is_doubtful {
            return None;
        }
        self.held.as_mut()?.let_down.take()
    }

    /// We serve. An error where it did not hear us, or said no.
    pub async fn retire(&mut self) -> Result<Retired> {
        let held = self.held.take().context("it was not asked to hold still")?;
        let mut stream = match held.release().await {
            Ok(stream) => stream,
            Err(Over::Gone) => return Ok(Retired::Gone),
            Err(Over::LetDown(reason)) => return Ok(Retired::LetDown { reason }),
        };
        let asked = say(&mut stream, &Request::Retire).await;
        let answer = tokio::time::timeout(RETIRE_LIMIT, hear_at(Point::Retire, &mut stream));
        let answer = answer.await.context("wait until it lets go")??;
        self.stream = Some(stream);
        match answer {
            Some(Answer::Draining { sessions }) => Ok(Retired::Drains { sessions }),
            // It had said so before it could hear us.
            Some(Answer::Refused { reason, .. }) if asked.is_err() => {
                Ok(Retired::LetDown { reason })
            }
            Some(Answer::Refused { reason, .. }) => bail!(reason),
            Some(other) => bail!("it answered {other:?}"),
            None => Ok(Retired::Gone),
        }
    }

    /// Waits until one that hung up without a last word is dead: then what it had on the host is
    /// nobody's.
    pub async fn dead(&self) {
        if tokio::time::timeout(DEATH_LIMIT, lease::dead(self.instance)).await.is_err() {
            tracing::warn!("{} hung up and lives: what it has on the host stays", self.name());
        }
    }

    /// Until it is gone; `None` where it did not say with which status.
    pub async fn ended(&mut self, mut drains: impl FnMut(Option<u64>)) -> Option<u8> {
        let mut ended = None;
        let mut stream = self.stream.take();
        let Some(stream) = &mut stream else { return ended };
        while let Ok(Some(answer)) = hear(stream).await {
            // It may say so without end.
            tokio::time::sleep(PACE).await;
            match answer {
                Answer::Draining { sessions } => drains(sessions),
                Answer::Ended { status } => ended = Some(status),
                _ => {}
            }
        }
        ended
    }
}

async fn say(stream: &mut BufReader<UnixStream>, request: &Request) -> Result<()> {
    let mut line = serde_json::to_vec(request).context("write a request")?;
    line.push(b'\n');
    stream.get_mut().write_all(&line).await.context("send a request")
}

async fn hear_at(point: Point, stream: &mut BufReader<UnixStream>) -> Result<Option<Answer>> {
    fault::within(point).await?;
    hear(stream).await
}

/// `None` at the end of the connection, however it came.
async fn hear(stream: &mut BufReader<UnixStream>) -> Result<Option<Answer>> {
    hear_up_to(LONGEST_LINE, stream).await
}

async fn hear_up_to(longest: usize, stream: &mut BufReader<UnixStream>) -> Result<Option<Answer>> {
    match line(stream, longest).await {
        Ok(Some(text)) => {
            serde_json::from_str(&text).with_context(|| format!("understand {:?}", excerpt(&text)))
        }
        Ok(None) | Err(_) => Ok(None),
    }
}
