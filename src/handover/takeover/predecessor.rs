//! Acts: one whom we relieve, whatever kind it is of.

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::hapilot::{Hapilot, Retired};
use super::plain::Plain;
use super::protocol::Hello;
use super::separate::Separate;
use crate::listeners::fetch::Listener;

/// How its listeners come to us, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// Another hapilot handed them over.
    Hapilot,
    /// HAProxy itself did, over a `stats socket` with `expose-fd listeners`.
    StatsSocket,
    /// They were duplicated with `pidfd_getfd(2)`.
    PidfdGetfd,
    /// They were not to be had: both listen, on sockets of their own.
    Separate,
}

impl Rung {
    pub const ALL: [Self; 4] = [Self::Hapilot, Self::StatsSocket, Self::PidfdGetfd, Self::Separate];

    /// As it is in receipts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hapilot => "hapilot",
            Self::StatsSocket => "stats-socket",
            Self::PidfdGetfd => "pidfd-getfd",
            Self::Separate => "separate",
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hapilot => "its hapilot's socket",
            Self::StatsSocket => "its stats socket",
            Self::PidfdGetfd => "pidfd_getfd",
            Self::Separate => "separate sockets",
        })
    }
}

/// What becomes of one that was told to let go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It lets go, with so many sessions to finish if that is known.
    Draining { sessions: Option<u64> },
    /// It did not hear us, or said no: it may serve on beside us.
    Deaf { reason: String },
    /// It does not hold still for us any more: what it listens on, and what it serves, may have
    /// changed since.
    LetDown { reason: String },
    /// It is gone, with this status if that is known.
    Gone { status: Option<u8> },
    /// It is gone without a last word: it was killed.
    Died,
}

#[derive(Debug)]
pub enum Predecessor {
    Hapilot { hapilot: Box<Hapilot>, paused: bool },
    Plain(Box<Plain>),
}

impl Predecessor {
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Hapilot { hapilot, .. } => hapilot.name(),
            Self::Plain(plain) => plain.name(),
        }
    }

    #[must_use]
    pub fn rung(&self) -> Rung {
        match self {
            // Whoever waited at a paused listener is refused already, and a paused one that is
            // handed over never accepts again.
            Self::Hapilot { paused: true, .. } => Rung::Separate,
            Self::Hapilot { .. } => Rung::Hapilot,
            Self::Plain(plain) => plain.rung(),
        }
    }

    #[must_use]
    pub fn hello(&self) -> Option<&Hello> {
        match self {
            Self::Hapilot { hapilot, .. } => Some(&hapilot.hello),
            Self::Plain(_) => None,
        }
    }

    /// Where its HAProxy can be asked what it knows, if it can.
    #[must_use]
    pub fn runtime_socket(&self) -> Option<PathBuf> {
        match self {
            Self::Hapilot { hapilot, .. } => hapilot.runtime_socket(),
            // Its own may be read-only, or another user's.
            Self::Plain(_) => None,
        }
    }

    /// Duplicates of what it listens on; it serves on with them.
    pub async fn listeners(&mut self) -> Result<Vec<Listener>> {
        match self {
            Self::Hapilot { paused: true, .. } => Ok(Vec::new()),
            Self::Hapilot { hapilot, .. } => hapilot.listeners().await,
            Self::Plain(plain) => Ok(plain.listeners().await),
        }
    }

    /// Told why it does not wait for us any more, should that come before it is relieved.
    pub fn let_down(&mut self) -> Option<oneshot::Receiver<String>> {
        match self {
            Self::Hapilot { hapilot, .. } => hapilot.let_down(),
            Self::Plain(_) => None,
        }
    }

    /// Why by no better rung, and what could not be found out.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        match self {
            Self::Hapilot { .. } => &[],
            Self::Plain(plain) => plain.notes(),
        }
    }

    /// What it listens on and did not hand over.
    #[must_use]
    pub fn separate(&self) -> Separate {
        match self {
            Self::Hapilot { .. } => Separate::default(),
            Self::Plain(plain) => plain.separate(),
        }
    }

    /// How many sessions it has, for which we may need a right that we give away once we serve.
    pub fn count_sessions(&mut self) {
        match self {
            // It says so itself.
            Self::Hapilot { .. } => {}
            Self::Plain(plain) => plain.count_sessions(),
        }
    }

    /// Whether it can free its ports without harm to anybody else.
    #[must_use]
    pub fn may_pause(&self) -> bool {
        match self {
            Self::Hapilot { .. } => false,
            Self::Plain(plain) => plain.may_pause(),
        }
    }

    /// Frees its ports; `spare` takes it back.
    pub fn pause(&mut self) -> Result<()> {
        match self {
            Self::Hapilot { .. } => Ok(()),
            Self::Plain(plain) => plain.pause(),
        }
    }

    /// Tells it to let go, and comes back when it is gone.
    pub async fn relieve(self, tell: impl Fn(Told)) {
        match self {
            Self::Hapilot { mut hapilot, .. } => {
                let status = match hapilot.retire().await {
                    Ok(Retired::Drains { sessions }) => {
                        tell(Told::Draining { sessions });
                        hapilot.ended(|sessions| tell(Told::Draining { sessions })).await
                    }
                    Ok(Retired::LetDown { reason }) if hapilot.is_doubtful => {
                        return tell(Told::Deaf { reason });
                    }
                    Ok(Retired::LetDown { reason }) => return tell(Told::LetDown { reason }),
                    Ok(Retired::Gone) => None,
                    Err(error) => return tell(Told::Deaf { reason: format!("{error:#}") }),
                };
                if status.is_none() {
                    hapilot.dead().await;
                }
                tell(status.map_or(Told::Died, |status| Told::Gone { status: Some(status) }));
            }
            Self::Plain(plain) => plain.relieve(tell).await,
        }
    }

    /// Leaves it as it was before we came.
    pub fn spare(self) {
        match self {
            // Our connection ends with the value, and with it what it held still for.
            Self::Hapilot { .. } => {}
            Self::Plain(plain) => plain.spare(),
        }
    }
}
