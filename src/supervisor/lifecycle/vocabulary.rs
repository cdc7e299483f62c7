//! The words between the lifecycle and the shell. Values only.

use std::time::{Duration, Instant};

use crate::haproxy::generation::GenerationId;
use crate::logging::LAST_WORDS;
use crate::process::exit::Exit;

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
    /// From launch to ready, for all but the first generation.
    pub ready: Duration,
    /// From ready to handed over; then the old generation drains even so, with a guard unless it is
    /// known that none is needed.
    pub hand_over: Duration,
    /// What a guard may be up for, and what may then pass until everything held is let through.
    pub guard: Duration,
    /// From the news that ports are taken until a generation on them is ready: predecessors are
    /// paused no longer, and the guard has the rest of its time until they listen again.
    pub room: Duration,
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
    /// The end of the stop deadline that is kept for the tear-down. However short the deadline is,
    /// the programs that change the firewall are not faster for it.
    #[must_use]
    pub fn reserve(&self) -> Duration {
        const FAIR: Duration = Duration::from_secs(2);
        const MOST: Duration = Duration::from_secs(10);
        (self.stop / 5).max(FAIR.min(self.stop / 2)).min(MOST)
    }

    /// The end of the stop deadline that is kept for the case that we hang ourselves.
    #[must_use]
    pub fn last_resort(&self) -> Duration {
        self.reserve() / 3
    }

    /// The end of the stop deadline in which nothing is torn down any more: for the last words,
    /// should nobody read them, and for the last resort.
    #[must_use]
    pub fn after_tear_down(&self) -> Duration {
        self.last_resort().max(2 * LAST_WORDS)
    }

    /// What the tear-down has when HAProxy needs all of its own time.
    #[must_use]
    pub fn tear_down(&self) -> Duration {
        self.reserve().saturating_sub(self.after_tear_down())
    }

    /// From the begin of a stop until the sessions that are left are cut.
    #[must_use]
    pub fn sessions(&self) -> Duration {
        self.stop.saturating_sub(self.reserve() + self.stop_grace())
    }

    /// Between TERM and KILL while stopping; short where the deadline is short.
    #[must_use]
    pub fn stop_grace(&self) -> Duration {
        self.grace.min(self.stop / 10)
    }
}

/// Whether somebody is to be relieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Birth {
    Alone,
    Successor,
}

/// Whether listeners of the old generation can go without harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nothing is lost with them.
    Enough,
    /// A guard is needed meanwhile.
    Guarded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The generation's own runtime socket answered with its own PID.
    Ready(GenerationId),
    /// Clients are led to the first generation from wherever they are to be.
    Intercepted,
    /// Its listeners were compared with those of the old one; what else it takes over may take longer.
    Compared(GenerationId, Sharing),
    /// What the new generation takes over from the old one has been taken over.
    HandedOver(GenerationId, Sharing),
    /// A guard is up and nothing waits any more at the listeners that are to go.
    Settled(GenerationId),
    /// The listeners that were to go are gone.
    ListenersGone(GenerationId),
    /// What a guard held has been let through.
    GuardDone(GenerationId),
    Exited(GenerationId, Exit),
    /// The first generation exited because predecessors have its ports, and they can be paused.
    Blocked(GenerationId, Exit),
    /// What making room comes to: a guard is up and nothing waits at the predecessors' listeners.
    RoomSettled,
    /// They do not listen any more.
    RoomFreed,
    /// They listen again.
    RoomReturned,
    /// Those whom we relieve hold still, or there is nobody.
    Found(Birth),
    /// A successor wants us to hold still.
    ReserveWanted,
    /// It is gone, without having relieved us.
    ReserveEnded,
    /// It serves, with our listeners.
    Relieved,
    ReloadWanted,
    PauseWanted,
    ResumeWanted,
    StopWanted(Stop),
    /// A predecessor serves on and does not wait for us any more: end with this status.
    LetDown {
        status: u8,
    },
    /// Something that was asked for could not be set up on the host: end with this status.
    HostFailed {
        status: u8,
    },
    /// Somebody may have removed something of ours from the host.
    HostChanged,
    /// The same, and nobody shall wait for a better moment.
    LookWanted,
    /// What `PutBack` came to.
    Looked {
        found: Condition,
        took: Duration,
    },
    /// `wake_at` has come.
    Tick,
}

