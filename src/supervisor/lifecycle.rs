//! Decides: what happens next. The only place that does.
//!
//! `Lifecycle::on(now, event)` answers with actions for the shell in `run.rs`; nothing in here
//! waits, reads a clock, or touches a process. Time comes in as `now`, deadlines go out through
//! `wake_at`. The table of states and events is in `docs/architecture.md`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::haproxy::generation::GenerationId;
use crate::process::exit::Exit;

/// A generation that served this long before it died did not die "in a row" with the last one.
const STABLE: Duration = Duration::from_secs(1);
/// The first restart is at once; the second crash in a row waits this long, then twice as long.
const BACK_OFF_FIRST: Duration = Duration::from_millis(500);
const BACK_OFF_MOST: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Stop accepting, let sessions finish.
    Graceful,
    /// End them now.
    Now,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashPolicy {
    Restart { most_in_a_row: u32 },
    Exit,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From launch to ready.
    pub ready: Duration,
    /// From SIGTERM to exit, the tear-down included.
    pub stop: Duration,
    /// What a replaced generation may take to finish its sessions.
    pub drain: Duration,
    /// Between the signal that asks and the one that does not.
    pub grace: Duration,
    pub max_generations: usize,
    pub on_crash: CrashPolicy,
}

impl Limits {
    /// The end of the stop deadline that is kept for the tear-down.
    fn reserve(&self) -> Duration {
        (self.stop / 5).min(Duration::from_secs(10))
    }

    /// Between TERM and KILL while stopping; short where the deadline is short.
    fn stop_grace(&self) -> Duration {
        self.grace.min(self.stop / 10)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The generation's own runtime socket answered with its own PID.
    Ready(GenerationId),
    /// What the new generation takes over from the old one has been taken over.
    HandedOver(GenerationId),
    Exited(GenerationId, Exit),
    ReloadWanted,
    PauseWanted,
    ResumeWanted,
    StopWanted(Stop),
    /// `wake_at` has come.
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Start,
    Reload,
    Recovery,
}

/// Why a reload was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Died(Exit),
    NotReady,
    Paused,
    Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a generation; `from` is the one whose listeners it inherits.
    Launch {
        id: GenerationId,
        from: Option<GenerationId>,
        why: Why,
    },
    /// Take over what the new generation does not inherit by itself; answer with `HandedOver`.
    HandOver {
        from: GenerationId,
        to: GenerationId,
    },
    /// SIGUSR1: no new connections, finish the sessions.
    Drain(GenerationId),
    /// SIGTERM: end the sessions.
    Terminate(GenerationId),
    /// SIGKILL.
    Kill(GenerationId),
    Pause(GenerationId),
    Resume(GenerationId),
    Intercept,
    StopIntercepting,
    ReloadTaken {
        from: GenerationId,
        to: GenerationId,
    },
    /// `id` is the generation that was tried; without it none was launched.
    ReloadRefused {
        id: Option<GenerationId>,
        why: Refusal,
    },
    Crashed {
        id: GenerationId,
        exit: Exit,
        in_a_row: u32,
        restart_in: Option<Duration>,
    },
    /// Nothing is alive any more: give the host back, then exit with this status.
    TearDown {
        status: u8,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Serving,
    Draining,
}

#[derive(Clone, Copy, Debug)]
struct Generation {
    phase: Phase,
    since: Instant,
    fate: Fate,
}

/// What happens to a generation when its time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    None,
    TerminateAt(Instant),
    KillAt(Instant),
    Killed,
}

