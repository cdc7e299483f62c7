//! Decides: how predecessors that keep their ports to themselves make room for once. Values only.
//!
//! The first generation could not bind. A guard goes up, they are paused, and the next one gets the
//! ports; or they get them back, before the guard goes down.

use std::time::Instant;

use super::fleet::{Fate, Generation};
use super::vocabulary::{Action, Birth, Turn, Why};
use super::{Lifecycle, Outgoing, Reason, Reload, ReloadStep, State};
use crate::haproxy::generation::GenerationId;
use crate::process::exit::Exit;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) step: RoomStep,
    /// Of this step, or where it is the start, of all together.
    pub(super) until: Instant,
    /// When the one that starts must be ready.
    pub(super) ready_by: Instant,
    /// The generation that found the ports taken.
    pub(super) blocked: GenerationId,
    /// A reload was asked for meanwhile.
    pub(super) again: bool,
    /// What we end with if it fails.
    pub(super) status: u8,
    /// Something wants us to end.
    pub(super) leaving: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RoomStep {
    /// The guard is up; nobody is paused yet.
    Settling,
    /// They were told to pause.
    Freeing,
    Starting(GenerationId),
    /// It is killed: before it is gone they could not listen again.
    Ending(GenerationId),
    /// They were told to go on.
    Returning,
}

impl Lifecycle {
    /// Only the first generation has them make room, and only once.
    pub(super) fn blocked(&mut self, turn: &mut Turn, id: GenerationId, exit: Exit) {
        let State::Starting { again, birth: Birth::Successor } = self.state else {
            return self.exited(turn, id, exit);
        };
        if self.fleet.remove(id).is_none() {
            return;
        }
        let ready_by = turn.now + self.limits.room;
        self.state = State::MakingRoom(Room {
            step: RoomStep::Settling,
            until: turn.now + self.limits.room / 2,
            ready_by,
            blocked: id,
            again,
            status: exit.status(),
            leaving: false,
        });
        turn.act(Action::GuardRoom(id));
    }

    pub(super) fn room_settled(&mut self, turn: &mut Turn) {
        if let State::MakingRoom(room) = self.state
            && room.step == RoomStep::Settling
        {
            let until = turn.now + self.limits.room / 4;
            self.state = State::MakingRoom(Room { step: RoomStep::Freeing, until, ..room });
            turn.act(Action::PausePredecessors);
        }
    }

    pub(super) fn room_freed(&mut self, turn: &mut Turn) {
        if let State::MakingRoom(room) = self.state
            && room.step == RoomStep::Freeing
        {
            if room.leaving {
                return self.give_room_back(turn, room);
            }
            let id = self.fleet.launch(turn, None, Why::Start, None);
            let step = RoomStep::Starting(id);
            self.state = State::MakingRoom(Room { step, until: room.ready_by, ..room });
        }
    }

    pub(super) fn room_taken(&mut self, turn: &mut Turn, room: Room, id: GenerationId) {
        self.serve(turn.now, id);
        turn.act(Action::Intercept);
        let until = turn.now + self.limits.room / 4;
        let step = ReloadStep::HandingOver { until, sharing: None };
        let (from, again) = (Outgoing::Predecessors, room.again);
        let reload = Reload { from, next: id, step, again, room: Some(room) };
        self.state = State::Reloading(reload);
        turn.act(Action::TakeOver(id));
    }

    pub(super) fn room_lost(
        &mut self,
        turn: &mut Turn,
        room: Room,
        id: GenerationId,
        exit: Exit,
        gone: Generation,
    ) {
        match room.step {
            RoomStep::Starting(next) if next == id => {
                let killed = gone.fate == Fate::Killed;
                let status = if killed { room.status } else { exit.status() };
                self.give_room_back(turn, Room { status, ..room });
            }
            RoomStep::Ending(next) if next == id => self.give_room_back(turn, room),
            _ => {}
        }
    }

    /// Nobody of ours listens any more.
    pub(super) fn give_room_back(&mut self, turn: &mut Turn, room: Room) {
        let until = turn.now + self.limits.room / 2;
        self.state = State::MakingRoom(Room { step: RoomStep::Returning, until, ..room });
        turn.act(Action::Spare);
        turn.act(Action::AwaitReturn);
    }

    pub(super) fn room_returned(&mut self, turn: &mut Turn) {
        if let State::MakingRoom(room) = self.state
            && room.step == RoomStep::Returning
        {
            turn.act(Action::LowerGuard(room.blocked));
            self.begin_stopping(turn, room.status, Reason::Asked);
            self.fleet.end_all(turn, self.limits.stop_grace());
            self.give_back_if_empty(turn);
        }
    }

    /// A step took too long.
    pub(super) fn room_over(&mut self, turn: &mut Turn, room: Room) {
        match room.step {
            RoomStep::Settling => self.room_settled(turn),
            // Whether they are paused or not: the next one finds out.
            RoomStep::Freeing => self.room_freed(turn),
            RoomStep::Starting(id) => self.end_in_room(turn, room, id),
            RoomStep::Ending(_) => self.give_room_back(turn, room),
            RoomStep::Returning => self.room_returned(turn),
        }
    }

    /// True where predecessors may be paused: then they get their ports back first.
    pub(super) fn leave_room(&mut self, turn: &mut Turn, status: u8) -> bool {
        let room = match self.state {
            State::MakingRoom(room) => room,
            State::Reloading(Reload { room: Some(room), next, again, .. }) => {
                self.stop_deadline.get_or_insert(turn.now + self.limits.stop);
                let room = Room { status, again, leaving: true, ..room };
                self.end_in_room(turn, room, next);
                return true;
            }
            _ => return false,
        };
        self.stop_deadline.get_or_insert(turn.now + self.limits.stop);
        let room = Room { status, leaving: true, ..room };
        self.state = State::MakingRoom(room);
        match room.step {
            RoomStep::Settling => self.give_room_back(turn, room),
            RoomStep::Starting(id) => self.end_in_room(turn, room, id),
            // SIGTTIN on the heels of SIGTTOU could overtake it.
            RoomStep::Freeing | RoomStep::Ending(_) | RoomStep::Returning => {}
        }
        true
    }

    fn end_in_room(&mut self, turn: &mut Turn, room: Room, id: GenerationId) {
        let until = turn.now + self.limits.room;
        self.state = State::MakingRoom(Room { step: RoomStep::Ending(id), until, ..room });
        self.fleet.kill(turn, id);
    }
}
