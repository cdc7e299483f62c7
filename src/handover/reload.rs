//! Acts: what a new generation does not inherit by itself is asked of the old one and given to the
//! new one. The old one may be stuck: everything is bounded, and what did not work is a warning in
//! the receipt, never a reason to keep the old configuration.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::saved::{PutBack, carry_tables};
use crate::fault::{self, Point};
use crate::haproxy::peers::learning;
use crate::haproxy::runtime_api::{Conversation, LIMIT, ask, each_line};
use crate::haproxy::server_state::{Born, Servers, Since, carry_over};
use crate::listeners::compare::{Changes, Seen};
use crate::listeners::fetch::Listener;
use crate::process::patience::within;

/// Before the launch everybody waits for this, so it is shorter than the usual limit.
const SAVE_LIMIT: Duration = Duration::from_millis(500);
/// HAProxy 2.6 learns for 5 s after each start.
const TEACH_LIMIT: Duration = Duration::from_secs(6);
/// For all that is carried over: the old one drains no later.
const CARRY_LIMIT: Duration = Duration::from_secs(8);
const STATE: &str = "show servers state";
const TEACH_AGAIN: Duration = Duration::from_millis(100);
/// Of what was done, or not, a receipt lists so many.
const MOST_TOLD: usize = 500;

#[derive(Debug, Default)]
pub struct HandedOver {
    /// `None` where it could not be found out.
    pub listeners: Option<Changes>,
    /// What the new one listens on; `None` where it did not say.
    pub fresh: Option<Vec<Listener>>,
    pub carried_over: Vec<String>,
    /// Of tables that follow through no peer.
    pub stick_entries: usize,
    /// The old one answers no more: it will not let go of its listeners either.
    pub stuck: bool,
    pub warnings: Vec<String>,
}

impl HandedOver {
    /// What the new one listens on, if it said so.
    #[must_use]
    pub fn seen(&self) -> Option<Vec<Seen>> {
        self.fresh.as_ref().map(|fresh| fresh.iter().map(Listener::seen).collect())
    }

    /// What was handed over besides.
    pub fn add(&mut self, other: Self) {
        self.carried_over.extend(other.carried_over);
        self.stick_entries += other.stick_entries;
        self.stuck |= other.stuck;
        self.warnings.extend(other.warnings);
    }
}

/// What the old one knows, without its listeners. `born`: the servers that it began with.
pub async fn carry(old: &Path, new: &Path, born: Option<&Born>, since: Since) -> HandedOver {
    let mut handed = HandedOver::default();
    let (mut servers, mut tables, mut taught) = (Ok(Given::default()), PutBack::default(), Ok(()));
    let all = async {
        tokio::join!(
            async { servers = carry_servers(old, new, born, since).await },
            carry_tables(old, new, &mut tables),
            async { taught = able_to_teach(old).await },
        );
    };
    if tokio::time::timeout(CARRY_LIMIT, all).await.is_err() {
        let limit = humantime::format_duration(CARRY_LIMIT);
        handed.warnings.push(format!("not all was carried over within {limit}"));
    }
    handed.stuck = servers.is_err() && taught.is_err();
    match servers {
        Ok(Given { done, refused }) => {
            handed.carried_over = some_of(done);
            handed.warnings.extend(some_of(refused));
        }
        Err(error) => handed.warnings.push(format!("{error:#}")),
    }
    handed.stick_entries = tables.entries;
    handed.warnings.extend(tables.failures);
    handed.warnings.extend(taught.err().map(|error| format!("{error:#}")));
    handed
}

fn some_of(mut all: Vec<String>) -> Vec<String> {
    let more = all.len().saturating_sub(MOST_TOLD);
    all.truncate(MOST_TOLD);
    all.extend((more > 0).then(|| format!("and {more} more")));
    all
}

/// Waits until the old one could teach its stick tables to the new one when it is told to stop. One
/// of our own could before the launch; a predecessor is known only now, and both serve meanwhile.
async fn able_to_teach(old: &Path) -> Result<()> {
    let learning = still_learning(old, TEACH_LIMIT, LIMIT).await?;
    ensure!(
        learning.is_empty(),
        "peers {}: still learning, so their stick tables may not be handed over",
        learning.join(", ")
    );
    Ok(())
}

/// The `peers` sections that have not learnt all when the time is over. HAProxy tells nobody when
/// it is done learning, so it is asked again.
pub(super) async fn still_learning(
    socket: &Path,
    limit: Duration,
    answer_limit: Duration,
) -> Result<Vec<String>> {
    let until = Instant::now() + limit;
    loop {
        let answer = ask(socket, "show peers", answer_limit).await?;
        let learning = learning(&answer);
        if learning.is_empty() || Instant::now() >= until {
            return Ok(learning.into_iter().map(str::to_owned).collect());
        }
        tokio::time::sleep(TEACH_AGAIN).await;
    }
}

