//! Decides: what happens next. The only place that does.
//!
//! `Lifecycle::on(now, event)` answers with actions for the shell in `run`; nothing in here waits,
//! reads a clock, or touches a process. Time comes in as `now`, deadlines go out through `wake_at`.
//! The table of states and events is in `docs/architecture.md`; the words are in `vocabulary`, the
//! generations that are alive in `fleet`.

mod drift;
mod fleet;
mod relief;
mod room;
mod vocabulary;

use std::time::{Duration, Instant};

use self::drift::Drift;
use self::fleet::{Fate, Fleet, Generation};
use self::relief::Reservation;
use self::room::{Room, RoomStep};
use self::vocabulary::Turn;
pub use self::vocabulary::{
    Action, Birth, Condition, CrashPolicy, Event, Limits, Phase, Refusal, Sharing, StateName, Stop,
    Why,
};
use crate::haproxy::generation::GenerationId;
use crate::process::exit::Exit;

/// If clients were served for this long between two crashes, by one generation or by several in
/// turn, the second crash does not count as "in a row" with the first.
const STABLE: Duration = Duration::from_millis(500);
/// So many failures in a row are answered at once: if something kills HAProxy each second, clients
/// wait only for its start. The next one waits this long, then twice as long.
const AT_ONCE: u32 = 3;
const BACK_OFF_FIRST: Duration = Duration::from_millis(500);
const BACK_OFF_MOST: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Those whom we are to relieve are being looked for.
    Finding {
        again: bool,
    },
    Starting {
        again: bool,
        birth: Birth,
    },
    /// The first generation accepts; clients are not yet led to it from elsewhere.
    Intercepting(Intercepting),
    /// Predecessors are to leave their ports to us for once.
    MakingRoom(Room),
    Serving(GenerationId),
    Reloading(Reload),
    Recovering(Recovery),
    Stopping(Stopping),
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Intercepting {
    id: GenerationId,
    /// A reload was asked for meanwhile.
    again: bool,
    birth: Birth,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reload {
    from: Outgoing,
    next: GenerationId,
    step: ReloadStep,
    /// One more reload was asked for meanwhile.
    again: bool,
    /// The guard is up and the predecessors are paused already.
    room: Option<Room>,
}

/// Whose listeners go to the next generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outgoing {
    Generation(GenerationId),
    /// Those of other containers: a take-over.
    Predecessors,
}

