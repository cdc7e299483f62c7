//! Decides: what happens next. The only place that does.
//!
//! `Lifecycle::on(now, event)` answers with actions for the shell in `run`; nothing in here waits,
//! reads a clock, or touches a process. Time comes in as `now`, deadlines go out through `wake_at`.
//! The table of states and events is in `docs/architecture.md`; the words are in `vocabulary`, the
//! generations that are alive in `fleet`.

mod fleet;
mod vocabulary;

use std::time::{Duration, Instant};

use self::fleet::{Fate, Fleet, Generation};
use self::vocabulary::Turn;
pub use self::vocabulary::{
    Action, CrashPolicy, Event, Limits, Phase, Refusal, Sharing, StateName, Stop, Why,
};
use crate::haproxy::generation::GenerationId;
use crate::process::exit::Exit;

/// A generation that served this long before it died did not die "in a row" with the last one.
const STABLE: Duration = Duration::from_secs(1);
/// The first restart is at once; the second crash in a row waits this long, then twice as long.
const BACK_OFF_FIRST: Duration = Duration::from_millis(500);
const BACK_OFF_MOST: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting { again: bool },
    Serving(GenerationId),
    Reloading(Reload),
    Recovering(Recovery),
    Stopping(Stopping),
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reload {
    serving: GenerationId,
    next: GenerationId,
    step: ReloadStep,
    /// One more reload was asked for meanwhile.
    again: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReloadStep {
    Starting,
    HandingOver {
        until: Instant,
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
            Self::HandingOver { until }
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
}

#[derive(Debug)]
pub struct Lifecycle {
    limits: Limits,
    state: State,
    since: Instant,
    fleet: Fleet,
    crashes: u32,
    crashes_in_a_row: u32,
    stop_deadline: Option<Instant>,
    /// What the operator wants, and what the serving generation was last told.
    pause_wanted: bool,
    paused: bool,
}

impl Lifecycle {
    #[must_use]
    pub fn start(now: Instant, limits: Limits) -> (Self, Vec<Action>) {
        let mut turn = Turn { now, actions: Vec::new() };
        let mut fleet = Fleet::default();
        // However long the first one takes: killing it would help nobody.
        fleet.launch(&mut turn, None, Why::Start, None);
        let lifecycle = Self {
            limits,
            state: State::Starting { again: false },
            since: now,
            fleet,
            crashes: 0,
            crashes_in_a_row: 0,
            stop_deadline: None,
            pause_wanted: false,
            paused: false,
        };
        (lifecycle, turn.actions)
    }

    #[must_use]
    pub fn state(&self) -> StateName {
        match self.state {
            State::Starting { .. } => StateName::Starting,
            State::Serving(_) => StateName::Serving,
            State::Reloading(_) => StateName::Reloading,
            State::Recovering(_) => StateName::Recovering,
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
            State::Serving(id) | State::Reloading(Reload { serving: id, .. }) => Some(id),
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
            State::Recovering(Recovery { step: RecoveryStep::Waiting { until }, .. }) => {
                Some(until)
            }
            State::Stopping(Stopping { give_up_at, .. }) => Some(give_up_at),
            _ => None,
        };
        self.fleet.iter().filter_map(|(_, g)| g.fate.at()).chain(own).min()
    }

    pub fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let before = self.state();
        let mut turn = Turn { now, actions: Vec::new() };
        match event {
            Event::Ready(id) => self.ready(&mut turn, id),
            Event::HandedOver(id, sharing) => self.handed_over(&mut turn, id, sharing),
            Event::Settled(id) => self.settled(&mut turn, id),
            Event::ListenersGone(id) => self.listeners_gone(&mut turn, id),
            Event::GuardDone(id) => self.guard_done(&mut turn, id),
            Event::Exited(id, exit) => self.exited(&mut turn, id, exit),
            Event::ReloadWanted => self.reload_wanted(&mut turn),
            Event::PauseWanted => self.pause(&mut turn, true),
            Event::ResumeWanted => self.pause(&mut turn, false),
            Event::StopWanted(stop) => self.stop_wanted(&mut turn, stop),
            Event::HostFailed { status } => self.end(&mut turn, status),
            Event::Tick => self.tick(&mut turn),
        }
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
            State::Starting { again } => {
                self.fleet.serve(turn.now, id);
                turn.act(Action::Intercept);
                self.settle(turn, id, again);
            }
            State::Reloading(reload)
                if reload.next == id && reload.step == ReloadStep::Starting =>
            {
                // It accepts from now on: being slow to be handed things is no reason to die, and
                // a stop must let it finish what it accepted.
                self.fleet.serve(turn.now, id);
                let step = ReloadStep::HandingOver { until: turn.now + self.limits.hand_over };
                self.state = State::Reloading(Reload { step, ..reload });
                turn.act(Action::HandOver { from: reload.serving, to: id });
            }
            State::Recovering(recovery) if recovery.step == RecoveryStep::Starting(id) => {
                self.fleet.serve(turn.now, id);
                if recovery.asked {
                    turn.act(Action::ReloadTaken { from: recovery.lost, to: id });
                }
                self.settle(turn, id, recovery.again);
            }
            _ => {}
        }
    }

    fn handed_over(&mut self, turn: &mut Turn, id: GenerationId, sharing: Sharing) {
        if let State::Reloading(reload) = self.state
            && reload.next == id
            && matches!(reload.step, ReloadStep::HandingOver { .. })
        {
            match sharing {
                Sharing::Enough => {
                    self.fleet.drain(turn, reload.serving, turn.now + self.limits.drain);
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
            // The keeper first, or they would not go with the old generation's.
            turn.act(Action::Keep(id));
            self.fleet.drain(turn, reload.serving, turn.now + self.limits.drain);
            turn.act(Action::WatchListeners(id));
            let step = ReloadStep::Closing { until: turn.now + self.limits.guard / 2 };
            self.state = State::Reloading(Reload { step, ..reload });
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
        turn.act(Action::ReloadTaken { from: reload.serving, to: reload.next });
        self.settle(turn, reload.next, reload.again);
    }

    /// `id` serves and nothing is under way: catch up with what was asked for meanwhile.
    fn settle(&mut self, turn: &mut Turn, id: GenerationId, again: bool) {
        self.state = State::Serving(id);
        self.paused = false;
        if again {
            self.reload(turn, id);
        } else if self.pause_wanted {
            self.paused = true;
            turn.act(Action::Pause(id));
        }
    }

    fn reload(&mut self, turn: &mut Turn, serving: GenerationId) {
        let next = self.launch(turn, Some(serving), Why::Reload);
        let step = ReloadStep::Starting;
        self.state = State::Reloading(Reload { serving, next, step, again: false });
    }

    fn reload_wanted(&mut self, turn: &mut Turn) {
        match &mut self.state {
            // A paused listener that is handed over never accepts again in its new owner.
            State::Serving(_) if self.paused => {
                turn.act(Action::ReloadRefused { id: None, why: Refusal::Paused });
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
            State::Starting { again }
            | State::Reloading(Reload { again, .. })
            | State::Recovering(Recovery { again, .. }) => *again = true,
            State::Stopping(_) | State::Stopped => {
                turn.act(Action::ReloadRefused { id: None, why: Refusal::Stopping });
            }
        }
    }

    fn pause(&mut self, turn: &mut Turn, wanted: bool) {
        self.pause_wanted = wanted;
        // Anything else settles first; `settle` then looks at what is wanted.
        if let State::Serving(id) = self.state
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
            State::Starting { .. } => {
                self.refuse_reloads(turn);
                self.give_back(turn, exit.status());
            }
            State::Serving(serving) if serving == id => {
                self.count_crash(turn, id, exit, gone);
                self.replace(turn, id, exit, (false, Why::Recovery));
            }
            // It drains: no crash. Whoever watches its listeners sees them go.
            State::Reloading(reload) if reload.serving == id && reload.step.is_past_return() => {}
            State::Reloading(reload) if reload.serving == id => {
                self.count_crash(turn, id, exit, gone);
                self.serving_died_in_reload(turn, reload, exit);
            }
            State::Reloading(reload) if reload.next == id => {
                self.next_died(turn, reload, exit, gone);
            }
            State::Recovering(recovery) if recovery.step == RecoveryStep::Starting(id) => {
                if recovery.asked {
                    // The operator's attempt, and no crash of what served.
                    turn.act(Action::ReloadRefused { id: Some(id), why: refusal(gone, exit) });
                    self.state = State::Recovering(Recovery { asked: false, ..recovery });
                } else {
                    self.count_crash(turn, id, exit, gone);
                }
                // It was never ready, so what it read may be broken: the other one by turns.
                let why = match recovery.why {
                    Why::Recovery if !recovery.again => Why::LastGood,
                    _ => Why::Recovery,
                };
                self.replace(turn, recovery.lost, exit, (recovery.again, why));
            }
            State::Stopping(_) => self.give_back_if_empty(turn),
            _ => {}
        }
    }

    fn next_died(&mut self, turn: &mut Turn, reload: Reload, exit: Exit, gone: Generation) {
        let Reload { serving, next, step, again } = reload;
        if step.is_guarded() {
            turn.act(Action::LowerGuard(next));
        }
        turn.act(Action::ReloadRefused { id: Some(next), why: refusal(gone, exit) });
        if step.is_past_return() {
            // Nobody serves; and whoever asked is answered, should this be the end.
            let step = RecoveryStep::Waiting { until: turn.now };
            let (lost, asked, why) = (next, false, Why::Recovery);
            self.state = State::Recovering(Recovery { step, lost, asked, again, why });
            self.count_crash(turn, next, exit, gone);
            self.replace(turn, next, exit, (again, why));
        } else {
            self.settle(turn, serving, again);
        }
    }

    fn serving_died_in_reload(&mut self, turn: &mut Turn, reload: Reload, exit: Exit) {
        let Reload { serving: lost, next, step, again } = reload;
        if step.is_guarded() {
            turn.act(Action::Keep(next));
            self.lower_guard(turn, reload);
        } else if step != ReloadStep::Starting {
            // The new one accepts already: it is the replacement.
            turn.act(Action::ReloadTaken { from: lost, to: next });
            self.settle(turn, next, again);
        } else if self.restart_in().is_none() {
            self.end(turn, exit.status());
        } else {
            let step = RecoveryStep::Starting(next);
            let why = Why::Recovery;
            self.state = State::Recovering(Recovery { step, lost, asked: true, again, why });
        }
    }

    fn count_crash(&mut self, turn: &mut Turn, id: GenerationId, exit: Exit, gone: Generation) {
        let served = turn.now.duration_since(gone.since);
        let stable = gone.phase == Phase::Serving && served >= STABLE;
        self.crashes += 1;
        self.crashes_in_a_row = if stable { 1 } else { self.crashes_in_a_row + 1 };
        let (in_a_row, restart_in) = (self.crashes_in_a_row, self.restart_in());
        turn.act(Action::Crashed { id, exit, in_a_row, restart_in });
    }

    /// `None`: not again.
    fn restart_in(&self) -> Option<Duration> {
        match self.limits.on_crash {
            CrashPolicy::Restart { most_in_a_row } if self.crashes_in_a_row <= most_in_a_row => {
                Some(back_off(self.crashes_in_a_row))
            }
            _ => None,
        }
    }

    /// Nobody serves and nobody is on the way. `asked`: a reload waits for an answer.
    fn replace(
        &mut self,
        turn: &mut Turn,
        lost: GenerationId,
        exit: Exit,
        (asked, why): (bool, Why),
    ) {
        let tried = match self.state {
            State::Recovering(recovery) => Some(recovery.why),
            _ => None,
        };
        // Another configuration is another chance.
        let at_once = asked || (why == Why::LastGood && tried == Some(Why::Recovery));
        match self.restart_in() {
            // HAProxy's own status is what the container ends with; sessions of older generations
            // are ended, because nobody is left to serve and the restart policy should act soon.
            None => self.end(turn, exit.status()),
            Some(wait) if wait.is_zero() || at_once => self.recover(turn, lost, asked, why),
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
        match (self.state, stop) {
            // A second one of any kind means: now.
            (State::Stopping(_), _) => self.fleet.end_all(turn, self.limits.stop_grace()),
            (State::Stopped, _) => {}
            (_, Stop::Now) => self.end(turn, 0),
            (_, Stop::Graceful) => {
                self.begin_stopping(turn, 0);
                let rest = self.limits.reserve() + self.limits.stop_grace();
                self.fleet.drain_all(turn, turn.now + self.limits.stop.saturating_sub(rest));
                self.give_back_if_empty(turn);
            }
        }
    }

    /// Stops now, with this status.
    fn end(&mut self, turn: &mut Turn, status: u8) {
        if !matches!(self.state, State::Stopping(_) | State::Stopped) {
            self.begin_stopping(turn, status);
        }
        self.fleet.end_all(turn, self.limits.stop_grace());
        self.give_back_if_empty(turn);
    }

    fn begin_stopping(&mut self, turn: &mut Turn, status: u8) {
        if let State::Reloading(Reload { step, next, .. }) = self.state
            && step.is_guarded()
        {
            turn.act(Action::LowerGuard(next));
        }
        self.refuse_reloads(turn);
        let give_up = self.limits.stop.saturating_sub(self.limits.reserve() / 2);
        self.state = State::Stopping(Stopping { give_up_at: turn.now + give_up, status });
        self.stop_deadline = Some(turn.now + self.limits.stop);
        turn.act(Action::StopIntercepting);
        turn.act(Action::CloseKeeper);
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
            State::Reloading(Reload { next, again, .. }) => (Some(next), again),
            State::Recovering(Recovery { step, asked, again, .. }) => match step {
                RecoveryStep::Starting(next) if asked => (Some(next), again),
                _ => (None, again),
            },
            State::Starting { again } => (None, again),
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
                    ReloadStep::HandingOver { .. } => {
                        self.handed_over(turn, next, Sharing::Enough);
                    }
                    ReloadStep::Settling { .. } => self.settled(turn, next),
                    ReloadStep::Closing { .. } => self.listeners_gone(turn, next),
                    ReloadStep::Releasing { .. } => self.guard_done(turn, next),
                }
            }
            State::Recovering(Recovery {
                step: RecoveryStep::Waiting { until },
                lost,
                why,
                ..
            }) if until <= turn.now => {
                self.recover(turn, lost, false, why);
            }
            State::Stopping(Stopping { give_up_at, status }) if give_up_at <= turn.now => {
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

fn back_off(crashes_in_a_row: u32) -> Duration {
    match crashes_in_a_row {
        0 | 1 => Duration::ZERO,
        n => BACK_OFF_FIRST.saturating_mul(1 << (n - 2).min(10)).min(BACK_OFF_MOST),
    }
}

#[cfg(test)]
mod tests;
