//! Acts: has the state of whoever serves saved now and then, and put back after a crash.
//!
//! One task for the generation that serves: first it gives back what the dead one had, then it saves
//! at the pace that `handover::pace` decides. Where nothing could be lost it ends, so that nothing
//! wakes up.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::run::Supervisor;
use crate::handover::pace::{Change, Pace};
use crate::handover::saved::{Missing, Saved, give, save};
use crate::haproxy::generation::GenerationId;
use crate::haproxy::server_state::Since;
use crate::haproxy::stick_table::Present;

/// Between attempts to put something back, should HAProxy not answer.
const AGAIN: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

#[derive(Debug, Default)]
pub(super) struct Saving {
    saved: Rc<RefCell<Option<Rc<Saved>>>>,
    /// Whose state is saved, and by which task.
    task: Option<(GenerationId, JoinHandle<()>)>,
    /// Of somebody who died.
    missing: Rc<Cell<Missing>>,
}

impl Saving {
    pub(super) fn lost(&self) {
        self.missing.set(Missing::All);
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&Saved) -> T) -> Option<T> {
        self.saved.borrow().as_deref().map(look)
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.task {
            task.abort();
        }
    }
}

/// Whose state, and where it goes.
#[derive(Debug)]
struct Saver {
    generation: GenerationId,
    socket: PathBuf,
    saved: Rc<RefCell<Option<Rc<Saved>>>>,
    since: Since,
    /// Somebody was at the runtime API, by our door.
    visits: Rc<Notify>,
}

impl Supervisor {
    pub(super) fn save_what_serves(&mut self) {
        let serving = self.lifecycle.serving();
        if self.saving.task.as_ref().map(|(id, _)| *id) == serving {
            return;
        }
        if let Some((_, task)) = self.saving.task.take() {
            task.abort();
        }
        let Some((id, running)) = serving.and_then(|id| Some((id, self.generations.get(&id)?)))
        else {
            return;
        };
        let saver = Saver {
            generation: id,
            socket: running.runtime_socket.clone(),
            saved: Rc::clone(&self.saving.saved),
            since: running.since,
            visits: self.door.visits(),
        };
        let missing = Rc::clone(&self.saving.missing);
        let wanted = missing.get() != Missing::Nothing;
        let to_give = self.saving.saved.borrow().clone().filter(|_| wanted);
        // What it was handed may be what is saved: of the dead one, or of one that was being given it.
        let then = if running.is_reload() { Present::Larger } else { Present::Counts };
        let task = tokio::task::spawn_local(async move {
            match to_give {
                Some(lost) => saver.give(&lost, &missing, then).await,
                None => missing.set(Missing::Nothing),
            }
            saver.save_now_and_then().await;
        });
        self.saving.task = Some((id, task));
    }
}

impl Saver {
    /// Until all of it is there: nothing is saved before, or what is there already would replace what
    /// is still missing.
    async fn give(&self, saved: &Saved, missing: &Cell<Missing>, mut then: Present) {
        let generation = self.generation.number();
        let begin = Instant::now();
        let (mut commands, mut entries) = (Vec::new(), 0);
        let mut waits = AGAIN.into_iter();
        loop {
            let done = give(&self.socket, saved, missing, then, self.since).await;
            commands.extend(done.servers);
            entries += done.entries;
            if let Some((first, others)) = done.failures.split_first() {
                let more = others.len();
                debug!(generation, "not put back: {}", done.failures.join("; "));
                warn!(generation, more, "not put back after the crash: {first}");
            }
            let Some(reason) = done.broken_off else { break };
            let Some(wait) = waits.next() else {
                warn!(generation, "the rest is not put back after the crash: {reason}");
                missing.set(Missing::Nothing);
                break;
            };
            warn!(generation, again_in = ?wait, "putting back after the crash broke off: {reason}");
            tokio::time::sleep(wait).await;
            // Some of it is there.
            then = Present::Larger;
        }
        let ms = super::run::milliseconds(begin.elapsed());
        if !commands.is_empty() || entries > 0 {
            debug!(generation, commands = commands.join("; "), "set again");
            let commands = commands.len();
            info!(generation, commands, entries, ms, "put back what the dead HAProxy had");
        }
    }

    async fn save_now_and_then(&self) {
        let generation = self.generation.number();
        let (mut pace, mut failing, mut told) = (Pace::START, false, Vec::new());
        let (mut wait, mut least) = (pace.first(), Duration::ZERO);
        loop {
            let rested = Instant::now() + least;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.visits.notified() => tokio::time::sleep_until(rested.into()).await,
            }
            let begin = Instant::now();
            let change = match save(&self.socket).await {
                Ok(None) => return drop(self.saved.borrow_mut().take()),
                Ok(Some(saved)) => {
                    failing = false;
                    if saved.left_out != told && !saved.left_out.is_empty() {
                        let what = saved.left_out.join("; ");
                        warn!(generation, "would be lost if HAProxy died: {what}");
                    }
                    told.clone_from(&saved.left_out);
                    let change = saved.change_since(self.saved.borrow().as_deref());
                    self.saved.replace(Some(Rc::new(saved)));
                    change
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(generation, "what HAProxy knows was not saved: {error:#}");
                    }
                    Change::None
                }
            };
            (wait, least) = (pace.next(change, begin.elapsed()), Pace::least(begin.elapsed()));
            debug!(generation, ?change, took = ?begin.elapsed(), ?wait, "saved");
        }
    }
}