impl Fate {
    fn at(self) -> Option<Instant> {
        match self {
            Self::TerminateAt(at) | Self::KillAt(at) => Some(at),
            Self::None | Self::Killed => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting {
        again: bool,
    },
    Serving(GenerationId),
    /// `again`: one more reload was asked for meanwhile.
    Reloading {
        serving: GenerationId,
        next: GenerationId,
        step: ReloadStep,
        again: bool,
    },
    Recovering(Recovery),
    /// `status` is what the container ends with.
    Stopping {
        deadline: Instant,
        status: u8,
    },
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReloadStep {
    Starting,
    HandingOver,
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecoveryStep {
    Waiting { until: Instant },
    Starting(GenerationId),
}

/// The name of the state, as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateName {
    Starting,
    Serving,
    Reloading,
    Recovering,
    Stopping,
    Stopped,
}

impl StateName {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Reloading => "reloading",
            Self::Recovering => "recovering",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

#[derive(Debug)]
pub struct Lifecycle {
    limits: Limits,
    state: State,
    since: Instant,
    generations: BTreeMap<GenerationId, Generation>,
    newest: GenerationId,
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
        let id = GenerationId::FIRST;
        let mut lifecycle = Self {
            limits,
            state: State::Starting { again: false },
            since: now,
            generations: BTreeMap::new(),
            newest: id,
            crashes: 0,
            crashes_in_a_row: 0,
            stop_deadline: None,
            pause_wanted: false,
            paused: false,
        };
        lifecycle.generations.insert(id, lifecycle.newborn(now));
        (
            lifecycle,
            vec![Action::Launch {
                id,
                from: None,
                why: Why::Start,
            }],
        )
    }

    #[must_use]
    pub fn state(&self) -> StateName {
        match self.state {
            State::Starting { .. } => StateName::Starting,
            State::Serving(_) => StateName::Serving,
            State::Reloading { .. } => StateName::Reloading,
            State::Recovering(_) => StateName::Recovering,
            State::Stopping { .. } => StateName::Stopping,
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
            State::Serving(id) | State::Reloading { serving: id, .. } => Some(id),
            _ => None,
        }
    }

    /// Every generation that is alive: its phase, since when, and when it will be ended.
    pub fn generations(
        &self,
    ) -> impl Iterator<Item = (GenerationId, Phase, Instant, Option<Instant>)> + '_ {
        self.generations
            .iter()
            .map(|(id, g)| (*id, g.phase, g.since, g.fate.at()))
    }

    /// When `Tick` is due; `None` while only events can change anything.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let own = match self.state {
            State::Recovering(Recovery {
                step: RecoveryStep::Waiting { until },
                ..
            }) => Some(until),
            State::Stopping { deadline, .. } => Some(self.give_up_at(deadline)),
            _ => None,
        };
        self.generations
            .values()
            .filter_map(|g| g.fate.at())
            .chain(own)
            .min()
    }

