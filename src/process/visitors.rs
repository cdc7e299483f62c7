//! Acts: serves the peers of a socket side by side, and never more than so many.
//!
//! Whoever comes and says nothing holds up nobody: when all places are taken, the one that has been
//! silent for longest has to leave. So neither a crowd nor its descriptors keep a peer who knows
//! what it wants from being served at once.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};

use super::limits::Refused;
use super::private;

/// The kernel's queue is served in order: it shall not be long when strangers fill it.
const MOST_WAITING: i32 = 8;
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Listens with a short queue: whoever finds it full waits in `connect`, and gets in by turns.
pub fn open(path: &Path) -> io::Result<UnixListener> {
    let listener = private::listen(path)?;
    rustix::net::listen(&listener, MOST_WAITING)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// The next peer of a listener. `whose`: a connection of what kind, for the log.
pub async fn accepted<S, A>(whose: &str, accept: impl AsyncFn() -> io::Result<(S, A)>) -> S {
    loop {
        match accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                // Out of descriptors, most likely; trying again at once would spin.
                let error = Refused(error);
                tracing::warn!(%error, "could not accept a connection {whose}");
                tokio::time::sleep(TRY_AGAIN).await;
            }
        }
    }
}

/// Why this peer is not served, unless it is our own user.
pub fn refusal(stream: &UnixStream) -> Result<Option<String>> {
    let peer = stream.peer_cred().context("ask who the peer is")?.uid();
    let own = rustix::process::geteuid().as_raw();
    let stranger = peer != own;
    Ok(stranger.then(|| format!("only user {own} is served here, not user {peer}")))
}

/// Whether a peer has said what it wants.
#[derive(Clone, Debug, Default)]
pub struct Heard(Rc<Cell<bool>>);

impl Heard {
    pub fn note(&self) {
        self.0.set(true);
    }

    #[must_use]
    pub fn is_noted(&self) -> bool {
        self.0.get()
    }
}

#[derive(Debug)]
pub struct Visitors {
    most: usize,
    tasks: JoinSet<()>,
    silent: VecDeque<(AbortHandle, Heard)>,
}

impl Visitors {
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, tasks: JoinSet::new(), silent: VecDeque::new() }
    }

    /// Waits only while all places are taken by peers who have said what they want.
    pub async fn admit<F>(&mut self, serve: impl FnOnce(Heard) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        // One that panicked has said so.
        while self.tasks.try_join_next().is_some() {}
        self.silent.retain(|(task, heard)| !task.is_finished() && !heard.is_noted());
        while self.tasks.len() >= self.most {
            if let Some((task, _)) = self.silent.pop_front() {
                task.abort();
            }
            let _ = self.tasks.join_next().await;
            self.silent.retain(|(_, heard)| !heard.is_noted());
        }
        let heard = Heard::default();
        let task = self.tasks.spawn_local(serve(heard.clone()));
        self.silent.push_back((task, heard));
        // What it says may be there already: it is heard before the next one comes.
        tokio::task::yield_now().await;
    }
}

impl Visitors {
    /// Waits until the last one has been served.
    pub async fn leave(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::future;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn the_longest_silent_one_makes_room_and_nobody_who_was_heard_does() {
        let places = async {
            let mut visitors = Visitors::new(2);
            let served = Rc::new(Cell::new(0));
            let heard = Rc::clone(&served);
            visitors
                .admit(async move |visitor: Heard| {
                    visitor.note();
                    tokio::task::yield_now().await;
                    heard.set(heard.get() + 1);
                })
                .await;
            for _ in 0..100 {
                visitors.admit(|_| future::pending()).await;
                tokio::task::yield_now().await;
            }
            assert!(visitors.tasks.len() <= 2);
            assert_eq!(served.get(), 1);
        };
        tokio::task::LocalSet::new().run_until(places).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn while_all_were_heard_the_next_one_waits() {
        let places = async {
            let mut visitors = Visitors::new(1);
            visitors
                .admit(async |visitor: Heard| {
                    visitor.note();
                    future::pending::<()>().await;
                })
                .await;
            tokio::task::yield_now().await;
            let next = visitors.admit(|_| future::pending());
            let waits = tokio::time::timeout(std::time::Duration::from_millis(20), next).await;
            assert!(waits.is_err());
        };
        tokio::task::LocalSet::new().run_until(places).await;
    }
}
