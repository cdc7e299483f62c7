//! Acts: what guards have in the kernel, each with its undo from before it is made until it is gone.
//!
//! A guard takes back its own, past failures. What it could not, the end of a stop tries once more,
//! and names what stays. A kill leaves it to the sweep.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::anyhow;

use super::applied::{Failure, Kernel as _};
use super::facade::Owned;
use super::linux::Linux;
use super::step::Undo;
use crate::fault::{self, Point};

/// Shared by all who put something there.
#[derive(Clone, Debug, Default)]
pub struct Debts(Arc<Mutex<Vec<Undo>>>);

impl Debts {
    fn owed(&self) -> MutexGuard<'_, Vec<Undo>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn owe(&self, undos: &[Undo]) {
        let mut owed = self.owed();
        for undo in undos {
            if !owed.contains(undo) {
                owed.push(undo.clone());
            }
        }
    }

    /// They are gone: also those of an earlier guard, since the chain has the same name.
    pub fn paid(&self, undos: &[Undo]) {
        self.owed().retain(|owed| !undos.contains(owed));
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owed().is_empty()
    }

    /// For `hapilot status`.
    #[must_use]
    pub fn owned(&self) -> Vec<Owned> {
        self.owed().iter().map(Owned::from).collect()
    }

    /// All of them, should nobody have been able to pay.
    #[must_use]
    pub fn unpaid(&self, error: &anyhow::Error) -> Vec<Failure> {
        let failed = |undo: &Undo| Failure { undo: undo.clone(), error: anyhow!("{error:#}") };
        self.owed().iter().map(failed).collect()
    }

    /// Past failures, and over by `until`. Answers with all that is still there.
    pub async fn pay(&self, until: Instant) -> Vec<Failure> {
        let mut undos = self.owed().clone();
        if undos.is_empty() {
            return Vec::new();
        }
        undos.sort_by_key(rank);
        let mut kernel = Linux::default();
        kernel.finish_by(until);
        let mut failures: Vec<Failure> = Vec::new();
        for undo in undos {
            let sysctl_stays =
                failures.iter().any(|f| matches!(f.undo, Undo::RestoreMigration { .. }));
            let answer = if sysctl_stays && rank(&undo) == Rank::Note {
                Err(anyhow!("it stays as well, since it tells the sweep of the sysctl"))
            } else {
                match fault::at(Point::LowerBarrier) {
                    Ok(()) => kernel.undo(&undo).await,
                    Err(error) => Err(error.into()),
                }
            };
            match answer {
                Ok(()) => self.paid(&[undo]),
                Err(error) => failures.push(Failure { undo, error }),
            }
        }
        failures
    }
}

/// In which order they are paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Jump,
    Sysctl,
    /// Or the chain that the jump led to.
    Note,
}

fn rank(undo: &Undo) -> Rank {
    match undo {
        Undo::RemoveJump { .. } => Rank::Jump,
        Undo::RestoreMigration { .. } => Rank::Sysctl,
        _ => Rank::Note,
    }
}
