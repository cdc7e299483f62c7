//! Acts: remembers who was told to pause, for the next run in our place: nobody else would wake it,
//! should we be killed before we do.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;
use tracing::warn;

use super::process::Process;
use crate::handover::guard::wait;
use crate::process::file::{Readers, replace};

/// For one that is told to go on, to listen again.
const LIMIT: Duration = Duration::from_secs(1);

/// A process by its PID and its start: by now the PID may be another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Paused {
    pid: i32,
    started: u64,
}

impl Paused {
    fn file(self) -> String {
        format!("paused-{}.{}", self.pid, self.started)
    }

    fn in_file(name: &str) -> Option<Self> {
        let (pid, started) = name.strip_prefix("paused-")?.split_once('.')?;
        Some(Self { pid: pid.parse().ok()?, started: started.parse().ok()? })
    }

    /// `None` where it has ended.
    fn process(self) -> Option<Process> {
        Process::open(self.pid).ok().filter(|process| process.look.started == self.started)
    }
}

fn path(run_directory: &Path, process: &Process) -> PathBuf {
    run_directory.join(Paused { pid: process.pid(), started: process.look.started }.file())
}

/// Before it is told to. `listeners`: what it will close.
pub(super) fn note(
    run_directory: &Path,
    process: &Process,
    listeners: &BTreeSet<u64>,
) -> Result<()> {
    let path = path(run_directory, process);
    let text = listeners.iter().map(u64::to_string).collect::<Vec<_>>().join("\n");
    replace(&path, text.as_bytes(), Readers::Owner)
        .with_context(|| format!("write {}", path.display()))
}

/// Once it was told to go on, or to end. Nothing may be noted.
pub(super) fn strike_out(run_directory: &Path, process: &Process) {
    remove(&path(run_directory, process));
}

fn remove(file: &Path) {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            warn!("remove {}: {error}", file.display());
        }
        _ => {}
    }
}

/// Each HAProxy that an earlier run paused goes on, and listens again when this comes back. One that
/// drains already ignores the signal.
pub async fn wake(run_directory: &Path) {
    let listeners = resume(run_directory);
    // Else it would be taken for one that drains.
    wait::back(&listeners, Instant::now() + LIMIT).await;
}

/// The same, without waiting. Returns what they will listen on again.
pub fn resume(run_directory: &Path) -> BTreeSet<u64> {
    let mut listeners = BTreeSet::new();
    for entry in fs::read_dir(run_directory).into_iter().flatten().flatten() {
        let Some(paused) = entry.file_name().to_str().and_then(Paused::in_file) else { continue };
        let path = entry.path();
        if let Some(process) = paused.process() {
            let name = format!("HAProxy {}", paused.pid);
            warn!("{name} was paused by a hapilot that was killed: it is told to go on");
            if let Err(error) = process.signal(Signal::TTIN) {
                warn!("{name} stays paused: {error:#}");
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            listeners.extend(text.lines().filter_map(|inode| inode.parse::<u64>().ok()));
        }
        remove(&path);
    }
    listeners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_tells_who_was_paused() {
        let paused = Paused { pid: 4711, started: 123 };
        assert_eq!(Paused::in_file(&paused.file()), Some(paused));
        for other in ["paused-4711", "paused-x.1", "generation-1.sock"] {
            assert_eq!(Paused::in_file(other), None, "{other}");
        }
    }
}