impl Outgoing {
    fn is(self, id: GenerationId) -> bool {
        self == Self::Generation(id)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReloadStep {
    Starting,
    HandingOver {
        until: Instant,
        /// `None` until the listeners are compared.
        sharing: Option<Sharing>,
    },
    /// The guard is up; what the old listeners have is still being accepted.
    Settling {
        until: Instant,
    },
    /// The guard is up; the old generation drains, and its listeners are on their way out.
    Closing {
        until: Instant,
    },
    /// The guard is down; what it held is being let through.
    Releasing {
        until: Instant,
    },
}

impl ReloadStep {
    fn until(self) -> Option<Instant> {
        match self {
            Self::Starting => None,
            Self::HandingOver { until, .. }
            | Self::Settling { until }
            | Self::Closing { until }
            | Self::Releasing { until } => Some(until),
        }
    }

    fn is_guarded(self) -> bool {
        matches!(self, Self::Settling { .. } | Self::Closing { .. })
    }

    /// The old generation drains already: there is no way back to it.
    fn is_past_return(self) -> bool {
        matches!(self, Self::Closing { .. } | Self::Releasing { .. })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Recovery {
    step: RecoveryStep,
    /// The generation that served last.
    lost: GenerationId,
    /// The one that is starting answers a reload.
    asked: bool,
    /// One more reload was asked for meanwhile.
    again: bool,
    /// `Why::Recovery` or `Why::LastGood`.
    why: Why,
}

/// What became of a generation that another one must replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// It served, or a signal ended it while it started.
    Crash,
    /// HAProxy itself refused to start, or was not ready in time. A name that does not resolve does
    /// this too, so it never ends the container: the configuration served before.
    NotStarted,
    /// It was a reload's attempt, which has its answer already.
    Answered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecoveryStep {
    Waiting { until: Instant },
    Starting(GenerationId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stopping {
    /// What was killed and is still not gone by then is the kernel's to keep.
    give_up_at: Instant,
    /// What the container ends with.
    status: u8,
    reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Asked,
    /// A successor serves: there is time for every session until its own deadline.
    Relieved,
}

#[derive(Debug)]
pub struct Lifecycle {
    limits: Limits,
    state: State,
    since: Instant,
    fleet: Fleet,
    /// Since when clients are served without a break.
    served_since: Option<Instant>,
    crashes: u32,
    crashes_in_a_row: u32,
    /// Crashes and starts that came to nothing: the back-off grows with them.
    failures_in_a_row: u32,
    stop_deadline: Option<Instant>,
    /// What the operator wants, and what the serving generation was last told.
    pause_wanted: bool,
    paused: bool,
    reservation: Reservation,
    drift: Drift,
}

impl Lifecycle {
    #[must_use]
    pub fn start(now: Instant, limits: Limits, birth: Birth) -> (Self, Vec<Action>) {
        let mut turn = Turn { now, actions: Vec::new() };
        let mut lifecycle = Self {
            limits,
            state: State::Finding { again: false },
            since: now,
            fleet: Fleet::default(),
            served_since: None,
            crashes: 0,
            crashes_in_a_row: 0,
            failures_in_a_row: 0,
            stop_deadline: None,
            pause_wanted: false,
            paused: false,
            reservation: Reservation::None,
            drift: Drift::default(),
        };
        match birth {
            Birth::Alone => lifecycle.found(&mut turn, Birth::Alone),
            Birth::Successor => turn.act(Action::FindPredecessors),
        }
        (lifecycle, turn.actions)
    }

    /// A stop of those that are alive, where nothing is known any more of how it came to that.
    pub fn salvage(
        now: Instant,
        limits: Limits,
        alive: impl Iterator<Item = (GenerationId, Phase)>,
        status: u8,
    ) -> (Self, Vec<Action>) {
        let (mut lifecycle, _) = Self::start(now, limits, Birth::Successor);
        let mut turn = Turn { now, actions: Vec::new() };
        lifecycle.fleet = Fleet::of(now, alive);
        // The shell has spared the predecessors.
        lifecycle.state = State::Stopped;
        lifecycle.begin_stopping(&mut turn, status, Reason::Asked);
        lifecycle.fleet.drain_all(&mut turn, now + limits.sessions());
        lifecycle.give_back_if_empty(&mut turn);
        (lifecycle, turn.actions)
    }

    /// Generation 1, alone or beside those that it is to relieve.
    fn found(&mut self, turn: &mut Turn, birth: Birth) {
        if let State::Finding { again } = self.state {
            self.state = State::Starting { again, birth };
            let limit = match birth {
                // However long the first one takes: killing it would help nobody.
                Birth::Alone => None,
                // Somebody serves, and may not reload meanwhile.
                Birth::Successor => Some(self.limits.ready),
            };
            self.fleet.launch(turn, None, Why::Start, limit);
        }
    }

    #[must_use]
    pub fn state(&self) -> StateName {
        match self.state {
            State::Finding { .. }
            | State::Starting { .. }
            | State::Intercepting(_)
            | State::MakingRoom(_) => StateName::Starting,
            State::Serving(_) => StateName::Serving,
            State::Reloading(Reload { from: Outgoing::Predecessors, .. }) => StateName::TakingOver,
            State::Reloading(_) => StateName::Reloading,
            State::Recovering(_) => StateName::Recovering,
            State::Stopping(Stopping { reason: Reason::Relieved, .. }) => StateName::Relieved,
            State::Stopping(_) => StateName::Stopping,
            State::Stopped => StateName::Stopped,
        }
    }

    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    #[must_use]
    pub fn crashes(&self) -> u32 {
        self.crashes
    }

    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// When the stop must be over, once one was asked for.
    #[must_use]
    pub fn stop_deadline(&self) -> Option<Instant> {
        self.stop_deadline
    }

    #[must_use]
    pub fn serving(&self) -> Option<GenerationId> {
        match self.state {
            State::Reloading(Reload { step, next, .. }) if step.is_past_return() => Some(next),
            State::Serving(id)
            | State::Intercepting(Intercepting { id, .. })
            | State::Reloading(
                Reload { from: Outgoing::Generation(id), .. }
                | Reload { from: Outgoing::Predecessors, next: id, .. },
            ) => Some(id),
            _ => None,
        }
    }

    /// Every generation that is alive: its phase, since when, and when it will be ended.
    pub fn generations(
        &self,
    ) -> impl Iterator<Item = (GenerationId, Phase, Instant, Option<Instant>)> + '_ {
        self.fleet.iter().map(|(id, g)| (id, g.phase, g.since, g.fate.at()))
    }

    /// When `Tick` is due; `None` while only events can change anything.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let own = match self.state {
            State::Reloading(Reload { step, .. }) => step.until(),
            State::MakingRoom(Room { until, .. }) => Some(until),
            State::Recovering(Recovery { step: RecoveryStep::Waiting { until }, .. }) => {
                Some(until)
            }
            State::Stopping(Stopping { give_up_at, .. }) => Some(give_up_at),
            _ => None,
        };
        self.fleet.iter().filter_map(|(_, g)| g.fate.at()).chain(own).chain(self.look_at()).min()
    }

    pub fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let before = self.state();
        let mut turn = Turn { now, actions: Vec::new() };
        match event {
            Event::Ready(id) => self.ready(&mut turn, id),
            Event::Intercepted => self.intercepted(&mut turn),
            Event::Compared(id, sharing) => self.compared(id, sharing),
            Event::HandedOver(id, sharing) => self.handed_over(&mut turn, id, sharing),
            Event::Settled(id) => self.settled(&mut turn, id),
            Event::ListenersGone(id) => self.listeners_gone(&mut turn, id),
            Event::GuardDone(id) => self.guard_done(&mut turn, id),
            Event::Exited(id, exit) => self.exited(&mut turn, id, exit),
            Event::Blocked(id, exit) => self.blocked(&mut turn, id, exit),
            Event::RoomSettled => self.room_settled(&mut turn),
            Event::RoomFreed => self.room_freed(&mut turn),
            Event::RoomReturned => self.room_returned(&mut turn),
            Event::Found(birth) => self.found(&mut turn, birth),
            Event::ReserveWanted => self.reserve(&mut turn),
            Event::ReserveEnded => self.end_reservation(&mut turn),
            Event::Relieved => self.relieved(&mut turn),
            Event::ReloadWanted => self.reload_wanted(&mut turn),
            Event::PauseWanted => self.pause(&mut turn, true),
            Event::ResumeWanted => self.pause(&mut turn, false),
            Event::StopWanted(stop) => self.stop_wanted(&mut turn, stop),
            Event::LetDown { status } => self.let_down(&mut turn, status),
            Event::HostFailed { status } => self.end(&mut turn, status),
            Event::HostChanged => self.host_changed(&turn),
            Event::LookWanted => self.look_wanted(&turn),
            Event::Looked { found, took } => self.looked(&mut turn, found, took),
            Event::Tick => self.tick(&mut turn),
        }
        self.put_back_if_due(&mut turn);
        if self.state() != before {
            self.since = now;
        }
        turn.actions
    }

    fn grace(&self) -> Duration {
        match self.state {
            State::Stopping(_) => self.limits.stop_grace(),
            _ => self.limits.grace,
        }
    }

    fn launch(&mut self, turn: &mut Turn, from: Option<GenerationId>, why: Why) -> GenerationId {
        self.fleet.make_room(turn, self.limits.max_generations, self.limits.grace);
        self.fleet.launch(turn, from, why, Some(self.limits.ready))
    }

    fn ready(&mut self, turn: &mut Turn, id: GenerationId) {
        if self.fleet.get(id).is_none_or(|g| g.fate == Fate::Killed) {
            return;
        }
        match self.state {
            State::Starting { again, birth } => {
                self.serve(turn.now, id);
                self.state = State::Intercepting(Intercepting { id, again, birth });
                turn.act(Action::Intercept);
            }
            State::MakingRoom(room) if room.step == RoomStep::Starting(id) => {
                self.room_taken(turn, room, id);
            }
            State::Reloading(reload)
                if reload.next == id && reload.step == ReloadStep::Starting =>
            {
                // It accepts from now on: being slow to be handed things is no reason to die, and
                // a stop must let it finish what it accepted.
                self.serve(turn.now, id);
                let step = self.handing_over(turn.now);
                self.state = State::Reloading(Reload { step, ..reload });
                if let Outgoing::Generation(from) = reload.from {
                    turn.act(Action::HandOver { from, to: id });
                }
            }
            State::Recovering(recovery) if recovery.step == RecoveryStep::Starting(id) => {
                self.serve(turn.now, id);
                if recovery.asked {
                    turn.act(Action::ReloadTaken { from: recovery.lost, to: id });
                }
                self.settle(turn, id, recovery.again);
            }
            _ => {}
        }
    }

    fn serve(&mut self, now: Instant, id: GenerationId) {
        self.fleet.serve(now, id);
        self.served_since.get_or_insert(now);
    }

    fn intercepted(&mut self, turn: &mut Turn) {
        let State::Intercepting(Intercepting { id, again, birth }) = self.state else { return };
        match birth {
            Birth::Alone => self.settle(turn, id, again),
            // Only now: at no time are clients led to no hapilot.
            Birth::Successor => {
                let step = self.handing_over(turn.now);
                let from = Outgoing::Predecessors;
                self.state = State::Reloading(Reload { from, next: id, step, again, room: None });
                turn.act(Action::TakeOver(id));
            }
        }
    }

    fn handing_over(&self, now: Instant) -> ReloadStep {
        ReloadStep::HandingOver { until: now + self.limits.hand_over, sharing: None }
    }

    fn compared(&mut self, id: GenerationId, told: Sharing) {
        if let State::Reloading(Reload { next, step, .. }) = &mut self.state
            && *next == id
            && let ReloadStep::HandingOver { sharing, .. } = step
        {
            *sharing = Some(told);
        }
    }

    fn handed_over(&mut self, turn: &mut Turn, id: GenerationId, sharing: Sharing) {
        if let State::Reloading(reload) = self.state
            && reload.next == id
            && matches!(reload.step, ReloadStep::HandingOver { .. })
        {
            match sharing {
                _ if reload.room.is_some() => self.switch(turn, reload),
                Sharing::Enough => {
                    turn.act(Action::Keep(id));
                    self.let_go(turn, reload.from);
                    self.taken(turn, reload);
                }
                Sharing::Guarded => {
                    turn.act(Action::RaiseGuard(id));
                    // Half of the time for each half of the way.
                    let step = ReloadStep::Settling { until: turn.now + self.limits.guard / 2 };
                    self.state = State::Reloading(Reload { step, ..reload });
                }
            }
        }
    }

    fn settled(&mut self, turn: &mut Turn, id: GenerationId) {
        if let State::Reloading(reload) = self.state
            && reload.next == id
            && matches!(reload.step, ReloadStep::Settling { .. })
        {
            self.switch(turn, reload);
        }
    }

    /// Under a guard.
    fn switch(&mut self, turn: &mut Turn, reload: Reload) {
        // The keeper first, or they would not go with the old generation's.
        turn.act(Action::Keep(reload.next));
        self.let_go(turn, reload.from);
        turn.act(Action::WatchListeners(reload.next));
        let step = ReloadStep::Closing { until: turn.now + self.limits.guard / 2 };
        self.state = State::Reloading(Reload { step, room: None, ..reload });
    }

    /// There is no way back from here.
    fn let_go(&mut self, turn: &mut Turn, from: Outgoing) {
        match from {
            Outgoing::Generation(id) => self.fleet.drain(turn, id, turn.now + self.limits.drain),
            Outgoing::Predecessors => turn.act(Action::Relieve),
        }
    }

    fn listeners_gone(&mut self, turn: &mut Turn, id: GenerationId) {
        if let State::Reloading(reload) = self.state
            && reload.next == id
            && matches!(reload.step, ReloadStep::Closing { .. })
        {
            self.lower_guard(turn, reload);
        }
    }

    fn lower_guard(&mut self, turn: &mut Turn, reload: Reload) {
        turn.act(Action::LowerGuard(reload.next));
        let step = ReloadStep::Releasing { until: turn.now + self.limits.guard };
        self.state = State::Reloading(Reload { step, ..reload });
    }

    fn guard_done(&mut self, turn: &mut Turn, id: GenerationId) {
        if let State::Reloading(reload) = self.state
            && reload.next == id
            && matches!(reload.step, ReloadStep::Releasing { .. })
        {
            self.taken(turn, reload);
        }
    }

    fn taken(&mut self, turn: &mut Turn, reload: Reload) {
        let to = reload.next;
        turn.act(match reload.from {
            Outgoing::Generation(from) => Action::ReloadTaken { from, to },
            Outgoing::Predecessors => Action::TakenOver(to),
        });
        self.settle(turn, to, reload.again);
    }

    /// `id` serves and nothing is under way: catch up with what was asked for meanwhile.
    fn settle(&mut self, turn: &mut Turn, id: GenerationId, again: bool) {
        self.state = State::Serving(id);
        self.paused = false;
        if again {
            self.reload(turn, id);
            return;
        }
        if self.pause_wanted && self.reservation != Reservation::Held {
            self.paused = true;
            turn.act(Action::Pause(id));
        }
        if self.reservation == Reservation::Wanted {
            self.hold_still(turn);
        }
    }

    fn reload(&mut self, turn: &mut Turn, serving: GenerationId) {
        let next = self.launch(turn, Some(serving), Why::Reload);
        let (from, step) = (Outgoing::Generation(serving), ReloadStep::Starting);
        self.state = State::Reloading(Reload { from, next, step, again: false, room: None });
    }

    fn reload_wanted(&mut self, turn: &mut Turn) {
        match &mut self.state {
            // A paused listener that is handed over never accepts again in its new owner.
            State::Serving(_) if self.paused => {
                turn.act(Action::ReloadRefused { id: None, why: Refusal::Paused });
            }
            State::Serving(_)
            | State::Reloading(Reload { again: false, .. })
            | State::Starting { again: false, .. }
            | State::Intercepting(Intercepting { again: false, .. })
            | State::MakingRoom(Room { again: false, .. })
            | State::Recovering(_)
                if self.reservation != Reservation::None =>
            {
                turn.act(Action::ReloadRefused { id: None, why: Refusal::Reserved });
            }
            State::Serving(serving) => {
                let serving = *serving;
                self.reload(turn, serving);
            }
            // The operator may just have mended what made HAProxy die: no reason to wait longer.
            State::Recovering(Recovery { step: RecoveryStep::Waiting { .. }, lost, .. }) => {
                let lost = *lost;
                self.recover(turn, lost, true, Why::Recovery);
            }
            State::Finding { again }
            | State::Starting { again, .. }
            | State::Intercepting(Intercepting { again, .. })
            | State::MakingRoom(Room { again, .. })
            | State::Reloading(Reload { again, .. })
            | State::Recovering(Recovery { again, .. }) => *again = true,
            State::Stopping(_) | State::Stopped => {
                turn.act(Action::ReloadRefused { id: None, why: Refusal::Stopping });
            }
        }
    }

    fn pause(&mut self, turn: &mut Turn, wanted: bool) {
        self.pause_wanted = wanted;
        // Anything else settles first; `settle` then looks at what is wanted. And a successor may
        // share the listeners already: a pause would take them from it.
        if let State::Serving(id) = self.state
            && self.reservation != Reservation::Held
            && self.paused != wanted
        {
            self.paused = wanted;
            turn.act(if wanted { Action::Pause(id) } else { Action::Resume(id) });
        }
    }

    fn exited(&mut self, turn: &mut Turn, id: GenerationId, exit: Exit) {
        let Some(gone) = self.fleet.remove(id) else {
            return;
        };
        match self.state {
            State::Starting { birth, .. } => {
                self.refuse_reloads(turn);
                self.refuse_successor(turn);
                if birth == Birth::Successor {
                    turn.act(Action::Spare);
                }
                self.give_back(turn, exit.status());
            }
            State::MakingRoom(room) => self.room_lost(turn, room, id, exit, gone),
            // Its predecessors serve on.
            State::Intercepting(Intercepting { id: first, birth: Birth::Successor, .. })
                if first == id =>
            {
                self.end(turn, exit.status());
            }
            State::Intercepting(Intercepting { id: first, again, .. }) if first == id => {
                self.count_crash(turn.now);
                self.replace(turn, id, (id, exit, Loss::Crash), (again, first_try(again)));
            }
            State::Serving(serving) if serving == id => {
                self.count_crash(turn.now);
                self.replace(turn, id, (id, exit, Loss::Crash), (false, first_try(false)));
            }
            // It drains: no crash. Whoever watches its listeners sees them go.
            State::Reloading(reload) if reload.from.is(id) && reload.step.is_past_return() => {}
            State::Reloading(reload) if reload.from.is(id) => {
                self.count_crash(turn.now);
                self.serving_died_in_reload(turn, reload, (id, exit));
            }
            State::Reloading(reload) if reload.next == id => {
                self.next_died(turn, reload, exit, gone);
            }
            State::Recovering(recovery) if recovery.step == RecoveryStep::Starting(id) => {
                let loss = if recovery.asked {
                    // The operator's attempt, and no crash of what served.
                    turn.act(Action::ReloadRefused { id: Some(id), why: refusal(gone, exit) });
                    self.state = State::Recovering(Recovery { asked: false, ..recovery });
                    Loss::Answered
                } else {
                    self.count_start(turn.now, gone, exit)
                };
                // It was never ready, so what it read may be broken: the other one by turns.
                let why = match recovery.why {
                    Why::Recovery if !recovery.again => Why::LastGood,
                    _ => Why::Recovery,
                };
                self.replace(turn, recovery.lost, (id, exit, loss), (recovery.again, why));
            }
            State::Stopping(_) => self.give_back_if_empty(turn),
            _ => {}
        }
    }

    fn next_died(&mut self, turn: &mut Turn, reload: Reload, exit: Exit, gone: Generation) {
        let Reload { from, next, step, again, room } = reload;
        if let Some(room) = room {
            return self.give_room_back(turn, Room { status: exit.status(), again, ..room });
        }
        match from {
            // They serve on, and whoever started us learns why we do not.
            Outgoing::Predecessors if !step.is_past_return() => {
                return self.end(turn, exit.status());
            }
            _ if step.is_guarded() => turn.act(Action::LowerGuard(next)),
            _ => {}
        }
        if let Outgoing::Generation(_) = from {
            turn.act(Action::ReloadRefused { id: Some(next), why: refusal(gone, exit) });
        }
        if let Outgoing::Generation(serving) = from
            && !step.is_past_return()
        {
            self.settle(turn, serving, again);
        } else {
            // Nobody serves; and whoever asked is answered, should this be the end.
            let step = RecoveryStep::Waiting { until: turn.now };
            let (lost, asked, why) = (next, false, first_try(again));
            self.state = State::Recovering(Recovery { step, lost, asked, again, why });
            self.count_crash(turn.now);
            self.replace(turn, next, (next, exit, Loss::Crash), (again, why));
        }
    }

    fn serving_died_in_reload(
        &mut self,
        turn: &mut Turn,
        reload: Reload,
        (lost, exit): (GenerationId, Exit),
    ) {
        let Reload { next, step, again, .. } = reload;
        if step == ReloadStep::Starting && self.restart_in(Loss::Crash).is_none() {
            turn.act(self.crashed(lost, exit, None));
            return self.end(turn, exit.status());
        }
        // It is on its way, or accepts already: it is the replacement.
        turn.act(self.crashed(lost, exit, Some(Duration::ZERO)));
        if step == ReloadStep::Starting {
            let step = RecoveryStep::Starting(next);
            let why = Why::Recovery;
            self.state = State::Recovering(Recovery { step, lost, asked: true, again, why });
            return;
        }
        self.served_since = self.fleet.get(next).map(|next| next.since);
        if step.is_guarded() {
            turn.act(Action::Keep(next));
            self.lower_guard(turn, reload);
        } else {
            turn.act(Action::Keep(next));
            turn.act(Action::ReloadTaken { from: lost, to: next });
            self.settle(turn, next, again);
        }
    }

    /// One that served has died.
    fn count_crash(&mut self, now: Instant) {
        let served = self.served_since.take().map(|since| now.duration_since(since));
        if served.is_some_and(|served| served >= STABLE) {
            (self.crashes_in_a_row, self.failures_in_a_row) = (0, 0);
        }
        self.crashes += 1;
        self.crashes_in_a_row += 1;
        self.failures_in_a_row += 1;
    }

    /// One that was to serve has ended before it did.
    fn count_start(&mut self, now: Instant, gone: Generation, exit: Exit) -> Loss {
        if gone.fate != Fate::Killed && matches!(exit, Exit::Signal(_)) {
            self.count_crash(now);
            return Loss::Crash;
        }
        self.failures_in_a_row += 1;
        Loss::NotStarted
    }

    fn crashed(&self, id: GenerationId, exit: Exit, restart_in: Option<Duration>) -> Action {
        Action::Crashed { id, exit, in_a_row: self.crashes_in_a_row, restart_in }
    }

    /// `None`: not again.
    fn restart_in(&self, loss: Loss) -> Option<Duration> {
        let again = match self.limits.on_crash {
            CrashPolicy::Restart { most_in_a_row } => {
                loss != Loss::Crash || self.crashes_in_a_row <= most_in_a_row
            }
            CrashPolicy::Exit => false,
        };
        again.then(|| back_off(self.failures_in_a_row))
    }

    /// Nobody serves and nobody is on the way. `asked`: a reload waits for an answer.
    fn replace(
        &mut self,
        turn: &mut Turn,
        lost: GenerationId,
        (id, exit, became): (GenerationId, Exit, Loss),
        (asked, why): (bool, Why),
    ) {
        let tried = match self.state {
            State::Recovering(recovery) => Some(recovery.why),
            _ => None,
        };
        // Another configuration is another chance.
        let another = why == Why::Recovery && tried == Some(Why::LastGood);
        let at_once = asked || another || became == Loss::Answered;
        let wait = self.restart_in(became).map(|wait| if at_once { Duration::ZERO } else { wait });
        match (became, wait) {
            (Loss::Crash, _) => turn.act(self.crashed(id, exit, wait)),
            (Loss::NotStarted, Some(again_in)) => {
                let in_a_row = self.failures_in_a_row;
                turn.act(Action::NotStarted { id, exit, in_a_row, again_in });
            }
            (Loss::NotStarted, None) | (Loss::Answered, _) => {}
        }
        match wait {
            // HAProxy's own status is what the container ends with; sessions of older generations
            // are ended, because nobody is left to serve and the restart policy should act soon.
            None => self.end(turn, exit.status()),
            Some(Duration::ZERO) => self.recover(turn, lost, asked, why),
            Some(wait) => {
                let step = RecoveryStep::Waiting { until: turn.now + wait };
                let (asked, again) = (false, false);
                self.state = State::Recovering(Recovery { step, lost, asked, again, why });
            }
        }
    }

    fn recover(&mut self, turn: &mut Turn, lost: GenerationId, asked: bool, why: Why) {
        let step = RecoveryStep::Starting(self.launch(turn, None, why));
        self.state = State::Recovering(Recovery { step, lost, asked, again: false, why });
    }

    fn stop_wanted(&mut self, turn: &mut Turn, stop: Stop) {
        if self.leave_room(turn, 0) {
            return;
        }
        match (self.state, stop) {
            (State::Stopping(Stopping { reason: Reason::Relieved, .. }), Stop::Graceful) => {
                // No more time than any stop has; what drains does so already.
                let (by, status, until) =
                    (self.stop_by(turn.now), 0, turn.now + self.limits.sessions());
                let reason = Reason::Asked;
                self.state = State::Stopping(Stopping { give_up_at: by, status, reason });
                self.stop_deadline = Some(turn.now + self.limits.stop);
                self.fleet.drain_all(turn, until);
            }
            // A second one of any kind means: now.
            (State::Stopping(_), _) => self.fleet.end_all(turn, self.limits.stop_grace()),
            (State::Stopped, _) => {}
            (_, Stop::Now) => self.end(turn, 0),
            (_, Stop::Graceful) => {
                self.begin_stopping(turn, 0, Reason::Asked);
                self.fleet.drain_all(turn, turn.now + self.limits.sessions());
                self.give_back_if_empty(turn);
            }
        }
    }

    fn stop_by(&self, now: Instant) -> Instant {
        now + self.limits.stop.saturating_sub(self.limits.reserve() / 2)
    }

    /// Stops now, with this status.
    fn end(&mut self, turn: &mut Turn, status: u8) {
        if self.leave_room(turn, status) {
            return;
        }
        if !matches!(self.state, State::Stopping(_) | State::Stopped) {
            self.begin_stopping(turn, status, Reason::Asked);
        }
        self.fleet.end_all(turn, self.limits.stop_grace());
        self.give_back_if_empty(turn);
    }

    fn begin_stopping(&mut self, turn: &mut Turn, status: u8, reason: Reason) {
        if let State::Reloading(Reload { step, next, .. }) = self.state
            && step.is_guarded()
        {
            turn.act(Action::LowerGuard(next));
        }
        self.refuse_reloads(turn);
        if self.has_predecessors() {
            turn.act(Action::Spare);
        }
        self.refuse_successor(turn);
        let give_up_at = match reason {
            Reason::Asked => {
                // It may have begun while predecessors got their ports back.
                self.stop_deadline.get_or_insert(turn.now + self.limits.stop);
                self.stop_by(turn.now)
            }
            // Nobody waits with a KILL at hand.
            Reason::Relieved => turn.now + self.limits.drain + 2 * self.limits.grace,
        };
        self.state = State::Stopping(Stopping { give_up_at, status, reason });
        turn.act(Action::StopIntercepting);
        turn.act(Action::CloseKeeper);
    }

    /// Some who are not relieved yet: they may go on as they did.
    fn has_predecessors(&self) -> bool {
        match self.state {
            State::Finding { .. } => true,
            State::Starting { birth, .. } | State::Intercepting(Intercepting { birth, .. }) => {
                birth == Birth::Successor
            }
            State::Reloading(Reload { from: Outgoing::Predecessors, step, .. }) => {
                !step.is_past_return()
            }
            _ => false,
        }
    }

    fn give_back_if_empty(&mut self, turn: &mut Turn) {
        if let State::Stopping(Stopping { status, .. }) = self.state
            && self.fleet.is_empty()
        {
            self.give_back(turn, status);
        }
    }

    fn give_back(&mut self, turn: &mut Turn, status: u8) {
        self.state = State::Stopped;
        turn.act(Action::TearDown { status });
    }

    /// Whoever waits for the answer to a reload gets it before the stop begins.
    fn refuse_reloads(&self, turn: &mut Turn) {
        let why = Refusal::Stopping;
        let (trying, again) = match self.state {
            State::Finding { again }
            | State::Starting { again, .. }
            | State::Intercepting(Intercepting { again, .. })
            | State::MakingRoom(Room { again, .. })
            | State::Reloading(Reload { from: Outgoing::Predecessors, again, .. }) => (None, again),
            State::Reloading(Reload { next, again, .. }) => (Some(next), again),
            State::Recovering(Recovery { step, asked, again, .. }) => match step {
                RecoveryStep::Starting(next) if asked => (Some(next), again),
                _ => (None, again),
            },
            _ => (None, false),
        };
        if trying.is_some() {
            turn.act(Action::ReloadRefused { id: trying, why });
        }
        if again {
            turn.act(Action::ReloadRefused { id: None, why });
        }
    }

    fn tick(&mut self, turn: &mut Turn) {
        let grace = self.grace();
        self.fleet.end_due(turn, grace);
        match self.state {
            State::Reloading(Reload { step, next, .. })
                if step.until().is_some_and(|until| until <= turn.now) =>
            {
                match step {
                    ReloadStep::Starting => {}
                    // What is not known is not enough.
                    ReloadStep::HandingOver { sharing, .. } => {
                        self.handed_over(turn, next, sharing.unwrap_or(Sharing::Guarded));
                    }
                    ReloadStep::Settling { .. } => self.settled(turn, next),
                    ReloadStep::Closing { .. } => self.listeners_gone(turn, next),
                    ReloadStep::Releasing { .. } => self.guard_done(turn, next),
                }
            }
            State::MakingRoom(room) if room.until <= turn.now => self.room_over(turn, room),
            State::Recovering(Recovery {
                step: RecoveryStep::Waiting { until },
                lost,
                why,
                ..
            }) if until <= turn.now => {
                self.recover(turn, lost, false, why);
            }
            State::Stopping(Stopping { give_up_at, status, .. }) if give_up_at <= turn.now => {
                self.fleet.give_up();
                self.give_back(turn, status);
            }
            _ => {}
        }
    }
}

fn refusal(gone: Generation, exit: Exit) -> Refusal {
    match gone.fate {
        Fate::Killed => Refusal::NotReady,
        _ => Refusal::Died(exit),
    }
}

/// After a crash what served comes first: it adopts each listener. What is on disk may have other
/// addresses, and clients that wait would be lost with theirs. An operator who asked wants what is on
/// disk.
fn first_try(asked: bool) -> Why {
    if asked { Why::Recovery } else { Why::LastGood }
}

fn back_off(failures_in_a_row: u32) -> Duration {
    match failures_in_a_row {
        0..=AT_ONCE => Duration::ZERO,
        n => BACK_OFF_FIRST.saturating_mul(1 << (n - AT_ONCE - 1).min(10)).min(BACK_OFF_MOST),
    }
}

#[cfg(test)]
mod tests;
