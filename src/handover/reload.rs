//! Acts: what a new generation does not inherit by itself is asked of the old one and given to the
//! new one. The old one may be stuck: everything is bounded, and what did not work is a warning in
//! the receipt, never a reason to keep the old configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::haproxy::peers::learning;
use crate::haproxy::runtime_api::{LIMIT, ask};
use crate::haproxy::server_state::carry_over;
use crate::listeners::compare::{Changes, Seen, changes};
use crate::listeners::fetch::{Listener, listeners};

/// Before the launch everybody waits for this, so it is shorter than the usual limit.
const SAVE_LIMIT: Duration = Duration::from_millis(500);
/// HAProxy 2.6 learns for 5 s after each start.
const TEACH_LIMIT: Duration = Duration::from_secs(6);
const TEACH_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub struct HandedOver {
    /// `None` where it could not be found out.
    pub listeners: Option<Changes>,
    /// What the new one listens on; `None` where it did not say.
    pub fresh: Option<Vec<Listener>>,
    pub carried_over: Vec<String>,
    pub warnings: Vec<String>,
}

/// `old` and `new` are runtime sockets, `before` is what the old one listens on.
pub async fn hand_over(old: PathBuf, new: PathBuf, before: Vec<Seen>) -> HandedOver {
    let mut handed = HandedOver::default();
    let (after, servers, taught) =
        tokio::join!(listeners(&new), carry_servers(&old, &new), able_to_teach(&old));
    match after {
        Ok(after) => {
            let seen: Vec<_> = after.iter().map(Listener::seen).collect();
            handed.listeners = Some(changes(&before, &seen));
            handed.fresh = Some(after);
        }
        Err(error) => handed.warnings.push(format!("{error:#}")),
    }
    match servers {
        Ok(commands) => handed.carried_over = commands,
        Err(error) => handed.warnings.push(format!("{error:#}")),
    }
    handed.warnings.extend(taught.err().map(|error| format!("{error:#}")));
    handed
}

/// Waits until the old one could teach its stick tables to the new one when it is told to stop.
/// Both serve meanwhile. HAProxy tells nobody when it is done learning, so it is asked again.
async fn able_to_teach(old: &Path) -> Result<()> {
    let until = Instant::now() + TEACH_LIMIT;
    loop {
        let answer = ask(old, "show peers", LIMIT).await?;
        let learning = learning(&answer);
        if learning.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "peers {}: still learning, so their stick tables may not be handed over",
            learning.join(", ")
        );
        tokio::time::sleep(TEACH_AGAIN).await;
    }
}

async fn carry_servers(old: &Path, new: &Path) -> Result<Vec<String>> {
    const STATE: &str = "show servers state";
    let old_state = ask(old, STATE, LIMIT).await?;
    let new_state = ask(new, STATE, LIMIT).await?;
    let commands = carry_over(&old_state, &new_state);
    for command in &commands {
        let answer = ask(new, command, LIMIT).await?;
        ensure!(answer.trim().is_empty(), "{command}: {}", answer.trim());
    }
    Ok(commands)
}

/// Saves the state of the servers where the next generation looks for it (`server-state-file`; it
/// is read where the configuration says `load-server-state-from-file`).
pub async fn save_server_state(runtime_socket: &Path, file: &Path) -> Result<()> {
    let state = ask(runtime_socket, "show servers state", SAVE_LIMIT).await?;
    let fresh = file.with_extension("new");
    fs::write(&fresh, state).with_context(|| format!("write {}", fresh.display()))?;
    fs::rename(&fresh, file).with_context(|| format!("rename it to {}", file.display()))
}
