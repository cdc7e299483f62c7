//! Acts: tells what a stop still waits for, and what was cut when it could not wait any longer.
//!
//! A HAProxy that drains answers no more on its runtime socket, so its sessions are counted in the
//! kernel's table of sockets. There is a timer only while stopping.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tracing::{info, warn};

use super::deadlines::{Cut, Seconds, Tally, told, why_cut};
use super::lifecycle::{Phase, StateName};
use super::run::Supervisor;
use crate::haproxy::generation::GenerationId;
use crate::listeners::socket_table::sessions;
use crate::process::procfs::socket_inodes;

const EVERY: Duration = Duration::from_secs(10);

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
        if let Some(tallies) = self.tallies(&ids) {
            // Whole seconds: the line is for people.
            let left = Seconds(Duration::from_secs(left.as_secs()));
            info!(%left, "waiting for {}", told(&tallies));
        }
    }

    /// SIGTERM, after which no session is left to ask about.
    pub(super) fn cut(&self, id: GenerationId) {
        let now = Instant::now();
        let draining_for = self.lifecycle.generations().find_map(|(other, phase, since, _)| {
            (other == id && phase == Phase::Draining).then(|| now.duration_since(since))
        });
        let cut = Cut { stopping_for: self.stopping_for(now), draining_for };
        let why = why_cut(cut, &self.limits);
        let tallies = self.tallies(&[id]).unwrap_or_default();
        if tallies.iter().any(|(_, tally)| tally.sessions > 0) {
            // None came since it drains, so each is at least that old.
            let older_than =
                draining_for.map(|since| Seconds(Duration::from_secs(since.as_secs())));
            let older_than = older_than.map(|seconds| seconds.to_string());
            warn!(older_than, "cut: {}: {why}", told(&tallies));
        }
        self.signal(id, Signal::TERM, "ending its sessions");
    }

    fn stopping_for(&self, now: Instant) -> Option<Duration> {
        let began = self.lifecycle.stop_deadline()?.checked_sub(self.limits.stop)?;
        Some(now.duration_since(began))
    }

    /// Sessions by generation; those that may not be looked into share what is nobody else's.
    /// `None` where the kernel does not say.
    fn tallies(&self, of: &[GenerationId]) -> Option<Vec<(Vec<u32>, Tally)>> {
        let ports = self.client_ports();
        let table = sessions().inspect_err(|error| warn!("not counted: {error:#}")).ok()?;
        let mut table: Vec<_> =
            table.into_iter().filter(|session| ports.contains(&session.local_port)).collect();
        let (mut known, mut closed) = (Vec::new(), Vec::new());
        for (id, ..) in self.lifecycle.generations() {
            let running = self.generations.get(&id);
            let Some(pid) = running.and_then(super::generations::Running::serving_pid) else {
                continue;
            };
            let Ok(inodes) = socket_inodes(pid) else {
                closed.push(id);
                continue;
            };
            let mut tally = Tally::default();
            table.retain(|session| {
                let its = inodes.contains(&session.inode);
                if its {
                    tally.add(session.silent);
                }
                !its
            });
            known.push((vec![id], tally));
        }
        if !closed.is_empty() {
            let mut tally = Tally::default();
            for session in &table {
                tally.add(session.silent);
            }
            known.push((closed, tally));
        }
        known.retain(|(ids, _)| ids.iter().any(|id| of.contains(id)));
        let numbers = |ids: Vec<GenerationId>| ids.into_iter().map(GenerationId::number).collect();
        Some(known.into_iter().map(|(ids, tally)| (numbers(ids), tally)).collect())
    }
}
