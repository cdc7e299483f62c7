//! Acts: what each generation is asked for whom it does not answer itself any more, and which
//! sessions it has, for `hapilot sessions`.
//!
//! One that drains takes no new conversation: there is one with it that began before.

use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::generations::Running;
use super::lifecycle::Phase;
use super::run::Supervisor;
use crate::control::protocol::{Answer, GenerationSessions, GenerationStatus, SessionStatus};
use crate::haproxy::insider::Insider;
use crate::haproxy::runtime_api::{LIMIT, ask};
use crate::haproxy::session::Session;

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
                told(text, status)
            });
        }
        tokio::task::spawn_local(async move {
            // Whoever asked may have left.
            let _ = answer.send(Answer::Sessions { generations: join_all(asked).await });
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

fn told(text: anyhow::Result<String>, generation: GenerationStatus) -> GenerationSessions {
    let unknown = text.as_ref().err().map(|error| format!("{error:#}"));
    let text = text.unwrap_or_default();
    let mut sessions: Vec<_> = text.lines().filter_map(Session::read).collect();
    sessions.sort_by_key(|session| std::cmp::Reverse(session.age));
    let count = sessions.len();
    let oldest = sessions.into_iter().take(MOST).map(|session| SessionStatus {
        client: session.client,
        frontend: session.frontend,
        server: session.server,
        age_s: session.age.as_secs(),
    });
    GenerationSessions { oldest: oldest.collect(), count, unknown, generation }
}
