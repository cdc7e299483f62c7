//! Applies steps in order and remembers how to take each one back, newest first.
//!
//! There is no `Drop` that touches the kernel: it could not report. Whoever holds an `Applied`
//! rolls it back on every way out; what a kill leaves behind is the sweep's.

use std::fmt;

use anyhow::Result;

use super::plan::{Step, Undo};

/// What applies a step to the kernel.
#[expect(
    async_fn_in_trait,
    reason = "one thread: nobody needs these futures to be Send"
)]
pub trait Kernel {
    /// `None`: it was so already, or goes with something else; there is nothing to take back.
    async fn apply(&mut self, step: &Step) -> Result<Option<Undo>>;

    /// Taking back what is gone already is not an error.
    async fn undo(&mut self, undo: &Undo) -> Result<()>;
}

/// One thing that could not be taken back, and the command by which a person would.
#[derive(Debug)]
pub struct Failure {
    pub undo: Undo,
    pub error: anyhow::Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:#}", self.undo, self.error)
    }
}

/// The stack of what is in force.
#[derive(Debug, Default)]
#[must_use = "applied steps stay in the kernel until rolled back"]
pub struct Applied {
    undos: Vec<Undo>,
}

impl Applied {
    /// Applies all of `steps`, or none: on failure what this call did is rolled back, and the error
    /// names what could not be. `&mut self`: dropped half-way, it still knows what was done.
    pub async fn apply<K: Kernel>(&mut self, kernel: &mut K, steps: &[Step]) -> Result<()> {
        let before = self.undos.len();
        for step in steps {
            match kernel.apply(step).await {
                Ok(undo) => self.undos.extend(undo),
                Err(error) => {
                    let error = error.context(step.to_string());
                    let failures = self.roll_back_to(kernel, before).await;
                    return Err(with_failures(&error, &failures));
                }
            }
        }
        Ok(())
    }

    /// Goes on past failures; what failed stays on the stack.
    pub async fn roll_back<K: Kernel>(&mut self, kernel: &mut K) -> Vec<Failure> {
        self.roll_back_to(kernel, 0).await
    }

    async fn roll_back_to<K: Kernel>(&mut self, kernel: &mut K, floor: usize) -> Vec<Failure> {
        let mut failures = Vec::new();
        // An index instead of pop(): dropped half-way, nothing that is still in force is forgotten.
        for at in (floor..self.undos.len()).rev() {
            match kernel.undo(&self.undos[at]).await {
                Ok(()) => drop(self.undos.remove(at)),
                Err(error) => failures.push(Failure {
                    undo: self.undos[at].clone(),
                    error,
                }),
            }
        }
        failures
    }

    /// Oldest first.
    #[must_use]
    pub fn undos(&self) -> &[Undo] {
        &self.undos
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.undos.is_empty()
    }
}

fn with_failures(error: &anyhow::Error, failures: &[Failure]) -> anyhow::Error {
    failures
        .iter()
        .fold(anyhow::anyhow!("{error:#}"), |error, failure| {
            anyhow::anyhow!("{error:#}; and could not undo: {failure}")
        })
}
