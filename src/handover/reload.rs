//! Acts: what a new generation does not inherit by itself is asked of the old one and given to the
//! new one. The old one may be stuck: everything is bounded, and what did not work is a warning in
//! the receipt, never a reason to keep the old configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::haproxy::runtime_api::{LIMIT, ask};
use crate::haproxy::server_state::carry_over;
use crate::listeners::compare::{Changes, Seen, changes};
use crate::listeners::fetch;

/// Before the launch everybody waits for this, so it is shorter than the usual limit.
const SAVE_LIMIT: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub struct HandedOver {
    pub listeners: Changes,
    /// What the new one listens on.
    pub after: Vec<Seen>,
    pub carried_over: Vec<String>,
    pub warnings: Vec<String>,
}

/// `old` and `new` are runtime sockets.
pub async fn hand_over(old: PathBuf, new: PathBuf) -> HandedOver {
    let mut handed = HandedOver::default();
    let (before, after, servers) = tokio::join!(seen(&old), seen(&new), carry_servers(&old, &new));
    match (before, after) {
        (Ok(before), Ok(after)) => {
            handed.listeners = changes(&before, &after);
            handed.after = after;
        }
        (before, after) => {
            handed.after = after.as_ref().map_or_else(|_| Vec::new(), Clone::clone);
            let errors = before.err().into_iter().chain(after.err());
            handed.warnings.extend(errors.map(|error| format!("{error:#}")));
        }
    }
    match servers {
        Ok(commands) => handed.carried_over = commands,
        Err(error) => handed.warnings.push(format!("{error:#}")),
    }
    handed
}

/// What a generation listens on; the duplicates of its sockets are closed again.
pub async fn seen(runtime_socket: &Path) -> Result<Vec<Seen>> {
    let listeners = fetch::listeners(runtime_socket).await?;
    Ok(listeners.into_iter().map(|l| Seen { address: l.address, inode: l.inode }).collect())
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
