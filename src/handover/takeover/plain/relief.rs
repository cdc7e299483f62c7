//! Acts: the relief of one HAProxy, from finding it to the news that it is gone.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use rustix::process::Signal;

use super::super::predecessor::{Rung, Told};
use super::super::separate::Separate;
use super::borrow::Borrowed;
use super::find::haproxys;
use super::haproxy::{Haproxy, Sockets};
use super::paused;
use crate::host::preflight::RUN_DIRECTORY;
use crate::listeners::compare::Seen;
use crate::listeners::fetch::Listener;
use crate::problem::Problem;
use crate::settings::Predecessors;

/// One that was found, is HAProxy, and is not ours.
#[derive(Debug)]
pub struct Plain {
    haproxy: Haproxy,
    borrowed: Option<Borrowed>,
    /// Of its TCP listeners: whose connections are its sessions.
    ports: BTreeSet<u16>,
    sessions: Option<u64>,
    paused: bool,
}

/// `wanted`: `Auto`, or the PIDs that belong to no hapilot. `hapilots`: PIDs of those that live here
/// and of their children, as far as we see them. Who is left alone is a problem, and not signalled.
#[must_use]
pub fn find(wanted: &Predecessors, hapilots: &[i32]) -> (Vec<Plain>, Vec<Problem>) {
    let (found, problems) = haproxys(wanted, hapilots);
    let plain = |haproxy| Plain {
        haproxy,
        borrowed: None,
        ports: BTreeSet::new(),
        sessions: None,
        paused: false,
    };
    (found.into_iter().map(plain).collect(), problems)
}

impl Plain {
    #[must_use]
    pub fn name(&self) -> String {
        self.haproxy.to_string()
    }

    #[must_use]
    pub fn rung(&self) -> Rung {
        self.borrowed.as_ref().map_or(Rung::Separate, |borrowed| borrowed.rung)
    }

    /// Why by no better rung, and what could not be found out.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        self.borrowed.as_ref().map_or(&[], |borrowed| &borrowed.notes)
    }

    /// Duplicates of what it listens on, as far as they are to be had. It serves on with them.
    pub async fn listeners(&mut self) -> Vec<Listener> {
        let mut borrowed = self.haproxy.borrow().await;
        let listeners = std::mem::take(&mut borrowed.listeners);
        let got = listeners.iter().filter_map(|listener| listener.seen().port());
        let Separate { known, suspected } = &borrowed.separate;
        let left = known.iter().chain(suspected).filter_map(Seen::port);
        self.ports = got.chain(left).collect();
        borrowed.shares = !listeners.is_empty();
        self.borrowed = Some(borrowed);
        listeners
    }

    /// TCP sockets that stay its own and go when it does.
    #[must_use]
    pub fn separate(&self) -> Separate {
        self.borrowed.as_ref().map(|borrowed| borrowed.separate.clone()).unwrap_or_default()
    }

    /// Nothing that it listens on is ours as well, so SIGTTOU harms nobody but itself.
    #[must_use]
    pub fn may_pause(&self) -> bool {
        self.sockets() == Sockets::Separate
    }

    /// Frees its ports, for one that does not share them; `spare` takes it back.
    pub fn pause(&mut self) -> Result<()> {
        self.note_pause()?;
        self.haproxy.leader.signal(Signal::TTOU)?;
        self.paused = true;
        if let Some(borrowed) = &mut self.borrowed {
            let note = "its ports are not shared (noreuseport?): it was paused while ours started";
            borrowed.notes.push(note.to_owned());
        }
        Ok(())
    }

    pub fn count_sessions(&mut self) {
        self.sessions = self.haproxy.sessions(&self.ports);
    }

    /// It is to let go now, and is watched until it is gone.
    pub async fn relieve(self, tell: impl Fn(Told)) {
        let sessions = match (self.sessions, &self.borrowed) {
            (None, Some(borrowed)) => borrowed.sessions().await,
            (counted, _) => counted,
        };
        if self.sockets() == Sockets::Separate
            && let Err(error) = self.note_pause()
        {
            tracing::warn!("{error:#}; were this one killed now, {} would stay", self.haproxy);
        }
        if let Err(error) = self.haproxy.let_go(self.sockets()) {
            return tell(Told::Deaf { reason: format!("{error:#}") });
        }
        paused::strike_out(Path::new(RUN_DIRECTORY), &self.haproxy.leader);
        tell(Told::Draining { sessions });
        match self.haproxy.gone().await {
            Ok(()) => tell(Told::Gone { status: None }),
            Err(error) => tracing::warn!("the end of {} is not watched: {error}", self.haproxy),
        }
    }

    /// It goes on as it did before we came.
    pub fn spare(self) {
        if !self.paused {
            return;
        }
        match self.haproxy.leader.signal(Signal::TTIN) {
            Ok(()) => paused::strike_out(Path::new(RUN_DIRECTORY), &self.haproxy.leader),
            Err(error) => tracing::error!("{} stays paused: {error:#}", self.haproxy),
        }
    }

    fn note_pause(&self) -> Result<()> {
        let Separate { known, suspected } = self.separate();
        let listeners = known.iter().chain(&suspected).map(|seen| seen.inode).collect();
        paused::note(Path::new(RUN_DIRECTORY), &self.haproxy.leader, &listeners)
    }

    fn sockets(&self) -> Sockets {
        match &self.borrowed {
            Some(borrowed) if borrowed.shares => Sockets::Shared,
            _ => Sockets::Separate,
        }
    }
}
