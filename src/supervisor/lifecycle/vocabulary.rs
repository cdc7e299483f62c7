//! The words between the lifecycle and the shell. Values only.

use std::time::{Duration, Instant};

use crate::haproxy::generation::GenerationId;
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
    /// From ready to handed over; then the old generation drains even so.
    pub hand_over: Duration,
    /// What a guard may be up for, and what may then pass until everything held is let through.
    pub guard: Duration,
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
    #[must_use]
    pub fn reserve(&self) -> Duration {
        (self.stop / 5).min(Duration::from_secs(10))
    }

    /// Between TERM and KILL while stopping; short where the deadline is short.
    #[must_use]
    pub fn stop_grace(&self) -> Duration {
        self.grace.min(self.stop / 10)
    }
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
    /// What the new generation takes over from the old one has been taken over.
    HandedOver(GenerationId, Sharing),
    /// A guard is up and nothing waits any more at the listeners that are to go.
    Settled(GenerationId),
    /// The listeners that were to go are gone.
    ListenersGone(GenerationId),
    /// What a guard held has been let through.
    GuardDone(GenerationId),
    Exited(GenerationId, Exit),
    ReloadWanted,
    PauseWanted,
    ResumeWanted,
    StopWanted(Stop),
    /// Something that was asked for could not be set up on the host: end with this status.
    HostFailed {
        status: u8,
    },
    /// `wake_at` has come.
    Tick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Start,
    Reload,
    Recovery,
    /// With the configuration of the generation that was ready last: the one that is there now
    /// does not start.
    LastGood,
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
    Intercept,
    StopIntercepting,
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
