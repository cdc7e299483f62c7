//! Acts: our side when we relieve others.

use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::boot::tell_of_sweep;
use super::generations::Running;
use super::lifecycle::{Birth, Event, StateName};
use super::room::Room;
use super::run::{Message, Supervisor, UNAVAILABLE, beside};
use crate::handover::reload::{HandedOver, carry};
use crate::handover::takeover::find::{Asker, Found, Hindered, find};
use crate::handover::takeover::marks;
use crate::handover::takeover::predecessor::{Predecessor, Told};
use crate::handover::takeover::protocol::{Hello, lineage};
use crate::handover::takeover::receipt::{Relieved, Takeover};
use crate::handover::takeover::separate::Separate;
use crate::haproxy::generation::GenerationId;
use crate::haproxy::server_state::Since;
use crate::host::preflight::{Facts, RUN_DIRECTORY};
use crate::host::sweep::sweep_by;
use crate::listeners::compare::Seen;
use crate::process::aside::{aside, awaited};
use crate::settings::Predecessors;

/// Half of a take-over helps nobody: both would serve, each with its own configuration.
const START_AGAIN: &str = "this one ends, with what it has accepted; start it again to take over";

/// Whom we relieve, from the search to their end.
#[derive(Debug)]
pub struct TakingOver {
    pub wanted: Predecessors,
    pub asker: Asker,
    /// On which those may leave something who die meanwhile.
    host: Facts,
    finding: Option<JoinHandle<()>>,
    pub(super) predecessors: Vec<Predecessor>,
    /// What they listen on and did not hand over.
    pub(super) separate: Separate,
    /// Until ours listens there.
    pub(super) room: Option<Room>,
    relieved: Vec<Relieved>,
    /// Not told to anybody before all have answered.
    receipt: Option<Takeover>,
}

impl TakingOver {
    #[must_use]
    pub fn new(wanted: Predecessors, asker: Asker, host: Facts) -> Self {
        Self {
            wanted,
            asker,
            host,
            finding: None,
            predecessors: Vec::new(),
            separate: Separate::default(),
            room: None,
            relieved: Vec::new(),
            receipt: None,
        }
    }

    /// Of those that can be asked what they know.
    pub(super) fn runtime_sockets(&self) -> Vec<PathBuf> {
        self.predecessors.iter().filter_map(Predecessor::runtime_socket).collect()
    }

    #[must_use]
    pub fn birth(&self) -> Birth {
        if self.wanted == Predecessors::None { Birth::Alone } else { Birth::Successor }
    }
}

impl Supervisor {
    pub(super) fn find_predecessors(&mut self) {
        let (wanted, asker) = (self.taking_over.wanted.clone(), self.taking_over.asker.clone());
        let found = async move { Message::Found(find(&wanted, &asker).await) };
        let hindered = Hindered("hapilot failed to look for predecessors, which is a bug".into());
        self.taking_over.finding = Some(self.beside(found, Message::Found(Err(hindered))));
    }

    pub(super) fn found(&mut self, found: Result<Found, Hindered>) {
        match found {
            Ok(Found { predecessors, listeners, left_alone, died }) => {
                let birth = match predecessors.as_slice() {
                    [] => Birth::Alone,
                    _ => Birth::Successor,
                };
                match (birth, left_alone) {
                    (Birth::Successor, _) => {}
                    (Birth::Alone, 0) => info!("nobody is there to be relieved"),
                    (Birth::Alone, _) => warn!(
                        "nobody is relieved: this one starts alone, beside whoever serves here; each \
                         that is left alone is told of above"
                    ),
                }
                let mut predecessors = predecessors;
                for predecessor in &mut predecessors {
                    self.taking_over.separate.add(predecessor.separate());
                    self.await_let_down(predecessor);
                }
                self.taking_over.predecessors = predecessors;
                self.keeper.hold(listeners);
                if died || birth == Birth::Alone {
                    // Somebody may have died after our set-up looked. Its turn comes behind the launch.
                    self.send(Message::SweepWanted);
                }
                self.event(Event::Found(birth));
            }
            Err(Hindered(reason)) => {
                error!("{reason}");
                self.event(Event::HostFailed { status: UNAVAILABLE });
            }
        }
    }

