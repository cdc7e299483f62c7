//! What `hapilot status` and `hapilot health` are told.

use std::collections::HashSet;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use super::generations::Running;
use super::lifecycle::StateName;
use super::run::Supervisor;
use crate::control::metrics::Beside;
use crate::control::protocol::{
    Answer, GenerationStatus, HostItem, ListenerStatus, SavedStatus, Status,
};
use crate::haproxy::runtime_api::{LIMIT, ask};
use crate::listeners::compare::Seen;
use crate::process::descriptors;

/// As the configuration names them.
pub(super) fn inherited() -> Vec<String> {
    descriptors::kept().iter().map(ToString::to_string).collect()
}

impl Supervisor {
    /// Healthy is who serves and whose HAProxy answers: one that is stuck accepts nobody.
    pub(super) fn answer_health(&self, answer: oneshot::Sender<Answer>) {
        let (shown, serving) = (self.shown_state(), self.lifecycle.serving());
        let state = shown.as_str().to_owned();
        let serving = serving
            .filter(|_| shown != StateName::Starting)
            .and_then(|id| self.generations.get(&id));
        let socket = serving.map(|running| running.runtime_socket.clone());
        let paused = self.lifecycle.is_paused();
        tokio::task::spawn_local(async move {
            let (healthy, state) = match socket {
                None => (false, state),
                // Its runtime socket is paused as well.
                Some(_) if paused => (true, format!("{state}, paused")),
                Some(socket) => match ask(&socket, "show info", LIMIT).await {
                    Ok(_) => (true, state),
                    Err(error) => (false, format!("{state}, but {error:#}")),
                },
            };
            // Whoever asked may have left.
            let _ = answer.send(Answer::Health { healthy, state });
        });
    }

    pub(super) fn answer_metrics(&self, answer: oneshot::Sender<Answer>) {
        let log_dropped = self.log.dropped_so_far() + self.syslog.lost();
        let beside = Beside { since: epoch(self.started), log_dropped };
        let (status, metrics) = (self.counted_status(), Rc::clone(&self.metrics));
        tokio::task::spawn_local(async move {
            let _ = answer.send(match metrics.text(&status.await, beside) {
                Ok(text) => Answer::Metrics { text },
                Err(error) => Answer::Error { message: format!("{error:#}") },
            });
        });
    }

    pub(super) fn answer_status(&self, answer: oneshot::Sender<Answer>) {
        let status = self.counted_status();
        tokio::task::spawn_local(async move {
            let _ = answer.send(Answer::Status(Box::new(status.await)));
        });
    }

    pub(super) fn counted_status(&self) -> impl Future<Output = Status> + use<> {
        let asked_at = Instant::now();
        let (mut status, count) = (self.status(), self.count());
        async move {
            count.await.fill(&mut status.generations, asked_at);
            status
        }
    }

    /// But for what has to be counted.
    pub(super) fn status(&self) -> Status {
        let clock = Clock::now();
        Status {
            instance: self.identity.instance.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            haproxy_version: self.identity.haproxy_version.clone(),
            state: self.shown_state().as_str().to_owned(),
            paused: self.lifecycle.is_paused(),
            since: clock.at(self.lifecycle.since()),
            generations: self.generation_statuses(&clock),
            listeners: self.listener_statuses(),
            warnings: self.lasting_warnings(),
            others_listening: self.others_listening(),
            last_reload: self.last_reload.clone(),
            reloads: self.reloads.iter().cloned().collect(),
            last_takeover: self.last_takeover.clone(),
            crashes: self.lifecycle.crashes(),
            saved: self.saving.with(|saved| SavedStatus {
                at: clock.at(saved.at),
                servers: saved.servers(),
                entries: saved.entries(),
                left_out: saved.left_out.clone(),
            }),
            host: self.host_items(),
            inherited: inherited(),
        }
    }

    fn lasting_warnings(&self) -> Vec<String> {
        let serving = self.lifecycle.serving().and_then(|id| self.generations.get(&id));
        let judged = serving.into_iter().flat_map(|running| &running.judged);
        judged.chain(&self.identity.warnings).cloned().collect()
    }

    /// Until the host is given back a stop is not over.
    fn shown_state(&self) -> StateName {
        match self.lifecycle.state() {
            StateName::Stopped => StateName::Stopping,
            state => state,
        }
    }

    fn host_items(&self) -> Vec<HostItem> {
        let owned = self.host.owned().into_iter().chain(self.policy.site.debts.owned());
        owned.map(|o| HostItem { what: o.what, undo: o.undo }).collect()
    }

    fn generation_statuses(&self, clock: &Clock) -> Vec<GenerationStatus> {
        self.lifecycle
            .generations()
            .map(|(id, phase, since, deadline)| {
                let pid = self.generations.get(&id).and_then(Running::pid);
                GenerationStatus {
                    id: id.number(),
                    pid,
                    state: phase.as_str().to_owned(),
                    since: clock.at(since),
                    connections: None,
                    connections_age_s: None,
                    deadline: deadline.map(|at| clock.at(at)),
                }
            })
            .collect()
    }

    fn listener_statuses(&self) -> Vec<ListenerStatus> {
        let Some(running) =
            self.lifecycle.serving().and_then(|serving| self.generations.get(&serving))
        else {
            return Vec::new();
        };
        let shared = running.shared_addresses();
        let listener = |seen: &Seen| ListenerStatus {
            address: seen.address.clone(),
            shared: shared.contains(&seen.address),
        };
        running.listens.iter().map(listener).collect()
    }

    /// The ports that clients' connections have on our side.
    pub(super) fn client_ports(&self) -> HashSet<u16> {
        let listens = self.generations.values().flat_map(|running| &running.listens);
        let listening = listens.filter_map(Seen::port);
        listening.chain(self.identity.intercepted_ports.iter().copied()).collect()
    }
}

/// As Prometheus writes times: seconds, with fractions.
pub(super) fn epoch(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Turns the monotonic instants that we decide by into times of day for people.
struct Clock {
    instant: Instant,
    time: SystemTime,
}

impl Clock {
    fn now() -> Self {
        Self { instant: Instant::now(), time: SystemTime::now() }
    }

    fn at(&self, instant: Instant) -> String {
        let ahead = instant.saturating_duration_since(self.instant);
        let behind = self.instant.saturating_duration_since(instant);
        let time = self.time.checked_sub(behind).unwrap_or(self.time) + ahead;
        // Rounded, so that the same instant does not read differently each time.
        let rounded = time + Duration::from_micros(500);
        humantime::format_rfc3339_millis(rounded).to_string()
    }
}
