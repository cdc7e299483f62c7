//! What is told of reloads and crashes, in the log and to whoever asked.

use std::time::{Duration, SystemTime};

use tokio::time::timeout;
use tracing::{error, info, warn};

use super::generations::Running;
use super::lifecycle::Refusal;
use super::relief::Guest;
use super::run::{Supervisor, milliseconds};
use super::status::{epoch, inherited};
use crate::control::protocol::{Answer, ReloadStatus};
use crate::handover::receipt::{Receipt, doubts};
use crate::haproxy::generation::GenerationId;
use crate::haproxy::insider::Insider;
use crate::listeners::counters;
use crate::process::exit::Exit;

/// As many as fit on a screen with the rest of a status.
const RELOADS_TOLD: usize = 8;
/// How long the old generation may take to let go of its listeners before a reload is called done;
/// longer by its `grace`.
const LET_GO_LIMIT: Duration = Duration::from_secs(2);

impl Supervisor {
    pub(super) fn crashed(
        id: GenerationId,
        exit: Exit,
        in_a_row: u32,
        restart_in: Option<Duration>,
    ) {
        let generation = id.number();
        if let Some(wait) = restart_in {
            let restart_in_ms = milliseconds(wait);
            error!(generation, %exit, in_a_row, restart_in_ms, "HAProxy died; it is started again");
        } else {
            error!(generation, %exit, in_a_row, "HAProxy died; ending");
        }
    }

    pub(super) fn not_started(id: GenerationId, exit: Exit, in_a_row: u32, again_in: Duration) {
        let (generation, again_in_ms) = (id.number(), milliseconds(again_in));
        error!(
            generation,
            %exit,
            in_a_row,
            again_in_ms,
            "HAProxy did not start, see its words above; new connections wait, and it is tried again"
        );
    }

    pub(super) fn reload_taken(&mut self, from: GenerationId, to: GenerationId) {
        let from_pid = self.generations.get(&from).and_then(Running::pid);
        let mut receipt = self.taken_receipt(to);
        receipt.from_generation = Some(from.number());
        receipt.from_pid = from_pid.or(receipt.from_pid);
        for warning in &receipt.warnings {
            warn!(generation = to.number(), "{warning}");
        }
        info!("reload {receipt}");
        self.answer(Some(to), receipt, Some(from));
        self.warn_of_others_beside();
    }

    /// How the listeners came to that generation.
    pub(super) fn taken_receipt(&mut self, to: GenerationId) -> Receipt {
        let mut receipt = self.receipt(Some(to), None);
        if let Some(running) = self.generations.get_mut(&to) {
            let handed_over = &running.handed_over;
            let listeners = handed_over.listeners.as_ref();
            receipt.listeners = listeners.cloned().unwrap_or_default();
            receipt.counters_before = running.counters;
            receipt.counters_after = counters::read().unwrap_or_default();
            let guarded = &running.guarded;
            receipt.from_pid = guarded.from_pid;
            receipt.doubts = doubts(
                listeners,
                &guarded.exposed(),
                receipt.counters_before,
                receipt.counters_after,
            );
            receipt.doubts.extend_from_slice(&guarded.doubts);
            guarded.write(&mut receipt);
            receipt.carried_over.clone_from(&handed_over.carried_over);
            receipt.inherited = inherited();
            receipt.stick_entries = handed_over.stick_entries;
            receipt.warnings.extend_from_slice(&handed_over.warnings);
        }
        receipt
    }

    pub(super) fn reload_refused(&mut self, id: Option<GenerationId>, why: Refusal) {
        let ready = humantime::format_duration(self.limits.ready);
        let reason = match why {
            Refusal::Died(exit) => format!("the new HAProxy ended with {exit}"),
            Refusal::NotReady => format!("the new HAProxy was not ready within {ready}"),
            Refusal::Paused => "accepting is paused; resume it with SIGTTIN first".to_owned(),
            Refusal::Reserved => {
                let by = self.guest.as_ref().map(Guest::instance);
                let by = by.unwrap_or("a successor");
                format!("hapilot {by} is taking over, with its own configuration")
            }
            Refusal::Stopping => "hapilot is stopping".to_owned(),
        };
        let mut receipt = self.receipt(id, Some(reason));
        let serving = self.lifecycle.serving();
        receipt.from_generation = serving.map(GenerationId::number);
        receipt.from_pid = serving.and_then(|id| self.generations.get(&id)).and_then(Running::pid);
        for warning in &receipt.warnings {
            warn!(generation = receipt.to_generation, "{warning}");
        }
        warn!("reload {receipt}");
        self.answer(id, receipt, None);
    }

    fn receipt(&self, to: Option<GenerationId>, reason: Option<String>) -> Receipt {
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut receipt = match reason {
            Some(reason) => Receipt::refused(at, reason),
            None => Receipt::taken(at),
        };
        receipt.to_generation = to.map(GenerationId::number);
        if let Some(running) = to.and_then(|to| self.generations.get(&to)) {
            receipt.to_pid = running.pid();
            receipt.ready_ms = running.ready_after.map(milliseconds);
            receipt.haproxy = running.words.take();
            receipt.warnings.clone_from(&running.warnings);
        }
        receipt
    }

    /// Not before new connections go nowhere but to the new generation: `old` was told to let go.
    fn answer(&mut self, id: Option<GenerationId>, receipt: Receipt, old: Option<GenerationId>) {
        let waiting = match id {
            Some(id) => self.trying.remove(&id).unwrap_or_default(),
            None => std::mem::take(&mut self.waiting),
        };
        let old = old.and_then(|old| self.generations.get(&old));
        let limit = LET_GO_LIMIT + old.map_or(Duration::ZERO, |old| old.grace);
        let let_go = old.and_then(|old| old.insider.as_ref()).map(Insider::let_go);
        let old = receipt.from_generation;
        let told = receipt.clone();
        tokio::task::spawn_local(async move {
            if let Some(let_go) = let_go {
                // One that is stuck is no reason to keep it to ourselves.
                if timeout(limit, let_go).await.is_err() {
                    warn!(
                        generation = old,
                        "it still accepts though it was told to stop: new connections may meet the \
                         old configuration"
                    );
                }
            }
            for answer in waiting {
                let _ = answer.send(Answer::Reload(Box::new(told.clone())));
            }
        });
        self.metrics.reload(&receipt, epoch(SystemTime::now()));
        self.reloads.push_front(ReloadStatus {
            at: receipt.at.clone(),
            verdict: receipt.verdict,
            told: receipt.to_string(),
        });
        self.reloads.truncate(RELOADS_TOLD);
        self.last_reload = Some(receipt);
    }
}
