//! Acts: waits until a generation is ready.
//!
//! Ready means: its own runtime socket answers `show info` with its own PID. An end of the
//! connection, whatever the reason, is never "ready": silence means failure.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::runtime_api::{ask, field};
use crate::process::procfs;

const AGAIN: Duration = Duration::from_millis(200);
/// Longer than anybody gives a generation to become ready: the caller has the deadline.
const NO_LIMIT: Duration = Duration::from_hours(24);

/// Comes back only when the generation is ready, with the PID of the process that answered; what
/// speaks against it is logged, and the one who waits has a deadline and learns of the process's end
/// by itself.
pub async fn ready(socket: &Path, pid: i32) -> i32 {
    let mut told = false;
    loop {
        match answers_as(socket, pid).await {
            Ok(answering) => return answering,
            Err(error) => {
                // Most likely it is about to end, and says itself why.
                tokio::time::sleep(AGAIN).await;
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(pid, "not ready, asking again: {error:#}");
                }
            }
        }
    }
}

async fn answers_as(socket: &Path, pid: i32) -> Result<i32> {
    let info = ask(socket, "show info", NO_LIMIT).await?;
    let answering: i32 = field(&info, "Pid")
        .and_then(|pid| pid.parse().ok())
        .with_context(|| format!("find a PID in the answer {info:?}"))?;
    // With `master-worker` in the configuration our child is the master; its worker answers.
    ensure!(
        answering == pid || procfs::parent(answering).ok().flatten() == Some(pid),
        "process {answering} answered for process {pid}"
    );
    Ok(answering)
}
