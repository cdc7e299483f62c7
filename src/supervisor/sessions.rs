//! Acts: which sessions each generation has, for `hapilot sessions`.
//!
//! One that serves is asked. One that drains answers no more: what it said in the moment in which
//! it was told to drain is held against the kernel's table, and what is still there is still there,
//! for none came since.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::lifecycle::Phase;
use super::run::Supervisor;
use crate::control::protocol::{Answer, GenerationSessions, SessionStatus};
use crate::haproxy::insider::{Insider, Snapshot};
use crate::haproxy::runtime_api::{LIMIT, ask};
use crate::haproxy::session::{Session, canonical};
use crate::listeners::socket_table;

/// Of each generation the oldest are told of.
const MOST: usize = 1000;

impl Supervisor {
    pub(super) fn answer_sessions(&self, answer: oneshot::Sender<Answer>) {
        let now = Instant::now();
        let status = self.status();
        let phases = self.lifecycle.generations().map(|(id, phase, ..)| (id, phase));
        let mut asked = Vec::new();
        for ((id, phase), status) in phases.zip(status.generations) {
            let Some(running) = self.generations.get(&id) else { continue };
            let snapshot = running.insider.as_ref().and_then(Insider::snapshot);
            asked.push((running.runtime_socket.clone(), phase, snapshot, status));
        }
        tokio::task::spawn_local(async move {
            let mut all = Vec::new();
            for (socket, phase, snapshot, status) in asked {
                let (sessions, unknown) = match (phase, snapshot) {
                    (Phase::Draining, Some(snapshot)) => left(snapshot, now),
                    (Phase::Draining, None) => {
                        (Vec::new(), Some("it was not asked before it drained".to_owned()))
                    }
                    _ => match ask(&socket, "show sess", LIMIT).await {
                        Ok(text) => (text.lines().filter_map(Session::read).collect(), None),
                        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
                    },
                };
                all.push(told(sessions, unknown, status));
            }
            // Whoever asked may have left.
            let _ = answer.send(Answer::Sessions { generations: all });
        });
    }
}

fn told(
    mut sessions: Vec<Session>,
    unknown: Option<String>,
    generation: crate::control::protocol::GenerationStatus,
) -> GenerationSessions {
    sessions.sort_by_key(|session| std::cmp::Reverse(session.age));
    let oldest = sessions.iter().take(MOST).map(|session| SessionStatus {
        client: session.client.clone(),
        frontend: session.frontend.clone(),
        server: session.server.clone(),
        age_s: session.age.as_secs(),
    });
    GenerationSessions { oldest: oldest.collect(), count: sessions.len(), unknown, generation }
}

/// Those of them that are still there.
fn left(snapshot: Snapshot, now: Instant) -> (Vec<Session>, Option<String>) {
    let table = match socket_table::sessions() {
        Ok(table) => table,
        Err(error) => return (Vec::new(), Some(format!("{error:#}"))),
    };
    let there: HashSet<SocketAddr> = table.iter().map(|s| canonical(s.remote)).collect();
    let since = now.saturating_duration_since(snapshot.at);
    // One without an address of its own (a unix socket) cannot be looked up.
    let still = |session: &Session| session.address().is_none_or(|a| there.contains(&a));
    let older = |session: Session| Session { age: whole(session.age + since), ..session };
    (snapshot.sessions.into_iter().filter(still).map(older).collect(), None)
}

fn whole(age: Duration) -> Duration {
    Duration::from_secs(age.as_secs())
}
