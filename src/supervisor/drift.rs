//! Acts: hears when somebody removes what we have on the host, and puts it back when the lifecycle
//! says so.

use std::collections::BTreeSet;
use std::time::Instant;

use tokio::task::JoinHandle;
use tracing::{error, warn};

use super::lifecycle::{Condition, Event};
use super::run::{Message, PUT_BACK_LIMIT, Supervisor, milliseconds};
use crate::host::watch::{Changed, Watch};

/// Of those that are named.
const MOST_NAMES: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Drift {
    task: Option<JoinHandle<()>>,
    /// Who removed something since the last look.
    by: BTreeSet<String>,
    /// Our own programs, of which the kernel tells as well when they have put something back.
    echoes: Vec<String>,
}

impl Drop for Drift {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Supervisor {
    pub(super) fn watch_host(&mut self) {
        let Some(host) = &self.host else { return };
        match host.watch() {
            Ok(watch) => {
                let messages = self.messages.clone();
                let task = watch_with(watch, move |changed| {
                    let _ = messages.send(Message::HostChanged(changed));
                });
                self.drift.task = Some(tokio::task::spawn_local(task));
            }
            Err(error) => not_watched(&error),
        }
    }

    pub(super) fn host_changed(&mut self, changed: Changed) -> Event {
        let Drift { by, echoes, .. } = &mut self.drift;
        for name in changed.by {
            match echoes.iter().position(|echo| *echo == name) {
                Some(at) => drop(echoes.swap_remove(at)),
                None if by.len() < MOST_NAMES => drop(by.insert(name)),
                None => {}
            }
        }
        Event::HostChanged
    }

    pub(super) async fn put_back(&mut self) {
        // No signal is heard meanwhile, and a stop must not be late for a hanging iptables.
        let begin = Instant::now();
        let until = begin + (self.limits.stop / 10).min(PUT_BACK_LIMIT);
        let Some(host) = &mut self.host else { return };
        let by = Vec::from_iter(std::mem::take(&mut self.drift.by)).join(", ");
        let answer = host.put_back(until).await;
        let took = begin.elapsed();
        self.drift.echoes = host.echoes();
        let found = match answer {
            Ok(gone) if gone.is_empty() => Condition::Whole,
            Ok(gone) => {
                self.metrics.put_back(gone.len());
                let by = Some(by).filter(|by| !by.is_empty());
                let (gone, ms) = (gone.join("; "), milliseconds(took));
                warn!(
                    by,
                    gone, ms, "somebody had removed parts of ours from the host; they are back"
                );
                Condition::Restored
            }
            Err(error) => {
                error!("what may be missing on the host was not put back: {error:#}");
                Condition::Unknown
            }
        };
        self.send(Message::Event(Event::Looked { found, took }));
    }
}

async fn watch_with(mut watch: Watch, tell: impl Fn(Changed)) {
    loop {
        match watch.changed().await {
            Ok(changed) => tell(changed),
            Err(error) => return not_watched(&error.into()),
        }
    }
}

fn not_watched(error: &anyhow::Error) {
    warn!("what others remove on the host is noticed by the next reload only: {error:#}");
}
