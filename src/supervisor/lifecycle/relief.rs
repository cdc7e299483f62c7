//! Decides: what a successor may ask of us, from holding still to being relieved. Values only.

use super::vocabulary::{Action, Refusal, Turn};
use super::{Lifecycle, Reason, State};

/// What a successor has asked of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reservation {
    None,
    /// Until nothing is under way.
    Wanted,
    /// What we listen on stays as it is.
    Held,
}

impl Lifecycle {
    /// A successor wants to relieve us. The shell lets only one ask at a time.
    pub(super) fn reserve(&mut self, turn: &mut Turn) {
        match self.state {
            State::Serving(_) => self.hold_still(turn),
            // The keeper has what the successor needs, whatever HAProxy does.
            State::Recovering(ref mut recovery) => {
                if std::mem::take(&mut recovery.again) {
                    turn.act(Action::ReloadRefused { id: None, why: Refusal::Reserved });
                }
                self.hold_still(turn);
            }
            State::Finding { .. }
            | State::Starting { .. }
            | State::Intercepting(_)
            | State::MakingRoom(_)
            | State::Reloading(_) => {
                self.reservation = Reservation::Wanted;
            }
            State::Stopping(_) | State::Stopped => turn.act(Action::NotReserved),
        }
    }

    pub(super) fn hold_still(&mut self, turn: &mut Turn) {
        self.reservation = Reservation::Held;
        turn.act(Action::Reserved);
    }

    /// The successor is gone, or never mind: all goes on as before.
    pub(super) fn end_reservation(&mut self, turn: &mut Turn) {
        let held = std::mem::replace(&mut self.reservation, Reservation::None);
        if held == Reservation::Held {
            let wanted = self.pause_wanted;
            self.pause(turn, wanted);
        }
    }

    /// A successor serves with our listeners: sessions finish, and nothing is started again.
    pub(super) fn relieved(&mut self, turn: &mut Turn) {
        if self.reservation != Reservation::Held
            || matches!(self.state, State::Stopping(_) | State::Stopped)
        {
            return;
        }
        self.begin_stopping(turn, 0, Reason::Relieved);
        self.fleet.drain_all(turn, turn.now + self.limits.drain);
        self.give_back_if_empty(turn);
    }

    /// A predecessor did not wait for us: what we have accepted finishes, and no more is accepted.
    pub(super) fn let_down(&mut self, turn: &mut Turn, status: u8) {
        if self.leave_room(turn, status)
            || matches!(self.state, State::Stopping(_) | State::Stopped)
        {
            return;
        }
        self.begin_stopping(turn, status, Reason::Asked);
        self.fleet.drain_all(turn, turn.now + self.limits.sessions());
        self.give_back_if_empty(turn);
    }

    /// One that still waits for our word.
    pub(super) fn refuse_successor(&mut self, turn: &mut Turn) {
        if self.reservation == Reservation::Wanted {
            self.reservation = Reservation::None;
            turn.act(Action::NotReserved);
        }
    }
}
