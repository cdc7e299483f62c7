//! Acts: what a new generation does not inherit by itself is asked of the old one and given to the
//! new one. The old one may be stuck: everything is bounded, and what did not work is a warning in
//! the receipt, never a reason to keep the old configuration.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::saved::carry_tables;
use crate::haproxy::peers::learning;
use crate::haproxy::runtime_api::{LIMIT, ask};
use crate::haproxy::server_state::carry_over;
use crate::listeners::compare::{Changes, Seen, changes};
use crate::listeners::fetch::{Listener, listeners};
use crate::process::file::{Readers, replace};

/// Before the launch everybody waits for this, so it is shorter than the usual limit.
const SAVE_LIMIT: Duration = Duration::from_millis(500);
/// HAProxy 2.6 learns for 5 s after each start.
const TEACH_LIMIT: Duration = Duration::from_secs(6);
pub(super) const STATE: &str = "show servers state";
const TEACH_AGAIN: Duration = Duration::from_millis(100);

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

/// `old` and `new` are runtime sockets, `before` is what the old one listens on.
pub async fn hand_over(old: PathBuf, new: PathBuf, before: Vec<Seen>) -> HandedOver {
    let (after, mut handed) = tokio::join!(listeners(&new), carry(&old, &new));
    handed.compare(after, |_| before);
    handed
}

impl HandedOver {
    /// What the new one listens on with what was listened on before.
    pub fn compare(
        &mut self,
        after: Result<Vec<Listener>>,
        before: impl FnOnce(&[Seen]) -> Vec<Seen>,
    ) {
        match after {
            Ok(after) => {
                let seen: Vec<_> = after.iter().map(Listener::seen).collect();
                self.listeners = Some(changes(&before(&seen), &seen));
                self.fresh = Some(after);
            }
            Err(error) => self.warnings.push(format!("{error:#}")),
        }
    }

    /// What another one handed over besides.
    pub fn add(&mut self, other: Self) {
        self.carried_over.extend(other.carried_over);
        self.stick_entries += other.stick_entries;
        self.warnings.extend(other.warnings);
    }
}

/// What the old one knows, without its listeners.
pub async fn carry(old: &Path, new: &Path) -> HandedOver {
    let mut handed = HandedOver::default();
    let (servers, tables, taught) =
        tokio::join!(carry_servers(old, new), carry_tables(old, new), able_to_teach(old));
    handed.stuck = servers.is_err() && taught.is_err();
    match servers {
        Ok((commands, refused)) => {
            handed.carried_over = commands;
            handed.warnings.extend(refused);
        }
        Err(error) => handed.warnings.push(format!("{error:#}")),
    }
    handed.stick_entries = tables.entries;
    handed.warnings.extend(tables.failures);
    handed.warnings.extend(taught.err().map(|error| format!("{error:#}")));
    handed
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

/// The commands that were carried out, and what was wrong with each of the others.
async fn carry_servers(old: &Path, new: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let old_state = ask(old, STATE, LIMIT).await?;
    let new_state = ask(new, STATE, LIMIT).await?;
    give_servers(&old_state, &new_state, new).await
}

pub(super) async fn give_servers(
    old_state: &str,
    new_state: &str,
    new: &Path,
) -> Result<(Vec<String>, Vec<String>)> {
    let (mut done, mut refused) = (Vec::new(), Vec::new());
    for command in carry_over(old_state, new_state) {
        // A balance that knows no weights refuses one; a drain after it still counts.
        let answer = ask(new, &command, LIMIT).await?;
        match answer.trim() {
            "" => done.push(command),
            words => refused.push(format!("{command}: {words}")),
        }
    }
    Ok((done, refused))
}

/// What is done with the old one before the next one is launched: from when that is ready, both
/// accept, and until it is taught it sends a client to whichever server it likes. So what the old
/// one still has to learn is waited for now.
pub async fn prepare(old: &Path, state_file: Option<&Path>) -> Result<()> {
    still_learning(old, TEACH_LIMIT, SAVE_LIMIT).await?;
    match state_file {
        Some(file) => save_server_state(old, file).await,
        None => Ok(()),
    }
}

/// Saves the state of the servers where the next generation looks for it (`server-state-file`; it
/// is read where the configuration says `load-server-state-from-file`).
async fn save_server_state(runtime_socket: &Path, file: &Path) -> Result<()> {
    let state = ask(runtime_socket, STATE, SAVE_LIMIT).await?;
    write_server_state(&state, file)
}

pub(super) fn write_server_state(state: &str, file: &Path) -> Result<()> {
    let written = replace(file, state.as_bytes(), Readers::All);
    written.with_context(|| format!("save the state of the servers to {}", file.display()))
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
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            stream.get_mut().write_all(answer(line.trim()).as_bytes()).await.unwrap();
            heard.borrow_mut().push(line.trim().to_owned());
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
            _ => "\n".to_owned(),
        };
        let carried = tokio::select! {
            biased;
            () = pretend(&old, old_state, &before) => unreachable!(),
            () = pretend(&new, new_state, &after) => unreachable!(),
            carried = carry_servers(&old, &new) => carried.unwrap(),
        };
        assert_eq!(carried.0, ["set server web/b state maint"]);
        assert_eq!(carried.1, ["set server web/a weight 5: only 0% and 100%"]);
        assert_eq!(after.borrow().len(), 3);
    }
}
