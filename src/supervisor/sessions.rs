//! Acts: what each generation is asked for whom it does not answer itself any more, and which
//! sessions it has, for `hapilot sessions`.
//!
//! One that drains takes no new conversation: there is one with it that began before. How long a
//! client has been silent HAProxy does not tell; the kernel does.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::generations::Running;
use super::lifecycle::Phase;
use super::run::Supervisor;
use crate::control::protocol::{Answer, GenerationSessions, GenerationStatus, SessionStatus};
use crate::haproxy::insider::Insider;
use crate::haproxy::runtime_api::each_line;
use crate::haproxy::session::{Oldest, Session, canonical};
use crate::listeners::socket_table;
use crate::process::aside::aside;

/// Of each generation the oldest are told of.
const MOST: usize = 1000;
/// HAProxy needs a second for a hundred thousand.
const SHOW_LIMIT: Duration = Duration::from_secs(4);
/// And the kernel less.
const SILENCE_LIMIT: Duration = Duration::from_millis(500);

impl Supervisor {
    pub(super) fn answer_sessions(&self, answer: oneshot::Sender<Answer>) {
        const COMMAND: &str = "show sess";
        let phases = self.lifecycle.generations().map(|(id, phase, ..)| (id, phase));
        let (mut asked, mut statuses) = (Vec::new(), Vec::new());
        for ((id, phase), status) in phases.zip(self.status().generations) {
            let Some(running) = self.generations.get(&id) else { continue };
            let oldest = Rc::new(RefCell::new(Oldest::of_all(MOST)));
            let inside = running.insider.as_ref().filter(|_| phase == Phase::Draining);
            let into = Rc::clone(&oldest);
            let look = move |line: &str| into.borrow_mut().add(line);
            let inside = inside.map(|insider| insider.each_line(COMMAND, Box::new(look)));
            let socket = running.runtime_socket.clone();
            asked.push(async move {
                let answered = if let Some(inside) = inside {
                    inside.await
                } else {
                    let look = |line: &str| oldest.borrow_mut().add(line);
                    each_line(&socket, COMMAND.as_bytes(), SHOW_LIMIT, look).await
                };
                let oldest = oldest.replace(Oldest::of_all(0));
                answered.map(|()| (oldest.count, oldest.sessions()))
            });
            statuses.push(status);
        }
        let (count, asked_at) = (self.count(), Instant::now());
        tokio::task::spawn_local(async move {
            let (found, count) = tokio::join!(join_all(asked), count);
            count.fill(&mut statuses, asked_at);
            let shown = found.iter().filter_map(|found| found.as_ref().ok());
            let shown = shown.flat_map(|(_, sessions)| sessions).filter_map(Session::address);
            let shown: HashSet<SocketAddr> = shown.collect();
            // Where there is no thread, or the kernel takes too long, it is not known.
            let silent = timeout(SILENCE_LIMIT, aside(move || silent(&shown))).await;
            let silent = silent.map(Result::unwrap_or_default).unwrap_or_default();
            let told = found.into_iter().zip(statuses).map(|(found, of)| told(found, of, &silent));
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

/// For how long, by the client's address. Of all that there are only those that are `shown` are kept.
fn silent(shown: &HashSet<SocketAddr>) -> HashMap<SocketAddr, Duration> {
    let mut silent = HashMap::new();
    let look = |session: socket_table::Session| {
        let address = canonical(session.remote);
        if shown.contains(&address) {
            silent.insert(address, session.silent);
        }
    };
    if let Err(error) = socket_table::each_session(look) {
        tracing::warn!("silence is not known: {error:#}");
    }
    silent
}

fn told(
    found: anyhow::Result<(usize, Vec<Session>)>,
    generation: GenerationStatus,
    silent: &HashMap<SocketAddr, Duration>,
) -> GenerationSessions {
    let unknown = found.as_ref().err().map(|error| format!("{error:#}"));
    let (count, sessions) = found.unwrap_or_default();
    let oldest = sessions.into_iter().map(|session| SessionStatus {
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