/// The servers of a process.
pub async fn servers_of(socket: &Path) -> Result<Servers> {
    servers_within(socket, LIMIT).await
}

async fn servers_within(socket: &Path, limit: Duration) -> Result<Servers> {
    within(limit, async { Ok(fault::within(Point::Ask).await?) }).await?;
    let mut servers = Servers::default();
    each_line(socket, STATE.as_bytes(), limit, |line| servers.add(line)).await?;
    Ok(servers)
}

/// What the servers of a new process were told.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// The commands that were carried out.
    pub(super) done: Vec<String>,
    /// What was not, and why.
    pub(super) refused: Vec<String>,
}

async fn carry_servers(old: &Path, new: &Path, born: Option<&Born>, since: Since) -> Result<Given> {
    let old = servers_of(old).await?.believed(since);
    within(CARRY_LIMIT, async {
        let mut new = Conversation::begin(new).await?;
        let now = servers_in(&mut new).await?;
        let mut given = give_servers(&old, &now, &mut new).await?;
        given.refused.extend(born.iter().flat_map(|born| born.lost(&old, &now)));
        Ok(given)
    })
    .await
}

pub(super) async fn servers_in(conversation: &mut Conversation) -> Result<Servers> {
    let mut servers = Servers::default();
    conversation.each_line(STATE, |line| servers.add(line)).await?;
    Ok(servers)
}

/// One conversation, however many servers there are.
pub(super) async fn give_servers(
    old: &Servers,
    now: &Servers,
    new: &mut Conversation,
) -> Result<Given> {
    let carried = carry_over(old, now);
    let mut given = Given { done: carried.already, refused: carried.left };
    let Given { done, refused } = &mut given;
    // A balance that knows no weights refuses one; a drain after it still counts.
    let look = |command: &str, words: &str| match words {
        "" => done.push(command.to_owned()),
        words => refused.push(format!("{command}: {words}")),
    };
    new.tell(&carried.commands, look).await?;
    Ok(given)
}

/// What is done with the old one before the next one is launched: from when that is ready, both
/// accept, and until it is taught it sends a client to whichever server it likes. So what the old
/// one still has to learn is waited for now. The answer is what it knows of its servers.
pub async fn prepare(old: &Path) -> Result<Servers> {
    still_learning(old, TEACH_LIMIT, SAVE_LIMIT).await?;
    servers_within(old, 2 * SAVE_LIMIT).await
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    const COLUMNS: &str = "1\n# be_name srv_id srv_name srv_admin_state srv_uweight srv_iweight\n";

    /// A runtime socket: answers each command and writes it down, until it is dropped.
    async fn pretend(socket: &Path, answer: impl Fn(&str) -> String, heard: &RefCell<Vec<String>>) {
        let listener = UnixListener::bind(socket).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut prompt = "";
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await.unwrap() == 0 {
                    break;
                }
                if line == "prompt\n" {
                    prompt = "\n> ";
                }
                let answer = answer(line.trim()) + prompt;
                stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
                heard.borrow_mut().push(line.trim().to_owned());
                if prompt.is_empty() {
                    break;
                }
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_command_that_is_refused_does_not_keep_back_the_others() {
        let directory = tempfile::tempdir().unwrap();
        let (old, new) = (directory.path().join("old"), directory.path().join("new"));
        let (before, after) = (RefCell::default(), RefCell::default());
        let old_state = |_: &str| format!("{COLUMNS}web 1 a 0 5 10\nweb 2 b 1 1 1\n");
        let new_state = |command: &str| match command {
            "show servers state" => format!("{COLUMNS}web 1 a 0 10 10\nweb 2 b 0 1 1\n"),
            weight if weight.contains("weight") => "only 0% and 100%\n".to_owned(),
            _ => String::new(),
        };
        let carried = tokio::select! {
            biased;
            () = pretend(&old, old_state, &before) => unreachable!(),
            () = pretend(&new, new_state, &after) => unreachable!(),
            carried = carry_servers(&old, &new, None, Since::Changed) => carried.unwrap(),
        };
        assert_eq!(carried.done, ["set server web/b state maint"]);
        assert_eq!(carried.refused, ["set server web/a weight 5: only 0% and 100%"]);
        assert_eq!(after.borrow().len(), 4);
    }
}