    fn await_let_down(&self, predecessor: &mut Predecessor) {
        let Some(let_down) = predecessor.let_down() else { return };
        let (name, messages) = (predecessor.name(), self.messages.clone());
        tokio::task::spawn_local(async move {
            if let Ok(reason) = let_down.await {
                error!("{name} does not wait for this one any more: {reason}; {START_AGAIN}");
                let _ = messages.send(Message::Event(Event::LetDown { status: UNAVAILABLE }));
            }
        });
    }

    /// What the predecessors listen on, as far as it stands where ours do.
    pub(super) fn theirs(&self, ours: &[Seen]) -> Vec<Seen> {
        let separate = self.taking_over.separate.beside(ours);
        self.keeper.seen().into_iter().chain(separate).collect()
    }

    /// The same, wherever ours stand.
    pub(super) fn all_of_theirs(&self) -> Vec<Seen> {
        let Separate { known, suspected } = &self.taking_over.separate;
        [&self.keeper.seen()[..], known, suspected].concat()
    }

    pub(super) fn compare_with_predecessors(&mut self, id: GenerationId) {
        let sharing = self.decide(id);
        self.send(Message::Event(Event::Compared(id, sharing)));
        let olds = self.taking_over.runtime_sockets();
        let Some(running) = self.generations.get_mut(&id) else { return };
        let (socket, since) = (running.runtime_socket.clone(), Since::Changed);
        let carried = async move {
            let mut handed = HandedOver::default();
            for old in olds {
                handed.add(carry(&old, &socket, None, since).await);
            }
            // A predecessor that is stuck is its hapilot's concern.
            handed.stuck = false;
            Message::HandedOver(id, handed)
        };
        let or = Message::HandedOver(id, HandedOver::default());
        running.tasks.push(beside(&self.messages, carried, or));
    }

    pub(super) fn relieve(&mut self) {
        let predecessors = std::mem::take(&mut self.taking_over.predecessors);
        // From here on what they listen on is no concern of a reload.
        self.taking_over.separate = Separate::default();
        // Before the first of them can end and be started again. Not written down yet: were we
        // killed now and could not serve again, who was never relieved would stay away for us.
        let hellos: Vec<Hello> =
            predecessors.iter().filter_map(Predecessor::hello).cloned().collect();
        let lineage = lineage(&hellos, &self.facts.borrow().lineage);
        self.facts.borrow_mut().lineage = lineage;
        for (at, mut predecessor) in predecessors.into_iter().enumerate() {
            let relieved =
                Relieved::new(predecessor.name(), predecessor.rung(), predecessor.notes());
            info!(predecessor = relieved.name, "told to let go");
            self.taking_over.relieved.push(relieved);
            predecessor.count_sessions();
            let messages = self.messages.clone();
            tokio::task::spawn_local(async move {
                predecessor.relieve(|told| drop(messages.send(Message::Told(at, told)))).await;
            });
        }
    }

    pub(super) fn spare(&mut self) {
        if let Some(finding) = self.taking_over.finding.take() {
            finding.abort();
        }
        for predecessor in self.taking_over.predecessors.drain(..) {
            warn!(predecessor = predecessor.name(), "not relieved; it goes on as before");
            predecessor.spare();
        }
    }

