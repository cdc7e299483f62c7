//! Acts: our side when a successor relieves us.

use std::path::Path;
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::lifecycle::Event;
use super::run::{Message, Supervisor};
use crate::handover::takeover::door::{Knock, Visit};
use crate::handover::takeover::marks::{self, Mark};
use crate::handover::takeover::protocol::{Answer, Caller, Name};
use crate::host::preflight::RUN_DIRECTORY;

/// The successor that asked first.
#[derive(Debug)]
pub(super) struct Guest {
    visit: Visit,
    by: Caller,
    /// `None` once it is answered.
    answer: Option<oneshot::Sender<Answer>>,
}

impl Guest {
    pub(super) fn instance(&self) -> &str {
        &self.by.name.instance
    }
}

impl Supervisor {
    pub(super) fn knocked(&mut self, knock: Knock) {
        match knock {
            Knock::Reserve { visit, by, answer } => self.asked_to_hold(visit, by, answer),
            Knock::Retire { visit, answers } => self.asked_to_retire(visit, answers),
            Knock::Left { visit } => {
                let left = self.guest.take_if(|guest| guest.visit == visit);
                let Some(guest) = left else { return };
                warn!(successor = guest.by.name.instance, "it did not take over; serving on");
                self.event(Event::ReserveEnded);
            }
        }
    }

    fn asked_to_hold(&mut self, visit: Visit, by: Caller, answer: oneshot::Sender<Answer>) {
        if let Some(guest) = &self.guest {
            let first = &guest.by.name.instance;
            warn!(successor = by.name.instance, first, "refused: another one is taking over");
            let reason = format!("hapilot {first} is taking over from it already");
            let _ = answer.send(Answer::Refused { reason, by: Some(first.clone()) });
            return;
        }
        info!(successor = by.name.instance, version = by.version, "it wants to take over");
        self.guest = Some(Guest { visit, by, answer: Some(answer) });
        self.event(Event::ReserveWanted);
    }

    fn asked_to_retire(&self, visit: Visit, answers: mpsc::UnboundedSender<Answer>) {
        let (sessions, told) = (self.all_connections(), answers.clone());
        let counted = async move { Message::MayRetire(visit, told, sessions.await) };
        self.beside(counted, Message::MayRetire(visit, answers, None));
    }

    pub(super) fn retire(
        &mut self,
        visit: Visit,
        answers: mpsc::UnboundedSender<Answer>,
        sessions: Option<u64>,
    ) {
        let Some(guest) = self.guest.as_ref().filter(|guest| guest.visit == visit) else {
            let reason = "it was not asked to hold still first".to_owned();
            let _ = answers.send(Answer::Refused { reason, by: None });
            return;
        };
        let Name { instance: by, container } = guest.by.name.clone();
        info!(successor = by, "relieved: sessions finish, then this one ends");
        let mark = Mark {
            instance: self.identity.instance.clone(),
            by,
            container,
            at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        };
        if let Err(error) = marks::write(Path::new(RUN_DIRECTORY), &mark) {
            warn!("{error:#}; if this container is started again, it may not know");
        }
        let _ = answers.send(Answer::Draining { sessions });
        self.watchers.push(answers);
        self.event(Event::Relieved);
    }

    pub(super) fn answer_successor(&mut self, answer: Answer) {
        let held = matches!(answer, Answer::Reserved { .. });
        if let Some(sender) = self.guest.as_mut().and_then(|guest| guest.answer.take()) {
            // It may have hung up; then the door says so.
            let _ = sender.send(answer);
        }
        if !held {
            self.guest = None;
        }
    }

    /// Whoever relieved us wants to know how far we are.
    pub(super) fn tell_watchers(&self, answer: &Answer) {
        for watcher in &self.watchers {
            let _ = watcher.send(answer.clone());
        }
    }

    pub(super) fn tell_watchers_of_sessions(&self) {
        if !self.watchers.is_empty() {
            let sessions = self.all_connections();
            let counted = async move { Message::Draining(sessions.await) };
            self.beside(counted, Message::Draining(None));
        }
    }
}
