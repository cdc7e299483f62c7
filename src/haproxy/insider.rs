//! Acts: a conversation with a generation that began before it was told to drain.
//!
//! From then on HAProxy takes no new one, but goes on with this one, and does not end while it has
//! it. So whoever has a question for one that drains asks it here, and as soon as nothing but this
//! conversation is left to HAProxy, it ends.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::runtime_api::{Conversation, LONGEST_ANSWER, field};

/// For the whole of an answer, which may tell of many sessions.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);
/// HAProxy tells nobody when its last session ends: between two looks, longer each time.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

struct Question {
    command: String,
    /// At each line of the answer.
    look: Box<dyn FnMut(&str)>,
    answer: oneshot::Sender<Result<()>>,
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Question").field("command", &self.command).finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub struct Insider {
    drains: Option<oneshot::Sender<()>>,
    questions: mpsc::UnboundedSender<Question>,
    task: JoinHandle<()>,
}

impl Insider {
    #[must_use]
    pub fn enter(socket: PathBuf) -> Self {
        let (drains, told) = oneshot::channel();
        let (questions, mut asked) = mpsc::unbounded_channel();
        let task = tokio::task::spawn_local(async move {
            let over = match converse(socket, told, &mut asked).await {
                Ok(()) => "it has no session any more and is about to end".to_owned(),
                Err(error) => format!("the conversation with it is over: {error:#}"),
            };
            tracing::debug!(over, "insider");
            while let Some(Question { answer, .. }) = asked.recv().await {
                let _ = answer.send(Err(anyhow!("{over}")));
            }
        });
        Self { drains: Some(drains), questions, task }
    }

    /// It has just been told to drain.
    pub fn leave_last(&mut self) {
        if let Some(drains) = self.drains.take() {
            // A conversation that failed is over already.
            let _ = drains.send(());
        }
    }

    /// The raw answer to one command; messages in it have their severity before them. One that is too
    /// long is cut, and says so.
    pub fn ask(&self, command: &str) -> impl Future<Output = Result<String>> + use<> {
        put(&self.questions, command)
    }

    /// Looks at each line of the answer as it comes, for answers that may be long.
    pub fn each_line(
        &self,
        command: &str,
        look: Box<dyn FnMut(&str)>,
    ) -> impl Future<Output = Result<()>> + use<> {
        put_question(&self.questions, command, look)
    }

    /// Until it takes no new connection any more, as it has been told.
    pub fn let_go(&self) -> impl Future<Output = ()> + use<> {
        let questions = self.questions.clone();
        async move {
            let mut pause = FIRST_PAUSE;
            // A process that does not answer has ended, or is about to.
            while let Ok(info) = put(&questions, "show info").await
                && accepts(&info)
            {
                sleep(pause).await;
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
        }
    }
}

fn put(
    questions: &mpsc::UnboundedSender<Question>,
    command: &str,
) -> impl Future<Output = Result<String>> + use<> {
    let kept = Rc::new(RefCell::new((String::new(), Cut::No)));
    let into = Rc::clone(&kept);
    let look = move |line: &str| {
        let (text, cut) = &mut *into.borrow_mut();
        if text.len() + line.len() >= LONGEST_ANSWER {
            *cut = Cut::Yes;
        } else if *cut == Cut::No {
            text.push_str(line);
            text.push('\n');
        }
    };
    let asked = put_question(questions, command, Box::new(look));
    async move {
        asked.await?;
        let (mut text, cut) = kept.take();
        if cut == Cut::Yes {
            // Into a `String` it cannot fail.
            let _ =
                writeln!(text, "(hapilot: the rest, beyond {LONGEST_ANSWER} bytes, is left out)");
        }
        Ok(text)
    }
}

/// Whether an answer is only begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Cut {
    #[default]
    No,
    Yes,
}

fn put_question(
    questions: &mpsc::UnboundedSender<Question>,
    command: &str,
    look: Box<dyn FnMut(&str)>,
) -> impl Future<Output = Result<()>> + use<> {
    let (answer, answered) = oneshot::channel();
    let sent = questions.send(Question { command: command.to_owned(), look, answer });
    async move {
        sent.ok().context("it has ended")?;
        let answered = timeout(ANSWER_LIMIT, answered).await;
        let limit = humantime::format_duration(ANSWER_LIMIT);
        answered.with_context(|| format!("no answer within {limit}"))?.context("it has ended")?
    }
}

