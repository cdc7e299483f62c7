//! Acts: raises and lowers guards when the lifecycle says so, and writes down what they came to.

use std::time::Instant;

use tracing::{info, warn};

use super::generations::Running;
use super::lifecycle::{Event, Sharing, StateName};
use super::run::{Message, Supervisor};
use crate::handover::guard::{Guard, Outcome, migrates, wait};
use crate::handover::receipt::Receipt;
use crate::handover::reload::HandedOver;
use crate::handover::strategy::{Facts, Kind, Question, Strategy, strategy};
use crate::haproxy::generation::GenerationId;
use crate::host::barrier::Site;
use crate::host::mark::Intercept;
use crate::listeners::fetch::Listener;
use crate::settings::ReloadGuard;

/// What is the same for every reload.
#[derive(Clone, Debug)]
pub struct Policy {
    pub setting: ReloadGuard,
    pub site: Site,
    /// `HAPROXY_PORTS`.
    pub ports: Vec<u16>,
    pub intercept: Vec<Intercept>,
}

/// Whether what was waited for came, or the time for it was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    InTime,
    Not,
}

impl From<bool> for Came {
    fn from(came: bool) -> Self {
        if came { Self::InTime } else { Self::Not }
    }
}

/// How a generation came to its listeners.
#[derive(Debug, Default)]
pub(super) struct Guarded {
    strategy: Option<Strategy>,
    kind: Option<Kind>,
    outcome: Option<Outcome>,
    /// The process before, which may be gone when the receipt is written.
    pub(super) from_pid: Option<i32>,
    pub(super) doubts: Vec<String>,
}

impl Guarded {
    /// Listeners that went away and could not be guarded.
    pub(super) fn exposed(&self) -> Vec<String> {
        let Some(strategy) = &self.strategy else { return Vec::new() };
        let open = if self.kind.is_none() { &strategy.exposed[..] } else { &[] };
        open.iter().chain(&strategy.unguarded).cloned().collect()
    }

    pub(super) fn write(&self, receipt: &mut Receipt) {
        let separate = self
            .strategy
            .as_ref()
            .is_some_and(|s| !s.exposed.is_empty() || !s.unguarded.is_empty());
        if separate { "separate" } else { "shared" }.clone_into(&mut receipt.strategy);
        if let Some(kind) = self.kind {
            receipt.guard = kind.to_string();
        }
        if let Some(outcome) = &self.outcome {
            let micros = u32::try_from(outcome.window.as_micros()).unwrap_or(u32::MAX);
            receipt.window_ms = Some(f64::from(micros) / 1000.0);
            (receipt.held, receipt.dropped) = (outcome.held, outcome.dropped);
        }
    }
}

impl Supervisor {
    /// The new listeners are known: can the old ones go?
    pub(super) fn decide(&mut self, id: GenerationId, handed_over: HandedOver) -> Sharing {
        let before = self.keeper.seen();
        let after = handed_over.fresh.iter().flatten().map(Listener::seen).collect::<Vec<_>>();
        // Nobody serves with the old ones any more, or nobody knows the new ones.
        let late = self.lifecycle.state() != StateName::Reloading || handed_over.fresh.is_none();
        let from_pid = self
            .lifecycle
            .serving()
            .and_then(|from| self.generations.get(&from))
            .and_then(Running::pid);
        let Some(running) = self.generations.get_mut(&id) else {
            return Sharing::Enough;
        };
        running.handed_over = handed_over;
        if late {
            self.keep_fresh(id);
            return Sharing::Enough;
        }
        let strategy = strategy(&Question {
            setting: self.policy.setting,
            facts: Facts { migrates: migrates(), firewall: self.policy.site.program.is_some() },
            before: &before,
            after: &after,
            ports: &self.policy.ports,
            intercept: &self.policy.intercept,
        });
        let needed = strategy.is_needed();
        running.guarded.from_pid = from_pid;
        running.guarded.strategy = Some(strategy);
        if needed {
            return Sharing::Guarded;
        }
        self.keep_fresh(id);
        Sharing::Enough
    }

    pub(super) fn keep_fresh(&mut self, id: GenerationId) {
        let fresh = self.generations.get_mut(&id).and_then(|r| r.handed_over.fresh.take());
        if let Some(listeners) = fresh {
            self.keep(id, listeners);
        }
    }

