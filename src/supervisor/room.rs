//! Acts: has predecessors leave their ports to us for once, and gives them back.

use std::collections::BTreeSet;
use std::time::Instant;

use tracing::{error, info, warn};

use super::guarding::Came;
use super::lifecycle::Event;
use super::run::{Message, Supervisor};
use crate::handover::guard::wait;
use crate::handover::strategy::{Facts, Question, Strategy, strategy};
use crate::handover::takeover::predecessor::Predecessor;
use crate::haproxy::generation::GenerationId;
use crate::haproxy::taken::taken_ports;
use crate::listeners::compare::Seen;

/// What they are to leave, and what came of it so far.
#[derive(Debug)]
pub(super) struct Room {
    strategy: Strategy,
    /// When they are paused even if something waits.
    until: Instant,
    /// Nothing waits at their listeners.
    settled: bool,
    pub(super) doubts: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl Supervisor {
    /// One that exited may have found its ports taken by predecessors that can be paused.
    pub(super) fn explain(&mut self, event: Event) -> Event {
        let Event::Exited(id, exit) = event else { return event };
        let Some(running) = self.generations.get(&id) else { return event };
        if self.may_get_room() {
            let taken = taken_ports(&running.words.take());
            let theirs = self.taking_over.separate.at(&taken);
            if !theirs.is_empty() {
                self.taking_over.room = Some(self.room(&theirs));
                return Event::Blocked(id, exit);
            }
        }
        running.words.advise(id);
        event
    }

    /// Whether one that finds its ports taken may get them yet.
    pub(super) fn may_get_room(&self) -> bool {
        let mut predecessors = self.taking_over.predecessors.iter();
        self.taking_over.room.is_none() && predecessors.any(Predecessor::may_pause)
    }

    fn room(&self, theirs: &[Seen]) -> Room {
        // As if ours stood there already.
        let ours: Vec<_> = theirs.iter().map(|seen| Seen { inode: 0, ..seen.clone() }).collect();
        let strategy = strategy(&Question {
            setting: self.policy.setting,
            // There is no other socket that anything could migrate to.
            facts: Facts { migrates: false, firewall: self.policy.site.backend.is_some() },
            before: theirs,
            after: &ours,
            ports: &self.policy.ports,
            intercept: &self.policy.intercept,
        });
        let until = Instant::now();
        Room { strategy, until, settled: false, doubts: Vec::new(), warnings: Vec::new() }
    }

    /// The first guard that works; without any they are paused all the same, and the receipt says so.
    pub(super) fn guard_room(&mut self, id: GenerationId) {
        let Some(room) = &mut self.taking_over.room else { return };
        warn!(generation = id.number(), "the ports are not shared: predecessors are to be paused");
        room.until = Instant::now() + self.limits.room / 2;
        let strategy = room.strategy.clone();
        // One that comes is there before they are paused.
        let limit = self.policy.site.limit.min(self.limits.room / 3);
        self.begin_raising(id, &strategy, limit);
    }

    pub(super) fn room_guarded(&mut self, warnings: Vec<String>) {
        let Some(room) = &mut self.taking_over.room else { return };
        room.warnings.extend(warnings);
        let Some(guard) = &self.guard else {
            room.doubts.push(
                "without a guard: connections were refused while this one started".to_owned(),
            );
            return self.send(Message::Room(Event::RoomSettled, Came::Not));
        };
        let (full, Strategy { going, ports, .. }) = (guard.fullness(), room.strategy.clone());
        let until = room.until;
        let settled = async move {
            let came = wait::settled(&going, &ports, full, until).await;
            Message::Room(Event::RoomSettled, came.into())
        };
        self.beside(settled, Message::Room(Event::RoomSettled, Came::Not));
    }

    pub(super) fn room_news(&mut self, event: Event, came: Came) -> Event {
        if let Some(room) = &mut self.taking_over.room
            && event == Event::RoomSettled
        {
            room.settled = came == Came::InTime;
        }
        if event == Event::RoomReturned && came == Came::Not {
            error!("a predecessor was told to go on and does not listen again yet");
        }
        event
    }

    pub(super) fn pause_predecessors(&mut self) {
        let until = Instant::now() + self.limits.room / 4;
        for one in self.taking_over.predecessors.iter_mut().filter(|one| one.may_pause()) {
            match one.pause() {
                Ok(()) => info!(predecessor = one.name(), "paused"),
                Err(error) => warn!(predecessor = one.name(), "not paused: {error:#}"),
            }
        }
        let Some(room) = &mut self.taking_over.room else { return };
        if !room.settled {
            let addresses = room.strategy.exposed.join(", ");
            let doubt = format!(
                "{addresses} was closed while connections were half open there: they are reset"
            );
            warn!("{doubt}");
            room.doubts.push(doubt);
        }
        let going = room.strategy.going.clone();
        let freed = async move {
            let came = wait::gone(&going, || false, until).await;
            Message::Room(Event::RoomFreed, came.into())
        };
        self.beside(freed, Message::Room(Event::RoomFreed, Came::Not));
    }

    pub(super) fn await_return(&mut self) {
        let until = Instant::now() + self.limits.room / 2;
        let going = self.taking_over.room.as_ref().map(|room| room.strategy.going.clone());
        let going: BTreeSet<u64> = going.unwrap_or_default();
        let returned = async move {
            let came = wait::back(&going, until).await;
            Message::Room(Event::RoomReturned, came.into())
        };
        self.beside(returned, Message::Room(Event::RoomReturned, Came::Not));
    }
}