    pub(super) fn told(&mut self, at: usize, told: &Told) {
        let Some(relieved) = self.taking_over.relieved.get_mut(at) else { return };
        let serves_on = matches!(told, Told::Deaf { .. } | Told::LetDown { .. });
        let has_let_go = !relieved.has_answered() && !serves_on;
        relieved.note(told);
        let predecessor = relieved.name.clone();
        match told {
            Told::Draining { sessions } => info!(predecessor, sessions, "it drains"),
            Told::Deaf { reason } => error!(
                "{predecessor} was not relieved and may serve on beside this one, stop it: {reason}"
            ),
            Told::LetDown { reason } if self.taking_over.relieved.len() == 1 => {
                error!("{predecessor} did not wait for this one: {reason}; {START_AGAIN}");
                self.send(Message::Event(Event::LetDown { status: UNAVAILABLE }));
            }
            Told::LetDown { reason } => error!(
                "{predecessor} did not wait for this one and serves on beside it, stop it: {reason}"
            ),
            // Of a HAProxy without hapilot only its own parent learns the status.
            Told::Gone { status: None | Some(0) } => info!(predecessor, "it is gone"),
            Told::Gone { status } => {
                warn!(predecessor, status, "it is gone, and did not end as it should: see its log");
            }
            Told::Died => {
                self.send(Message::SweepWanted);
                let doubt = format!("{predecessor} died, and what it had accepted with it");
                warn!("{doubt}: see why it was killed");
                if let Some(takeover) = &mut self.taking_over.receipt {
                    takeover.receipt.doubts.push(doubt);
                } else if let Some(takeover) = &mut self.last_takeover {
                    takeover.receipt.doubts.push(doubt);
                }
            }
        }
        if has_let_go {
            self.write_lineage();
        }
        if matches!(told, Told::Gone { .. } | Told::Died) {
            self.look_for_others_later();
        }
        self.complete_takeover();
    }

    fn write_lineage(&self) {
        let lineage = &self.facts.borrow().lineage;
        if let Err(error) = marks::write_lineage(Path::new(RUN_DIRECTORY), lineage) {
            warn!("{error:#}; started again, this one will not know whom it relieved");
        }
    }

    pub(super) fn taken_over(&mut self, id: GenerationId) {
        let receipt = self.taken_receipt(id);
        self.taking_over.receipt = Some(Takeover { receipt, predecessors: Vec::new() });
        self.complete_takeover();
    }

    /// Its container stays away for us, so nobody else would; and its diversion is ahead of ours.
    pub(super) fn sweep_after_the_dead(&self) {
        let facts = self.taking_over.host.clone();
        if !facts.can_be_swept() {
            return;
        }
        let until = self.host_until();
        tokio::task::spawn_local(async move {
            let sweep = aside(move || awaited(sweep_by(until, &facts)).flatten());
            match sweep.await.flatten() {
                Ok(swept) => tell_of_sweep(&swept),
                Err(error) => error!(
                    "what a dead hapilot left on the host may be there still: {error:#}; `hapilot \
                     sweep` tries again"
                ),
            }
        });
    }

    fn complete_takeover(&mut self) {
        let all = &self.taking_over.relieved;
        if all.iter().all(Relieved::has_answered)
            && let Some(takeover) = self.taking_over.receipt.take()
        {
            let takeover = Takeover { predecessors: all.clone(), ..takeover };
            for warning in &takeover.receipt.warnings {
                warn!("{warning}");
            }
            info!("take-over {takeover}");
            self.last_takeover = Some(takeover);
        } else if let Some(takeover) = &mut self.last_takeover {
            takeover.predecessors.clone_from(all);
        }
    }

    /// Whether those before a generation are predecessors and not a generation of ours.
    pub(super) fn is_taking_over(&self) -> bool {
        self.lifecycle.state() == StateName::TakingOver
    }

    /// Some that are still to be relieved.
    pub(super) fn has_predecessors(&self) -> bool {
        self.is_taking_over() || !self.taking_over.predecessors.is_empty()
    }

    /// One follows another, and a receipt will say how.
    pub(super) fn is_exchanging(&self) -> bool {
        matches!(self.lifecycle.state(), StateName::Reloading | StateName::TakingOver)
    }

    /// The process of the generation that serves before this one.
    pub(super) fn outgoing_pid(&self, id: GenerationId) -> Option<i32> {
        let from = self.lifecycle.serving().filter(|from| *from != id);
        from.and_then(|from| self.generations.get(&from)).and_then(Running::pid)
    }
}
