//! Acts: a HAProxy that is two processes, a master and its worker (`master-worker`).
//!
//! The master passes SIGUSR1 on to the programs of its `program` sections as well. They die of it,
//! and then it ends its worker, with all sessions. So what is meant for the one that serves clients
//! goes to the worker itself. hapilot ends the master when the worker has gone, and supervises the
//! worker if the master goes first.

use std::time::Duration;

use rustix::process::Signal;
use tracing::warn;

use super::generations::Running;
use super::run::{Message, Supervisor};
use crate::haproxy::generation::GenerationId;
use crate::process::handle::Handle;

/// A master that has no program ends by itself when its worker has, with the status that is right.
const MASTER_FOLLOWS: Duration = Duration::from_millis(500);

impl Supervisor {
    pub(super) fn worker(&mut self, id: GenerationId, worker: anyhow::Result<Handle>) {
        let Some(running) = self.generations.get_mut(&id) else { return };
        let watched = worker.and_then(|worker| Ok((worker.end()?, worker)));
        let (end, worker) = match watched {
            Ok(watched) => watched,
            Err(error) => {
                warn!(
                    generation = id.number(),
                    "the master is signalled in place of its worker: {error:#}"
                );
                return;
            }
        };
        let messages = self.messages.clone();
        running.tasks.push(tokio::task::spawn_local(async move {
            end.await;
            tokio::time::sleep(MASTER_FOLLOWS).await;
            let _ = messages.send(Message::WorkerEnded(id));
        }));
        running.worker = Some(worker);
    }

    pub(super) fn worker_ended(&self, id: GenerationId) {
        self.signal(id, Signal::TERM, "its worker has ended; ending the master");
    }
}

impl Running {
    /// Whom a signal is for.
    pub(super) fn whom(&self, signal: Signal) -> Vec<&Handle> {
        match signal {
            // Its programs would go on, and so would a worker that is not known yet.
            Signal::KILL => {
                self.handle.iter().for_each(Handle::kill_group);
                self.worker.iter().chain(&self.handle).collect()
            }
            // The master ends its worker and its programs.
            Signal::TERM => self.handle.iter().collect(),
            _ => self.worker.iter().chain(&self.handle).take(1).collect(),
        }
    }

    /// The one that was launched has ended, and its worker goes on.
    pub(super) fn outlives_its_master(&mut self, pid: i32) -> bool {
        if self.handle.as_ref().is_none_or(|handle| handle.pid() != pid) {
            return false;
        }
        match self.worker.take_if(|worker| !worker.has_ended()) {
            Some(worker) => {
                self.pid = Some(worker.pid());
                self.handle = Some(worker);
                true
            }
            None => false,
        }
    }
}
