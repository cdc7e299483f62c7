//! Decides: the generations that are alive, and how each of them is to end. Values only.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::vocabulary::{Action, Phase, Turn, Why};
use crate::haproxy::generation::GenerationId;

#[derive(Clone, Copy, Debug)]
pub(super) struct Generation {
    pub(super) phase: Phase,
    pub(super) since: Instant,
    pub(super) fate: Fate,
}

/// What happens to a generation when its time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    None,
    TerminateAt(Instant),
    KillAt(Instant),
    Killed,
}

impl Fate {
    pub(super) fn at(self) -> Option<Instant> {
        match self {
            Self::TerminateAt(at) | Self::KillAt(at) => Some(at),
            Self::None | Self::Killed => None,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Fleet {
    alive: BTreeMap<GenerationId, Generation>,
    newest: Option<GenerationId>,
}

impl Fleet {
    pub(super) fn of(now: Instant, all: impl Iterator<Item = (GenerationId, Phase)>) -> Self {
        let generation = |phase| Generation { phase, since: now, fate: Fate::None };
        let alive: BTreeMap<_, _> = all.map(|(id, phase)| (id, generation(phase))).collect();
        let newest = alive.keys().next_back().copied();
        Self { alive, newest }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (GenerationId, Generation)> + '_ {
        self.alive.iter().map(|(id, generation)| (*id, *generation))
    }

    pub(super) fn get(&self, id: GenerationId) -> Option<Generation> {
        self.alive.get(&id).copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.alive.is_empty()
    }

    pub(super) fn remove(&mut self, id: GenerationId) -> Option<Generation> {
        self.alive.remove(&id)
    }

    /// For those that the kernel does not let go.
    pub(super) fn give_up(&mut self) {
        self.alive.clear();
    }

    /// Starts one with a number that was never used before; killed unless ready in time, if there
    /// is a limit.
    pub(super) fn launch(
        &mut self,
        turn: &mut Turn,
        from: Option<GenerationId>,
        why: Why,
        ready_limit: Option<Duration>,
    ) -> GenerationId {
        let id = self.newest.map_or(GenerationId::FIRST, GenerationId::next);
        self.newest = Some(id);
        let fate = ready_limit.map_or(Fate::None, |limit| Fate::KillAt(turn.now + limit));
        self.alive.insert(id, Generation { phase: Phase::Starting, since: turn.now, fate });
        turn.act(Action::Launch { id, from, why });
        id
    }

    /// Ends the oldest draining ones, so that one more stays within the limit.
    pub(super) fn make_room(&mut self, turn: &mut Turn, most: usize, grace: Duration) {
        let ending = |g: &Generation| !matches!(g.fate, Fate::None | Fate::TerminateAt(_));
        let staying = self.alive.values().filter(|g| !ending(g)).count();
        let oldest: Vec<_> = self
            .iter()
            .filter(|(_, g)| g.phase == Phase::Draining && !ending(g))
            .map(|(id, _)| id)
            .take((staying + 1).saturating_sub(most))
            .collect();
        for id in oldest {
            self.terminate(turn, id, grace);
        }
    }

    pub(super) fn serve(&mut self, now: Instant, id: GenerationId) {
        if let Some(generation) = self.alive.get_mut(&id) {
            *generation = Generation { phase: Phase::Serving, since: now, fate: Fate::None };
        }
    }

    pub(super) fn drain(&mut self, turn: &mut Turn, id: GenerationId, until: Instant) {
        if let Some(generation) = self.alive.get_mut(&id) {
            let fate = Fate::TerminateAt(until);
            *generation = Generation { phase: Phase::Draining, since: turn.now, fate };
            turn.act(Action::Drain(id));
        }
    }

    pub(super) fn terminate(&mut self, turn: &mut Turn, id: GenerationId, grace: Duration) {
        if let Some(generation) = self.alive.get_mut(&id) {
            generation.fate = Fate::KillAt(turn.now + grace);
            turn.act(Action::Terminate(id));
        }
    }

    pub(super) fn kill(&mut self, turn: &mut Turn, id: GenerationId) {
        if let Some(generation) = self.alive.get_mut(&id)
            && generation.fate != Fate::Killed
        {
            generation.fate = Fate::Killed;
            turn.act(Action::Kill(id));
        }
    }

    /// Everything stops accepting and may finish its sessions until `until`.
    pub(super) fn drain_all(&mut self, turn: &mut Turn, until: Instant) {
        let all: Vec<_> = self.iter().collect();
        for (id, generation) in all {
            match (generation.phase, generation.fate) {
                // It never accepted anything: nothing to wait for.
                (Phase::Starting, _) => self.kill(turn, id),
                (Phase::Serving, _) => self.drain(turn, id, until),
                // Asked already; its own deadline holds where that is the earlier one.
                (Phase::Draining, Fate::TerminateAt(own)) => {
                    if let Some(generation) = self.alive.get_mut(&id) {
                        generation.fate = Fate::TerminateAt(own.min(until));
                    }
                }
                (Phase::Draining, _) => {}
            }
        }
    }

    /// Everything ends its sessions now.
    pub(super) fn end_all(&mut self, turn: &mut Turn, grace: Duration) {
        let all: Vec<_> = self.iter().collect();
        for (id, generation) in all {
            match (generation.phase, generation.fate) {
                (_, Fate::Killed) => {}
                (Phase::Starting, _) => self.kill(turn, id),
                (_, Fate::KillAt(_)) => {}
                _ => self.terminate(turn, id, grace),
            }
        }
    }

    /// Carries out the fates whose time has come.
    pub(super) fn end_due(&mut self, turn: &mut Turn, grace: Duration) {
        let due: Vec<_> =
            self.iter().filter(|(_, g)| g.fate.at().is_some_and(|at| at <= turn.now)).collect();
        for (id, generation) in due {
            match generation.fate {
                Fate::TerminateAt(_) => self.terminate(turn, id, grace),
                _ => self.kill(turn, id),
            }
        }
    }
}
