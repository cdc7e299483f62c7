//! Acts: keeps new connections from harm while listening sockets change hands.
//!
//! A guard is raised only when the next generation is ready, and lowered the moment that the old
//! one's listeners are gone (`wait`). What it could not take back, or never came to, is among the
//! debts of its site; and when hapilot is killed the kernel lets go of it: a queue that nobody reads is bypassed, the rule that drops
//! expires, and the sysctl harms nobody until the sweep restores it.

mod drop;
mod hold;
mod migrate;
mod queue;
pub mod queued;
pub mod wait;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use self::drop::Dropping;
use self::hold::{Held, Hold};
use self::migrate::Migrate;
use super::strategy::Kind;
use crate::host::barrier::{Barrier, Site};

pub use self::migrate::migrates;

/// Clients send a SYN again after a second: whoever was held or dropped shall get through then. And
/// a rule that expires by whole seconds shall do so within two.
const SYN_LIMIT: Duration = Duration::from_millis(800);
const MIGRATE_LIMIT: Duration = Duration::from_millis(2500);

#[derive(Debug)]
enum Means {
    Migrate(Migrate),
    Hold(Hold),
    Drop(Dropping),
}

/// A guard that is up.
#[derive(Debug)]
#[must_use]
pub struct Guard {
    kind: Kind,
    raised_at: Instant,
    ports: BTreeSet<u16>,
    means: Means,
}

/// What it came to, once it is down.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub window: Duration,
    /// SYNs that waited, and SYNs that have to be sent again.
    pub held: u64,
    pub dropped: u64,
    pub failures: Vec<String>,
}

/// A guard that is down, but for what is still to be let through.
#[derive(Debug)]
#[must_use]
pub struct Lowered {
    outcome: Outcome,
    ports: BTreeSet<u16>,
    raised_at: Instant,
    held: Option<Held>,
    barrier: Option<Barrier>,
}

impl Guard {
    pub async fn raise(kind: Kind, site: &Site, ports: &BTreeSet<u16>) -> Result<Self> {
        let raised_at = Instant::now();
        let means = match kind {
            Kind::Migrate => Migrate::raise(site).await.map(Means::Migrate),
            Kind::Hold => Hold::raise(site, ports).await.map(Means::Hold),
            Kind::Drop => Dropping::raise(site, ports).await.map(Means::Drop),
        };
        let means = means.with_context(|| format!("raise the guard {kind}"))?;
        Ok(Self { kind, raised_at, ports: ports.clone(), means })
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// When it must be down, whatever the old generation does.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.raised_at
            + match self.kind {
                Kind::Migrate => MIGRATE_LIMIT,
                Kind::Hold | Kind::Drop => SYN_LIMIT,
            }
    }

    /// Says, as long as it is asked, whether no more can be held.
    #[must_use]
    pub fn fullness(&self) -> Box<dyn Fn() -> bool> {
        match &self.means {
            Means::Hold(hold) => hold.fullness(),
            _ => Box::new(|| false),
        }
    }

    /// From here on nothing more is held or dropped.
    pub async fn lower(self) -> Lowered {
        let (answer, barrier, held) = match self.means {
            Means::Migrate(migrate) => (migrate.lower().await, None, None),
            Means::Hold(means) => {
                let (answer, barrier, packets) = means.open().await;
                (answer, Some(barrier), Some(packets))
            }
            Means::Drop(dropping) => {
                let (answer, barrier) = dropping.open().await;
                (answer, Some(barrier), None)
            }
        };
        let mut outcome = Outcome { window: self.raised_at.elapsed(), ..Outcome::default() };
        outcome.note(answer);
        Lowered { outcome, ports: self.ports, raised_at: self.raised_at, held, barrier }
    }
}

impl Lowered {
    /// Lets through what was held, no faster than the listeners take it, and tidies up.
    pub async fn finish(self) -> Outcome {
        let mut outcome = self.outcome;
        if let Some(held) = self.held {
            outcome.held = outcome.note(held.release(&self.ports).await);
            outcome.window = self.raised_at.elapsed();
        }
        if let Some(mut barrier) = self.barrier {
            outcome.dropped = outcome.note(barrier.dropped().await);
            outcome.note(barrier.lower().await);
        }
        outcome
    }
}

impl Outcome {
    fn note<T: Default>(&mut self, answer: Result<T>) -> T {
        answer.unwrap_or_else(|error| {
            self.failures.push(format!("{error:#}"));
            T::default()
        })
    }
}
