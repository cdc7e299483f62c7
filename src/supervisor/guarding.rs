//! Acts: raises and lowers guards when the lifecycle says so, and writes down what they came to.
//!
//! Both are tasks: a program of the host's that hangs keeps nobody else waiting. Whoever wants one
//! down that is not up yet waits for that first, so it is down in the end; the next one is raised
//! after the last one is down, since it has the same chain.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::lifecycle::{Event, Sharing};
use super::run::{Message, Supervisor, beside};
use crate::handover::guard::{Guard, Outcome, migrates, wait};
use crate::handover::receipt::Receipt;
use crate::handover::strategy::{Facts, Kind, Question, Strategy, strategy};
use crate::haproxy::generation::GenerationId;
use crate::host::barrier::Site;
use crate::host::mark::Intercept;
use crate::listeners::compare::{Seen, changes, guessed};
use crate::listeners::socket_table::listening;
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

/// A guard on its way up.
#[derive(Debug)]
pub(super) struct Raising {
    id: GenerationId,
    wanted: Rc<Cell<bool>>,
    task: JoinHandle<Raised>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Raised {
    pub(super) guard: Option<Guard>,
    pub(super) warnings: Vec<String>,
}

impl Raised {
    /// The first that works, unless one took so long that a program must have hung: the others need
    /// the same one.
    async fn first(
        kinds: &[Kind],
        site: &Site,
        ports: &BTreeSet<u16>,
        wanted: &Cell<bool>,
    ) -> Self {
        let mut raised = Self::default();
        let until = Instant::now() + site.limit;
        for &kind in kinds {
            if !wanted.get() || Instant::now() >= until {
                break;
            }
            match Guard::raise(kind, site, ports).await {
                Ok(guard) => {
                    raised.guard = Some(guard);
                    break;
                }
                Err(error) => raised.warnings.push(format!("{error:#}")),
            }
        }
        raised
    }
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
    /// `None` before the listeners are compared.
    pub(super) sharing: Option<Sharing>,
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
    /// The new listeners are known, or will not be: can the old ones go?
    pub(super) fn decide(&mut self, id: GenerationId) -> Sharing {
        let told = self.generations.get(&id).and_then(|running| running.handed_over.seen());
        let after = match &told {
            Some(seen) => seen.clone(),
            None => self.guess(id, &self.all_of_theirs()),
        };
        let before = self.theirs(&after);
        let from_pid = self.outgoing_pid(id);
        let Some(running) = self.generations.get_mut(&id) else {
            return Sharing::Guarded;
        };
        running.handed_over.listeners = told.map(|seen| changes(&before, &seen));
        if let Some(room) = self.taking_over.room.take() {
            running.guarded.kind = self.guard.as_ref().map(Guard::kind);
            running.guarded.doubts.extend(room.doubts);
            running.handed_over.warnings.extend(room.warnings);
        }
        let strategy = strategy(&Question {
            setting: self.policy.setting,
            facts: Facts { migrates: migrates(), firewall: self.policy.site.backend.is_some() },
            before: &before,
            after: &after,
            ports: &self.policy.ports,
            intercept: &self.policy.intercept,
        });
        let sharing = if strategy.is_needed() { Sharing::Guarded } else { Sharing::Enough };
        running.guarded.from_pid = from_pid;
        running.guarded.strategy = Some(strategy);
        running.guarded.sharing = Some(sharing);
        sharing
    }

    /// For one that did not say what it listens on: by what the kernel says. Where that says nothing
    /// either, each may have got a socket of its own.
    fn guess(&self, id: GenerationId, before: &[Seen]) -> Vec<Seen> {
        let Some(running) = self.generations.get(&id) else { return before.to_vec() };
        match listening() {
            Ok(now) => {
                let now: Vec<_> = now.iter().map(|l| (l.local_port, l.inode)).collect();
                guessed(before, &running.listening_before, &now)
            }
            Err(error) => {
                warn!(generation = id.number(), "what it listens on is not known: {error:#}");
                before.iter().map(|seen| Seen { inode: 0, ..seen.clone() }).collect()
            }
        }
    }

    pub(super) fn keep_fresh(&mut self, id: GenerationId) {
        self.take_from_a_stuck_one(id);
        let Some(running) = self.generations.get_mut(&id) else { return };
        if let Some(listeners) = running.handed_over.fresh.take() {
            return self.keep(id, listeners);
        }
        // It did not say. Whoever waits where nobody accepts any more would wait for ever.
        let told = listening().is_ok();
        let strategy = running.guarded.strategy.as_ref();
        if let Some(strategy) = strategy.filter(|s| told && !s.going.is_empty())
            && let Err(error) = self.keeper.let_go(&strategy.going)
        {
            running.handed_over.warnings.push(format!("{error:#}"));
        }
    }

    /// One that hangs keeps its listeners until it is killed, and with them its share of the
    /// clients. While the keeper still has them too, we can do without it.
    fn take_from_a_stuck_one(&mut self, id: GenerationId) {
        let Some(running) = self.generations.get_mut(&id) else { return };
        let Some(strategy) = &running.guarded.strategy else { return };
        let told = running.handed_over.listeners.is_some() || listening().is_ok();
        if running.handed_over.stuck && told && !strategy.going.is_empty() {
            self.keeper.shut_down(&strategy.going);
            let addresses = strategy.exposed.join(", ");
            let warning = format!("the old HAProxy hangs: {addresses} was taken from it");
            running.handed_over.warnings.push(warning);
        }
    }