/// What a look at the host came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing was missing.
    Whole,
    /// Something was, and is there again.
    Restored,
    /// It is not known, or could not be put back.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Start,
    Reload,
    /// After a crash, with the configuration that is on disk now.
    Recovery,
    /// After a crash, with the configuration of the generation that was ready last.
    LastGood,
}

/// Why a reload was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Died(Exit),
    NotReady,
    Paused,
    /// A successor is taking over.
    Reserved,
    Stopping,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer with `Found`.
    FindPredecessors,
    /// Compare what this one listens on with what the predecessors do; answer with `Compared`, then
    /// with `HandedOver`.
    TakeOver(GenerationId),
    /// Tell the predecessors to let go. From here on there is no way back to them.
    Relieve,
    /// Leave the predecessors as they were.
    Spare,
    /// Guard the ports that this one did not get; answer with `RoomSettled`.
    GuardRoom(GenerationId),
    /// SIGTTOU to those predecessors that share nothing; answer with `RoomFreed`.
    PausePredecessors,
    /// Answer with `RoomReturned`.
    AwaitReturn,
    /// The predecessors have been told.
    TakenOver(GenerationId),
    /// Tell the successor that asked that we hold still, or that we will not.
    Reserved,
    NotReserved,
    /// Start a generation; `from` is the one whose listeners it inherits.
    Launch {
        id: GenerationId,
        from: Option<GenerationId>,
        why: Why,
    },
    /// Compare the listeners and take over what the new generation does not inherit by itself; answer
    /// with `Compared`, then with `HandedOver`.
    HandOver {
        from: GenerationId,
        to: GenerationId,
    },
    /// Stop or drop SYNs while listeners change hands; answer with `Settled`.
    RaiseGuard(GenerationId),
    /// Hold what this one listens on and nothing else.
    Keep(GenerationId),
    /// Answer with `ListenersGone`.
    WatchListeners(GenerationId),
    /// At once; answer with `GuardDone` when what it held is let through.
    LowerGuard(GenerationId),
    /// SIGUSR1: no new connections, finish the sessions.
    Drain(GenerationId),
    /// SIGTERM: end the sessions.
    Terminate(GenerationId),
    /// SIGKILL.
    Kill(GenerationId),
    Pause(GenerationId),
    Resume(GenerationId),
    /// Answer with `Intercepted`, or `HostFailed`.
    Intercept,
    /// Whoever is to close the keeper or to drain waits for it.
    StopIntercepting,
    /// Look whether something of ours is gone from the host, and put it back; answer with `Looked`.
    PutBack,
    /// Tell that somebody removed it as often as this, and that from now on it is put back later.
    Contested {
        times: u32,
    },
    /// Let go of the listeners, before anybody is told to stop accepting.
    CloseKeeper,
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
    /// The replacement of one that died did not come to serve. Nothing crashed.
    NotStarted {
        id: GenerationId,
        exit: Exit,
        in_a_row: u32,
        again_in: Duration,
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

impl Phase {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

/// The name of the state, as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateName {
    Starting,
    TakingOver,
    Serving,
    Reloading,
    Recovering,
    Relieved,
    Stopping,
    Stopped,
}

impl StateName {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::TakingOver => "taking-over",
            Self::Serving => "serving",
            Self::Reloading => "reloading",
            Self::Recovering => "recovering",
            Self::Relieved => "relieved",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// What happened, when, and what follows from it.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) now: Instant,
    pub(super) actions: Vec<Action>,
}

impl Turn {
    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::metrics::{PHASES, STATES};
    use crate::handover::takeover::protocol::{HAS_HAPROXY, LEAVES, SERVES};

    #[test]
    fn whoever_is_below_spells_states_as_they_are_spelled_here() {
        use StateName::{
            Recovering, Relieved, Reloading, Serving, Starting, Stopped, Stopping, TakingOver,
        };
        // Of one that has stopped nobody asks metrics.
        let shown = [Starting, TakingOver, Serving, Reloading, Recovering, Relieved, Stopping];
        assert_eq!(STATES, shown.map(StateName::as_str));
        assert_eq!(PHASES, [Phase::Starting, Phase::Serving, Phase::Draining].map(Phase::as_str));
        assert_eq!(HAS_HAPROXY, [Starting, Serving, Reloading, TakingOver].map(StateName::as_str));
        assert_eq!(SERVES, [Serving, TakingOver, Reloading, Recovering].map(StateName::as_str));
        assert_eq!(LEAVES, [Stopping, Stopped, Relieved].map(StateName::as_str));
    }
}
