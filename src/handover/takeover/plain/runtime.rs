//! Acts: finds the stats sockets of a HAProxy among the unix sockets that it listens on.
//!
//! Which of them is one is only told by its answer: it must name one of the HAProxy's own PIDs. An
//! ordinary listener answers something else, or nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::haproxy::Haproxy;
use super::reach::{Door, Root, doors};
use super::tables::UnixName;
use super::view::View;
use crate::haproxy::runtime_api::field;
use crate::listeners::fetch::{self, Listener};
use crate::process::patience::within;

const LIMIT: Duration = Duration::from_secs(1);
/// Where we may not look, every unix socket of the network namespace could be one.
const MOST: usize = 64;
const OF_HAPILOT: &[u8] = b"hapilot/";
/// HAProxy's own answer has some 4 KiB.
const LONGEST_INFO: u64 = 16 * 1024;

#[derive(Debug)]
pub(super) struct Runtime {
    pub(super) door: Door,
    pub(super) inode: u64,
}

#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) sockets: Vec<Runtime>,
    /// Why one that is there did not answer.
    pub(super) silent: Vec<String>,
}

pub(super) fn roots(haproxy: &Haproxy, sees: bool) -> Vec<Root> {
    let mut roots: Vec<_> = haproxy.members().flat_map(|member| Root::of(member.pid())).collect();
    if !sees {
        roots.extend(Root::ours().ok());
    }
    roots
}

/// All that answer as one of them, asked at the same time.
pub(super) async fn stats_sockets(haproxy: &Haproxy, view: &View, roots: &[Root]) -> Stats {
    let of_hapilot =
        |name: &UnixName| matches!(name, UnixName::Abstract(name) if name.starts_with(OF_HAPILOT));
    let candidates = view
        .candidates()
        .filter(|(_, name)| !of_hapilot(name))
        .flat_map(|(inode, name)| doors(name, roots).into_iter().map(move |door| (inode, door)))
        .take(MOST);
    let asked = candidates.map(async |(inode, door)| {
        let answer = within(LIMIT, is_of(haproxy, view.sees, &door)).await;
        (Runtime { door, inode }, answer)
    });
    let mut stats = Stats::default();
    for (runtime, answer) in futures_util::future::join_all(asked).await {
        match answer {
            Ok(true) => stats.sockets.push(runtime),
            Err(error) if view.sees => {
                stats.silent.push(format!("{}: {error:#}", runtime.door.shown));
            }
            // An ordinary listener, or somebody else's.
            Ok(false) | Err(_) => {}
        }
    }
    stats
}

/// Where we could not see whose socket it is, the kernel must say so before a word is sent.
async fn is_of(haproxy: &Haproxy, sees: bool, door: &Door) -> Result<bool> {
    let stream = UnixStream::connect(door.path()).await.context("connect")?;
    let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
    if !sees && !haproxy.members().any(|member| Some(member.pid()) == peer) {
        return Ok(false);
    }
    let info = info(stream).await?;
    let pid = field(&info, "Pid").and_then(|pid| pid.parse::<i32>().ok());
    Ok(haproxy.members().any(|member| Some(member.look.inner_pid) == pid))
}

/// What listens there may be any program: no more of its answer is read than HAProxy would say.
async fn info(mut stream: UnixStream) -> Result<String> {
    stream.write_all(b"show info\n").await.context("send")?;
    let mut answer = Vec::new();
    stream.take(LONGEST_INFO).read_to_end(&mut answer).await.context("read the answer")?;
    ensure!(u64::try_from(answer.len())? < LONGEST_INFO, "its answer does not end");
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

impl Runtime {
    /// None from one that has no `expose-fd listeners`.
    pub(super) async fn listeners(&self) -> Result<Vec<Listener>> {
        within(LIMIT, async {
            let stream = UnixStream::connect(self.door.path()).await.context("connect")?;
            fetch::from(stream, fetch::MOST).await
        })
        .await
    }

    /// How many connections of clients it has: those to stats sockets are not among them.
    pub(super) async fn sessions(&self) -> Option<u64> {
        let info =
            within(LIMIT, async { info(UnixStream::connect(self.door.path()).await?).await });
        let info = info.await.ok()?;
        field(&info, "CurrConns")?.parse().ok()
    }
}
