//! Acts: tells what a stop still waits for, and what was cut when it could not wait any longer.
//!
//! A HAProxy that drains answers no more on its runtime socket, so its sessions are counted in the
//! kernel's table of sockets. There is a timer only while stopping.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tracing::{info, warn};

use super::deadlines::{Cut, Seconds, told, why_cut};
use super::lifecycle::{Phase, StateName};
use super::run::{Message, Supervisor};
use crate::haproxy::generation::GenerationId;

const EVERY: Duration = Duration::from_secs(10);
/// How long a cut waits for what is told of it.
const COUNT_LIMIT: Duration = Duration::from_millis(300);

impl Supervisor {
    /// At the begin of a stop, and as often as its timer says.
    pub(super) fn tell_of_sessions(&mut self) {
        if self.lifecycle.state() != StateName::Stopping {
            self.tell_again_at = None;
            return;
        }
        let now = Instant::now();
        self.tell_again_at = Some(now + EVERY);
        let left =
            self.limits.sessions().saturating_sub(self.stopping_for(now).unwrap_or_default());
        let ids = self.lifecycle.generations().map(|(id, ..)| id).collect::<Vec<_>>();
        let tallies = self.tallies(&ids, EVERY);
        tokio::task::spawn_local(async move {
            if let Some(tallies) = tallies.await {
                // Whole seconds: the line is for people.
                let left = Seconds(Duration::from_secs(left.as_secs()));
                info!(%left, "waiting for {}", told(&tallies));
            }
        });
    }

    /// After SIGTERM no session is left to ask about.
    pub(super) fn prepare_cut(&self, id: GenerationId) {
        let now = Instant::now();
        let draining_for = self.lifecycle.generations().find_map(|(other, phase, since, _)| {
            (other == id && phase == Phase::Draining).then(|| now.duration_since(since))
        });
        let cut = Cut { stopping_for: self.stopping_for(now), draining_for };
        let why = why_cut(cut, &self.limits);
        // None came since it drains, so each is at least that old.
        let older_than = draining_for.map(|since| Seconds(Duration::from_secs(since.as_secs())));
        let older_than = older_than.map(|age| age.to_string());
        let tallies = self.tallies(&[id], COUNT_LIMIT.min(self.limits.stop_grace() / 2));
        let counted = async move {
            let tallies = tallies.await.unwrap_or_default();
            let any = tallies.iter().any(|(_, tally)| tally.sessions > 0);
            if any {
                warn!(older_than, "cut: {}: {why}", told(&tallies));
            }
            Message::Counted(id)
        };
        self.beside(counted, Message::Counted(id));
    }

    pub(super) fn cut(&self, id: GenerationId) {
        self.signal(id, Signal::TERM, "ending its sessions");
    }

    fn stopping_for(&self, now: Instant) -> Option<Duration> {
        let began = self.lifecycle.stop_deadline()?.checked_sub(self.limits.stop)?;
        Some(now.duration_since(began))
    }
}
