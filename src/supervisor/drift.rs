//! Acts: hears when somebody removes what we have on the host, and puts it back when the lifecycle
//! says so.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
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

/// What a look at the host came to.
#[derive(Debug)]
pub(super) struct Look {
    /// Who had removed something before it.
    by: String,
    answer: Result<Vec<String>>,
    took: Duration,
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
        match self.host.watch() {
            Ok(None) => {}
            Ok(Some(watch)) => {
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

    pub(super) fn put_back(&mut self) {
        let begin = Instant::now();
        // What a stop has to do on the host waits for it.
        let until = begin + (self.limits.stop / 10).min(PUT_BACK_LIMIT);
        let by = Vec::from_iter(std::mem::take(&mut self.drift.by)).join(", ");
        let host = self.host.clone();
        // The kernel may tell of what they put back before they have ended.
        self.drift.echoes = host.echoes();
        let looked = async move {
            let answer = host.put_back(until).await;
            Message::Looked(Look { by, answer, took: begin.elapsed() })
        };
        let answer = Err(anyhow!("the look at the host failed, which is a bug"));
        let or = Look { by: String::new(), answer, took: Duration::ZERO };
        self.beside(looked, Message::Looked(or));
    }

    pub(super) fn looked(&mut self, look: Look) {
        let Look { by, answer, took } = look;
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
        self.event(Event::Looked { found, took });
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