    /// The first that works; without any the reload goes on, and its receipt says so.
    pub(super) fn raise_guard(&mut self, id: GenerationId) {
        if self.generations.get(&id).is_some_and(|running| running.guarded.strategy.is_none()) {
            self.decide(id);
        }
        let Some(running) = self.generations.get(&id) else { return };
        let Some(strategy) = running.guarded.strategy.clone() else { return };
        self.begin_raising(id, &strategy, self.policy.site.limit);
    }

    /// `limit`: for each program that it takes. Ends as `Message::Raised`.
    pub(super) fn begin_raising(&mut self, id: GenerationId, strategy: &Strategy, limit: Duration) {
        let (lowering, messages) = (self.lowering.take(), self.messages.clone());
        let (kinds, ports) = (strategy.guards.clone(), strategy.ports.clone());
        let site = Site { limit, ..self.policy.site.clone() };
        let wanted = Rc::new(Cell::new(true));
        let is_wanted = Rc::clone(&wanted);
        let task = tokio::task::spawn_local(async move {
            if let Some(lowering) = lowering {
                let _ = lowering.await;
            }
            let raised = Raised::first(&kinds, &site, &ports, &is_wanted);
            let raised = AssertUnwindSafe(raised).catch_unwind().await;
            let raised = raised.unwrap_or_else(|_| Raised {
                guard: None,
                warnings: vec!["hapilot failed to raise a guard, which is a bug".to_owned()],
            });
            let _ = messages.send(Message::Raised(id));
            raised
        });
        self.raising = Some(Raising { id, wanted, task });
    }

    /// One that nobody wants any more is lowered by whoever did not.
    pub(super) fn raised(&mut self, id: GenerationId) {
        let Some(raising) = self.raising.take_if(|raising| raising.id == id) else { return };
        // Its message was the last that it had to do.
        let raised = tokio::task::unconstrained(raising.task).now_or_never();
        let Raised { guard, warnings } = raised.and_then(Result::ok).unwrap_or_default();
        if let Some(guard) = &guard {
            info!(generation = id.number(), guard = %guard.kind(), "guard raised");
        }
        self.guard = guard;
        match self.generations.get_mut(&id) {
            Some(running) => {
                running.guarded.kind = self.guard.as_ref().map(Guard::kind);
                running.handed_over.warnings.extend(warnings);
                self.await_settled(id);
            }
            None => self.room_guarded(warnings),
        }
    }

    fn await_settled(&mut self, id: GenerationId) {
        let Some(running) = self.generations.get_mut(&id) else { return };
        match (&self.guard, running.guarded.strategy.clone()) {
            (Some(guard), Some(Strategy { going, ports, .. })) if guard.kind() != Kind::Migrate => {
                let (full, deadline) = (guard.fullness(), guard.deadline());
                let now = Instant::now();
                let half_way = now + deadline.saturating_duration_since(now) / 2;
                let settled = async move {
                    let came = wait::settled(&going, &ports, full, half_way).await;
                    Message::Settled(id, came.into())
                };
                let or = Message::Settled(id, Came::Not);
                running.tasks.push(beside(&self.messages, settled, or));
            }
            // What is under way there migrates, and without a guard there is nothing to wait for.
            _ => self.send(Message::Settled(id, Came::InTime)),
        }
    }

    pub(super) fn watch_listeners(&mut self, id: GenerationId) {
        let Some(running) = self.generations.get_mut(&id) else { return };
        let (Some(guard), Some(strategy)) = (&self.guard, running.guarded.strategy.clone()) else {
            return self.send(Message::ListenersGone(id, Came::InTime));
        };
        let (full, deadline) = (guard.fullness(), guard.deadline());
        let migrates = guard.kind() == Kind::Migrate;
        let gone = async move {
            let Strategy { going, ports, .. } = strategy;
            let mut came = wait::gone(&going, full, deadline).await;
            if came && migrates {
                came = wait::handshakes_over(&ports, deadline).await;
            }
            Message::ListenersGone(id, came.into())
        };
        let or = Message::ListenersGone(id, Came::Not);
        running.tasks.push(beside(&self.messages, gone, or));
    }

    /// Also one that is not up yet.
    pub(super) fn lower_guard(&mut self, id: GenerationId) {
        let (guard, raising) = (self.guard.take(), self.raising.take());
        if let Some(raising) = &raising {
            raising.wanted.set(false);
        }
        // Not one of the generation's tasks: what is held is let through even if that one dies.
        let lowered = async move {
            let guard = match raising {
                Some(raising) => raising.task.await.unwrap_or_default().guard,
                None => guard,
            };
            let Some(guard) = guard else {
                return Message::Event(Event::GuardDone(id));
            };
            let lowered = guard.lower().await;
            info!(generation = id.number(), "guard lowered");
            Message::GuardDone(id, lowered.finish().await)
        };
        let failures = vec!["hapilot failed to lower a guard, which is a bug".to_owned()];
        let or = Message::GuardDone(id, Outcome { failures, ..Outcome::default() });
        self.lowering = Some(self.beside(lowered, or));
    }

    /// For as long as `limit`: what is up then is among the debts.
    pub(super) fn finish_lowering(&mut self, limit: Duration) -> impl Future<Output = ()> + use<> {
        let lowering = self.lowering.take();
        async move {
            if let Some(mut lowering) = lowering
                && tokio::time::timeout(limit, &mut lowering).await.is_err()
            {
                let told = "a guard was not down in time: what it has on the host is removed now";
                warn!(?limit, "{told}");
                lowering.abort();
            }
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
        let exchanging = self.is_exchanging();
        match self.generations.get_mut(&id) {
            Some(running) if exchanging => {
                running.handed_over.warnings.extend_from_slice(&outcome.failures);
                running.guarded.outcome = Some(outcome);
            }
            // Nobody writes a receipt any more.
            _ => outcome.failures.iter().for_each(|failure| warn!("{failure}")),
        }
    }
}