    pub fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let before = self.state();
        let mut actions = Vec::new();
        match event {
            Event::Ready(id) => self.ready(now, id, &mut actions),
            Event::HandedOver(id) => self.handed_over(now, id, &mut actions),
            Event::Exited(id, exit) => self.exited(now, id, exit, &mut actions),
            Event::ReloadWanted => self.reload_wanted(now, &mut actions),
            Event::PauseWanted => self.pause(true, &mut actions),
            Event::ResumeWanted => self.pause(false, &mut actions),
            Event::StopWanted(stop) => self.stop_wanted(now, stop, &mut actions),
            Event::Tick => self.tick(now, &mut actions),
        }
        if self.state() != before {
            self.since = now;
        }
        actions
    }

    fn newborn(&self, now: Instant) -> Generation {
        let fate = Fate::KillAt(now + self.limits.ready);
        Generation {
            phase: Phase::Starting,
            since: now,
            fate,
        }
    }

    fn launch(
        &mut self,
        now: Instant,
        from: Option<GenerationId>,
        why: Why,
        actions: &mut Vec<Action>,
    ) -> GenerationId {
        self.make_room(now, actions);
        let id = self.newest.next();
        self.newest = id;
        self.generations.insert(id, self.newborn(now));
        actions.push(Action::Launch { id, from, why });
        id
    }

    /// Ends the oldest draining generations, so that one more stays within the limit.
    fn make_room(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let ending = |g: &Generation| !matches!(g.fate, Fate::None | Fate::TerminateAt(_));
        let staying = self.generations.values().filter(|g| !ending(g)).count();
        let surplus = (staying + 1).saturating_sub(self.limits.max_generations);
        let oldest: Vec<_> = self
            .generations
            .iter()
            .filter(|(_, g)| g.phase == Phase::Draining && !ending(g))
            .map(|(id, _)| *id)
            .take(surplus)
            .collect();
        for id in oldest {
            self.terminate(now, id, actions);
        }
    }

    fn serve(&mut self, now: Instant, id: GenerationId) {
        if let Some(generation) = self.generations.get_mut(&id) {
            *generation = Generation {
                phase: Phase::Serving,
                since: now,
                fate: Fate::None,
            };
        }
    }

    fn drain(&mut self, now: Instant, id: GenerationId, until: Instant, actions: &mut Vec<Action>) {
        let Some(generation) = self.generations.get_mut(&id) else {
            return;
        };
        *generation = Generation {
            phase: Phase::Draining,
            since: now,
            fate: Fate::TerminateAt(until),
        };
        actions.push(Action::Drain(id));
    }

    fn terminate(&mut self, now: Instant, id: GenerationId, actions: &mut Vec<Action>) {
        let grace = match self.state {
            State::Stopping { .. } => self.limits.stop_grace(),
            _ => self.limits.grace,
        };
        let Some(generation) = self.generations.get_mut(&id) else {
            return;
        };
        generation.fate = Fate::KillAt(now + grace);
        actions.push(Action::Terminate(id));
    }

    fn kill(&mut self, id: GenerationId, actions: &mut Vec<Action>) {
        let Some(generation) = self.generations.get_mut(&id) else {
            return;
        };
        if generation.fate != Fate::Killed {
            generation.fate = Fate::Killed;
            actions.push(Action::Kill(id));
        }
    }

    fn ready(&mut self, now: Instant, id: GenerationId, actions: &mut Vec<Action>) {
        if self
            .generations
            .get(&id)
            .is_none_or(|g| g.fate == Fate::Killed)
        {
            return;
        }
        match self.state {
            State::Starting { again } => {
                self.serve(now, id);
                actions.push(Action::Intercept);
                self.settle(now, id, again, actions);
            }
            State::Reloading {
                serving,
                next,
                step: ReloadStep::Starting,
                again,
            } if next == id => {
                // It accepts from now on: being slow to be handed things is no reason to die, and
                // a stop must let it finish what it accepted.
                self.serve(now, id);
                let step = ReloadStep::HandingOver;
                self.state = State::Reloading {
                    serving,
                    next,
                    step,
                    again,
                };
                actions.push(Action::HandOver {
                    from: serving,
                    to: id,
                });
            }
            State::Recovering(recovery) if recovery.step == RecoveryStep::Starting(id) => {
                self.serve(now, id);
                if recovery.asked {
                    actions.push(Action::ReloadTaken {
                        from: recovery.lost,
                        to: id,
                    });
                }
                self.settle(now, id, recovery.again, actions);
            }
            _ => {}
        }
    }

    fn handed_over(&mut self, now: Instant, id: GenerationId, actions: &mut Vec<Action>) {
        let State::Reloading {
            serving,
            next,
            step: ReloadStep::HandingOver,
            again,
        } = self.state
        else {
            return;
        };
        if next != id {
            return;
        }
        self.drain(now, serving, now + self.limits.drain, actions);
        self.serve(now, next);
        actions.push(Action::ReloadTaken {
            from: serving,
            to: next,
        });
        self.settle(now, next, again, actions);
    }

    /// `id` serves and nothing is under way: catch up with what was asked for meanwhile.
    fn settle(&mut self, now: Instant, id: GenerationId, again: bool, actions: &mut Vec<Action>) {
        self.state = State::Serving(id);
        self.paused = false;
        if again {
            self.reload(now, id, actions);
        } else if self.pause_wanted {
            self.paused = true;
            actions.push(Action::Pause(id));
        }
    }

    fn reload(&mut self, now: Instant, serving: GenerationId, actions: &mut Vec<Action>) {
        let next = self.launch(now, Some(serving), Why::Reload, actions);
        self.state = State::Reloading {
            serving,
            next,
            step: ReloadStep::Starting,
            again: false,
        };
    }

    fn reload_wanted(&mut self, now: Instant, actions: &mut Vec<Action>) {
        match &mut self.state {
            // A paused listener that is handed over never accepts again in its new owner.
            State::Serving(_) if self.paused => {
                actions.push(Action::ReloadRefused {
                    id: None,
                    why: Refusal::Paused,
                });
            }
            State::Serving(serving) => {
                let serving = *serving;
                self.reload(now, serving, actions);
            }
            // The operator may just have mended what made HAProxy die: no reason to wait longer.
            State::Recovering(Recovery {
                step: RecoveryStep::Waiting { .. },
                lost,
                ..
            }) => {
                let lost = *lost;
                self.recover(now, lost, true, actions);
            }
            State::Starting { again }
            | State::Reloading { again, .. }
            | State::Recovering(Recovery { again, .. }) => *again = true,
            State::Stopping { .. } | State::Stopped => {
                actions.push(Action::ReloadRefused {
                    id: None,
                    why: Refusal::Stopping,
                });
            }
        }
    }

    fn pause(&mut self, wanted: bool, actions: &mut Vec<Action>) {
        self.pause_wanted = wanted;
        // Anything else settles first; `settle` then looks at what is wanted.
        if let State::Serving(id) = self.state
            && self.paused != wanted
        {
            self.paused = wanted;
            actions.push(if wanted {
                Action::Pause(id)
            } else {
                Action::Resume(id)
            });
        }
    }

    fn exited(&mut self, now: Instant, id: GenerationId, exit: Exit, actions: &mut Vec<Action>) {
        let Some(gone) = self.generations.remove(&id) else {
            return;
        };
        match self.state {
            State::Starting { .. } => {
                self.refuse_reloads(actions);
                self.give_back(exit.status(), actions);
            }
            State::Serving(serving) if serving == id => {
                self.count_crash(now, id, exit, gone, actions);
                self.replace(now, id, exit, false, actions);
            }
            State::Reloading {
                serving,
                next,
                step,
                again,
            } if serving == id => {
                self.count_crash(now, id, exit, gone, actions);
                self.serving_died_in_reload(now, (id, next), exit, (step, again), actions);
            }
            State::Reloading {
                serving,
                next,
                again,
                ..
            } if next == id => {
                actions.push(Action::ReloadRefused {
                    id: Some(id),
                    why: refusal(gone, exit),
                });
                self.settle(now, serving, again, actions);
            }
            State::Recovering(recovery) if recovery.step == RecoveryStep::Starting(id) => {
                if recovery.asked {
                    actions.push(Action::ReloadRefused {
                        id: Some(id),
                        why: refusal(gone, exit),
                    });
                    self.state = State::Recovering(Recovery {
                        asked: false,
                        ..recovery
                    });
                }
                self.count_crash(now, id, exit, gone, actions);
                self.replace(now, recovery.lost, exit, recovery.again, actions);
            }
            State::Stopping { status, .. } if self.generations.is_empty() => {
                self.give_back(status, actions);
            }
            _ => {}
        }
    }

    fn serving_died_in_reload(
        &mut self,
        now: Instant,
        (lost, next): (GenerationId, GenerationId),
        exit: Exit,
        (step, again): (ReloadStep, bool),
        actions: &mut Vec<Action>,
    ) {
        if step == ReloadStep::HandingOver {
            // The new one accepts already: it is the replacement.
            actions.push(Action::ReloadTaken {
                from: lost,
                to: next,
            });
            self.settle(now, next, again, actions);
        } else if self.restart_in().is_none() {
            self.stop_after_crash(now, exit, actions);
        } else {
            let step = RecoveryStep::Starting(next);
            self.state = State::Recovering(Recovery {
                step,
                lost,
                asked: true,
                again,
            });
        }
    }

    fn count_crash(
        &mut self,
        now: Instant,
        id: GenerationId,
        exit: Exit,
        gone: Generation,
        actions: &mut Vec<Action>,
    ) {
        let stable = gone.phase == Phase::Serving && now.duration_since(gone.since) >= STABLE;
        self.crashes += 1;
        self.crashes_in_a_row = if stable { 1 } else { self.crashes_in_a_row + 1 };
        let (in_a_row, restart_in) = (self.crashes_in_a_row, self.restart_in());
        actions.push(Action::Crashed {
            id,
            exit,
            in_a_row,
            restart_in,
        });
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
        now: Instant,
        lost: GenerationId,
        exit: Exit,
        asked: bool,
        actions: &mut Vec<Action>,
    ) {
        match self.restart_in() {
            None => self.stop_after_crash(now, exit, actions),
            Some(wait) if wait.is_zero() || asked => self.recover(now, lost, asked, actions),
            Some(wait) => {
                let step = RecoveryStep::Waiting { until: now + wait };
                self.state = State::Recovering(Recovery {
                    step,
                    lost,
                    asked: false,
                    again: false,
                });
            }
        }
    }

    fn recover(
        &mut self,
        now: Instant,
        lost: GenerationId,
        asked: bool,
        actions: &mut Vec<Action>,
    ) {
        let step = RecoveryStep::Starting(self.launch(now, None, Why::Recovery, actions));
        self.state = State::Recovering(Recovery {
            step,
            lost,
            asked,
            again: false,
        });
    }

    /// HAProxy's own status is what the container ends with; sessions of older generations are
    /// ended, because nobody is left to serve and the restart policy should act soon.
    fn stop_after_crash(&mut self, now: Instant, exit: Exit, actions: &mut Vec<Action>) {
        self.begin_stopping(now, exit.status(), actions);
        self.end_all(now, actions);
        self.give_back_if_empty(actions);
    }

    fn begin_stopping(&mut self, now: Instant, status: u8, actions: &mut Vec<Action>) -> Instant {
        self.refuse_reloads(actions);
        let deadline = now + self.limits.stop;
        self.state = State::Stopping { deadline, status };
        self.stop_deadline = Some(deadline);
        actions.push(Action::StopIntercepting);
        deadline
    }

    fn give_back_if_empty(&mut self, actions: &mut Vec<Action>) {
        if let State::Stopping { status, .. } = self.state
            && self.generations.is_empty()
        {
            self.give_back(status, actions);
        }
    }

    fn stop_wanted(&mut self, now: Instant, stop: Stop, actions: &mut Vec<Action>) {
        match self.state {
            State::Stopped => return,
            // A second one of any kind means: now.
            State::Stopping { .. } => return self.end_all(now, actions),
            _ => {}
        }
        let deadline = self.begin_stopping(now, 0, actions);
        match stop {
            Stop::Graceful => self.drain_all(now, deadline, actions),
            Stop::Now => self.end_all(now, actions),
        }
        self.give_back_if_empty(actions);
    }

    /// Whoever waits for the answer to a reload gets it before the stop begins.
    fn refuse_reloads(&self, actions: &mut Vec<Action>) {
        let why = Refusal::Stopping;
        let (trying, again) = match self.state {
            State::Reloading { next, again, .. } => (Some(next), again),
            State::Recovering(Recovery {
                step, asked, again, ..
            }) => match step {
                RecoveryStep::Starting(next) if asked => (Some(next), again),
                _ => (None, again),
            },
            State::Starting { again } => (None, again),
            _ => (None, false),
        };
        if trying.is_some() {
            actions.push(Action::ReloadRefused { id: trying, why });
        }
        if again {
            actions.push(Action::ReloadRefused { id: None, why });
        }
    }

    fn drain_all(&mut self, now: Instant, deadline: Instant, actions: &mut Vec<Action>) {
        let until = deadline - self.limits.reserve() - self.limits.stop_grace();
        let all: Vec<_> = self.generations.iter().map(|(id, g)| (*id, *g)).collect();
        for (id, generation) in all {
            match (generation.phase, generation.fate) {
                // It never served, or only for a moment: nothing to wait for.
                (Phase::Starting, _) => self.kill(id, actions),
                (Phase::Serving, _) => self.drain(now, id, until, actions),
                // Asked already; its own deadline holds where that is the earlier one.
                (Phase::Draining, Fate::TerminateAt(own)) => {
                    if let Some(g) = self.generations.get_mut(&id) {
                        g.fate = Fate::TerminateAt(own.min(until));
                    }
                }
                (Phase::Draining, _) => {}
            }
        }
    }

    fn end_all(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let all: Vec<_> = self.generations.iter().map(|(id, g)| (*id, *g)).collect();
        for (id, generation) in all {
            match (generation.phase, generation.fate) {
                (_, Fate::Killed) => {}
                (Phase::Starting, _) => self.kill(id, actions),
                (_, Fate::KillAt(_)) => {}
                _ => self.terminate(now, id, actions),
            }
        }
    }

    fn tick(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let due: Vec<_> = self
            .generations
            .iter()
            .filter(|(_, g)| g.fate.at().is_some_and(|at| at <= now))
            .map(|(id, g)| (*id, g.fate))
            .collect();
        for (id, fate) in due {
            match fate {
                Fate::TerminateAt(_) => self.terminate(now, id, actions),
                _ => self.kill(id, actions),
            }
        }
        match self.state {
            State::Recovering(Recovery {
                step: RecoveryStep::Waiting { until },
                lost,
                ..
            }) if until <= now => self.recover(now, lost, false, actions),
            // Killed and still not gone: the kernel holds it, and the host must be given back.
            State::Stopping { deadline, status } if self.give_up_at(deadline) <= now => {
                self.generations.clear();
                self.give_back(status, actions);
            }
            _ => {}
        }
    }

    fn give_up_at(&self, deadline: Instant) -> Instant {
        deadline - self.limits.reserve() / 2
    }

    fn give_back(&mut self, status: u8, actions: &mut Vec<Action>) {
        self.state = State::Stopped;
        actions.push(Action::TearDown { status });
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
        n => BACK_OFF_FIRST
            .saturating_mul(1 << (n - 2).min(10))
            .min(BACK_OFF_MOST),
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