    /// The first that works; without any the reload goes on, and its receipt says so.
    pub(super) async fn raise_guard(&mut self, id: GenerationId) {
        // It has the same chain.
        self.finish_lowering().await;
        let Some(running) = self.generations.get_mut(&id) else { return };
        let Some(strategy) = running.guarded.strategy.clone() else { return };
        for &kind in &strategy.guards {
            match Guard::raise(kind, &self.policy.site, &strategy.ports).await {
                Ok(guard) => {
                    info!(generation = id.number(), guard = %kind, "guard raised");
                    running.guarded.kind = Some(kind);
                    self.guard = Some(guard);
                    break;
                }
                Err(error) => running.handed_over.warnings.push(format!("{error:#}")),
            }
        }
        let messages = self.messages.clone();
        let settled = move |came| drop(messages.send(Message::Settled(id, came)));
        match &self.guard {
            Some(guard) if guard.kind() != Kind::Migrate => {
                let (full, deadline) = (guard.fullness(), guard.deadline());
                let now = Instant::now();
                let half_way = now + deadline.saturating_duration_since(now) / 2;
                running.tasks.push(tokio::task::spawn_local(async move {
                    let Strategy { going, ports, .. } = strategy;
                    settled(wait::settled(&going, &ports, full, half_way).await.into());
                }));
            }
            // What is under way there migrates, and without a guard there is nothing to wait for.
            _ => settled(Came::InTime),
        }
    }

    pub(super) fn watch_listeners(&mut self, id: GenerationId) {
        let Some(running) = self.generations.get_mut(&id) else { return };
        let messages = self.messages.clone();
        let report = move |came| drop(messages.send(Message::ListenersGone(id, came)));
        let (Some(guard), Some(strategy)) = (&self.guard, running.guarded.strategy.clone()) else {
            return report(Came::InTime);
        };
        let (full, deadline) = (guard.fullness(), guard.deadline());
        let migrates = guard.kind() == Kind::Migrate;
        running.tasks.push(tokio::task::spawn_local(async move {
            let Strategy { going, ports, .. } = strategy;
            let mut came = wait::gone(&going, full, deadline).await;
            if came && migrates {
                came = wait::handshakes_over(&ports, deadline).await;
            }
            report(came.into());
        }));
    }

    pub(super) fn lower_guard(&mut self, id: GenerationId) {
        let messages = self.messages.clone();
        let Some(guard) = self.guard.take() else {
            return drop(messages.send(Message::Event(Event::GuardDone(id))));
        };
        let lowered = guard.lower();
        info!(generation = id.number(), "guard lowered");
        // Not one of the generation's tasks: what is held is let through even if that one dies.
        self.lowering = Some(tokio::task::spawn_local(async move {
            let _ = messages.send(Message::GuardDone(id, lowered.finish().await));
        }));
    }

    /// Bounded by itself.
    pub(super) async fn finish_lowering(&mut self) {
        if let Some(lowering) = self.lowering.take() {
            // One that panicked has dropped its guard, which lowers it.
            let _ = lowering.await;
        }
    }

    pub(super) fn note_settled(&mut self, id: GenerationId, came: Came) {
        let doubt = "connections were still waiting for the old generation when it let go";
        self.note(id, came, doubt);
    }

    pub(super) fn note_gone(&mut self, id: GenerationId, came: Came) {
        let doubt = match self.guard.as_ref().map(Guard::kind) {
            Some(Kind::Migrate) => "handshakes with the old listeners were still under way",
            _ => "the old listeners were still there when the guard was lowered",
        };
        self.note(id, came, doubt);
    }

    fn note(&mut self, id: GenerationId, came: Came, doubt: &str) {
        if let Some(running) = self.generations.get_mut(&id)
            && came == Came::Not
        {
            running.guarded.doubts.push(doubt.to_owned());
        }
    }

    pub(super) fn note_outcome(&mut self, id: GenerationId, outcome: Outcome) {
        match self.generations.get_mut(&id) {
            Some(running) if self.lifecycle.state() == StateName::Reloading => {
                running.handed_over.warnings.extend_from_slice(&outcome.failures);
                running.guarded.outcome = Some(outcome);
            }
            // Nobody writes a receipt any more.
            _ => outcome.failures.iter().for_each(|failure| warn!("{failure}")),
        }
    }
}
