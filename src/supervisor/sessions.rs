//! Acts: what each generation is asked for whom it does not answer itself any more, and which
//! sessions it has, for `hapilot sessions`.
//!
//! One that drains takes no new conversation: there is one with it that began before. How long a
//! client has been silent HAProxy does not tell; the kernel does.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::generations::Running;
use super::lifecycle::Phase;
use super::run::Supervisor;
use crate::control::protocol::{Answer, GenerationSessions, GenerationStatus, SessionStatus};
use crate::haproxy::insider::Insider;
use crate::haproxy::runtime_api::{LIMIT, ask};
use crate::haproxy::session::{Session, canonical};
use crate::listeners::socket_table;

/// Of each generation the oldest are told of.
const MOST: usize = 1000;

impl Supervisor {
    pub(super) fn answer_sessions(&self, answer: oneshot::Sender<Answer>) {
        const COMMAND: &str = "show sess";
        let phases = self.lifecycle.generations().map(|(id, phase, ..)| (id, phase));
        let mut asked = Vec::new();
        for ((id, phase), status) in phases.zip(self.status().generations) {
            let Some(running) = self.generations.get(&id) else { continue };
            let inside = running.insider.as_ref().filter(|_| phase == Phase::Draining);
            let inside = inside.map(|insider| insider.ask(COMMAND));
            let socket = running.runtime_socket.clone();
            asked.push(async move {
                let text = match inside {
                    Some(inside) => inside.await,
                    None => ask(&socket, COMMAND, LIMIT).await,
                };
                (text, status)
            });
        }
        tokio::task::spawn_local(async move {
            let answered = join_all(asked).await;
            let silent = silent();
            let told = answered.into_iter().map(|(text, status)| told(text, status, &silent));
            // Whoever asked may have left.
            let _ = answer.send(Answer::Sessions { generations: told.collect() });
        });
    }

    pub(super) fn answer_runtime(
        &self,
        generation: u32,
        words: &str,
        answer: oneshot::Sender<Answer>,
    ) {
        let running = self.generations.iter().find(|(id, _)| id.number() == generation);
        let insider = running.and_then(|(_, running): (_, &Running)| running.insider.as_ref());
        let asked = insider.map(|insider| Insider::ask(insider, words));
        tokio::task::spawn_local(async move {
            let answered = match asked {
                Some(asked) => asked.await,
                None => Err(anyhow::anyhow!("there is no generation {generation} that was ready")),
            };
            let _ = answer.send(match answered {
                Ok(text) => Answer::Runtime { text },
                Err(error) => Answer::Error { message: format!("{error:#}") },
            });
        });
    }
}

/// For how long, by the client's address.
fn silent() -> HashMap<SocketAddr, Duration> {
    let table = socket_table::sessions();
    let table = table.inspect_err(|error| tracing::warn!("silence is not known: {error:#}"));
    table.into_iter().flatten().map(|s| (canonical(s.remote), s.silent)).collect()
}

fn told(
    text: anyhow::Result<String>,
    generation: GenerationStatus,
    silent: &HashMap<SocketAddr, Duration>,
) -> GenerationSessions {
    let unknown = text.as_ref().err().map(|error| format!("{error:#}"));
    let text = text.unwrap_or_default();
    let mut sessions: Vec<_> = text.lines().filter_map(Session::read).collect();
    sessions.sort_by_key(|session| std::cmp::Reverse(session.age));
    let count = sessions.len();
    let oldest = sessions.into_iter().take(MOST).map(|session| SessionStatus {
        id: format!("{}/{}", generation.id, session.id),
        idle_s: session.address().and_then(|a| silent.get(&a)).map(Duration::as_secs),
        client: session.client,
        frontend: session.frontend,
        server: session.server,
        age_s: session.age.as_secs(),
    });
    let oldest = oldest.collect();
    GenerationSessions { generation, count, oldest, unknown }
}