impl Drop for Insider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Until nothing else is left to HAProxy.
async fn converse(
    socket: PathBuf,
    mut told: oneshot::Receiver<()>,
    asked: &mut mpsc::UnboundedReceiver<Question>,
) -> Result<()> {
    let mut haproxy = Conversation::begin(&socket).await?;
    // Else HAProxy hangs up after ten idle seconds.
    for command in ["set timeout cli 24d", "set severity-output number"] {
        haproxy.ask(command).await?;
    }
    let mut pause = None;
    loop {
        tokio::select! {
            _ = &mut told, if pause.is_none() => pause = Some(FIRST_PAUSE),
            Some(question) = asked.recv() => question.pass_on(&mut haproxy).await?,
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
        // After each question as well: whoever asks again and again keeps nobody alive.
        if let Some(last) = pause {
            // However long it takes: one that is stuck does not end without us either.
            if !has_more_than_us(&haproxy.ask("show info").await?) {
                return Ok(());
            }
            pause = Some((2 * last).min(LONGEST_PAUSE));
        }
    }
}

impl Question {
    /// An error ends the conversation.
    async fn pass_on(self, haproxy: &mut Conversation) -> Result<()> {
        let Self { command, look, answer } = self;
        if answer.is_closed() {
            // Told already that it was not answered, so it shall not be done any more.
            return Ok(());
        }
        if command.contains([';', '\n']) {
            // Each would have an answer of its own, which could be taken for the next one's.
            let _ = answer.send(Err(anyhow!(
                "one that drains is asked one command at a time, and none with a payload"
            )));
            return Ok(());
        }
        // What never comes to an end (`show events … -w`) must not keep HAProxy from its own.
        let answered = timeout(ANSWER_LIMIT, haproxy.each_line(&command, look)).await;
        let limit = humantime::format_duration(ANSWER_LIMIT);
        let answered =
            answered.with_context(|| format!("no answer to {command:?} within {limit}")).flatten();
        let over = answered.as_ref().err().map(|error| anyhow!("{error:#}"));
        let _ = answer.send(answered);
        over.map_or(Ok(()), Err)
    }
}

/// "Stopping" alone says little: with `grace` HAProxy goes on accepting after it has said so. A worker
/// keeps its way to the master, which is a listener and an unstoppable job.
fn accepts(info: &str) -> bool {
    let number = |name| field(info, name).and_then(|value| value.parse::<u64>().ok());
    let listeners = number("Listeners").unwrap_or(0);
    field(info, "Stopping") != Some("1") || listeners > number("Unstoppable Jobs").unwrap_or(0)
}

/// HAProxy ends when nothing is left of what it counts as jobs: listeners, sessions, peers that are
/// taught, this conversation.
fn has_more_than_us(info: &str) -> bool {
    let number = |name| field(info, name).and_then(|value| value.parse::<u64>().ok());
    // Where it does not say, it must not live on for our sake.
    number("Jobs").unwrap_or(0) > 1 + number("Unstoppable Jobs").unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_stops_accepts_for_as_long_as_it_has_listeners() {
        for (info, accept) in [
            ("Stopping: 0\nListeners: 3\nUnstoppable Jobs: 0\n", true),
            ("Stopping: 1\nListeners: 2\nUnstoppable Jobs: 0\n", true),
            ("Stopping: 1\nListeners: 0\nUnstoppable Jobs: 0\n", false),
            ("Stopping: 1\nListeners: 1\nUnstoppable Jobs: 1\n", false),
            ("Stopping: 1\n", false),
        ] {
            assert_eq!(accepts(info), accept, "{info:?}");
        }
    }

    #[test]
    fn who_has_nothing_left_but_us_is_left() {
        for (info, more) in [
            ("Pid: 4\nJobs: 2\nUnstoppable Jobs: 0\nListeners: 0\n", true),
            ("Jobs: 1\nUnstoppable Jobs: 0\n", false),
            ("Jobs: 2\nUnstoppable Jobs: 1\n", false),
            ("Permission denied\n", false),
        ] {
            assert_eq!(has_more_than_us(info), more, "{info:?}");
        }
    }
}
