//! Acts: a call that waits for programs, on a thread of its own, while the loop goes on.
//!
//! It waits for its children itself, and the reaper must not take them from it: as long as one such
//! call runs it takes only those whom it knows (`is_busy`). Orphans wait until the call is over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::oneshot;

static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Whether children may have ended that somebody else waits for.
#[must_use]
pub fn is_busy() -> bool {
    CALLS.load(Ordering::SeqCst) > 0
}

struct Busy;

impl Busy {
    fn new() -> Self {
        CALLS.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        CALLS.fetch_sub(1, Ordering::SeqCst);
        // Whoever was left to wait is reaped now.
        let _ = kill(Pid::this(), Signal::SIGCHLD);
    }
}

/// Nobody who waits for it any more does not end the call: it must have a bound of its own.
pub async fn aside<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (answer, answered) = oneshot::channel();
    // Before it has a child.
    let busy = Busy::new();
    thread::Builder::new()
        .name("aside".into())
        .spawn(move || {
            let _busy = busy;
            let _ = answer.send(call());
        })
        .context("start a thread")?;
    answered.await.context("it panicked")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn others_go_on_meanwhile_and_it_is_known_that_it_runs() {
        let (go_on, wait) = mpsc::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answer = runtime.block_on(async {
            let call = aside(move || wait.recv().is_ok());
            let meanwhile = async move {
                assert!(is_busy());
                go_on.send(()).unwrap();
            };
            tokio::join!(call, meanwhile).0
        });
        assert!(answer.unwrap());
    }

    #[test]
    fn a_panic_is_an_error() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let call = aside(|| assert!(std::hint::black_box(false), "on purpose"));
        assert!(runtime.block_on(call).is_err());
    }
}
