//! Acts: carries out what `lifecycle` decides and tells it what happened.
//!
//! One loop on one thread. Whatever may take time runs as a task beside it and ends as a message,
//! so a signal is heard in every state; only the host's set-up and tear-down are waited for, each
//! with a bound.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use super::lifecycle::{Action, Event, Lifecycle, Limits, Phase, Refusal, StateName};
use super::reaper::reap;
use super::signals::{Heard, Signals};
use crate::control::protocol::{Answer, Request};
use crate::control::server::Asked;
use crate::handover::receipt::Receipt;
use crate::handover::reload::{HandedOver, hand_over, save_server_state, seen};
use crate::haproxy::generation::GenerationId;
use crate::haproxy::launch::{Launched, NotLaunched, Program};
use crate::haproxy::output::{Words, follow};
use crate::haproxy::ready::ready;
use crate::host::Host;
use crate::listeners::compare::Seen;
use crate::process::exit::Exit;
use crate::process::handle::Handle;

/// After a process is gone its last words are in the pipe already; only something that inherited
/// the pipe can keep it open longer.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// For host changes outside the stop deadline.
const HOST_LIMIT: Duration = Duration::from_secs(10);
/// The tear-down failed: the status of our own bugs.
const NOT_TORN_DOWN: u8 = 70;

/// What a task beside the loop has to say.
#[derive(Debug)]
enum Message {
    Event(Event),
    /// What had to be saved before the launch is saved.
    Prepared { id: GenerationId, from: Option<GenerationId> },
    Listens(GenerationId, Vec<Seen>),
    HandedOver(GenerationId, HandedOver),
}

/// A generation as a process; `lifecycle` knows its phase.
#[derive(Debug)]
pub(super) struct Running {
    launched_at: Instant,
    ready_after: Option<Duration>,
    /// `None` before the launch and after the exit.
    handle: Option<Handle>,
    pid: Option<i32>,
    runtime_socket: PathBuf,
    words: Words,
    output: Option<JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
    pub(super) listens: Vec<Seen>,
    handed_over: HandedOver,
}

impl Running {
    pub(super) fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Those whose sockets came from the generation before.
    pub(super) fn shared_addresses(&self) -> &[String] {
        &self.handed_over.listeners.shared
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[derive(Debug)]
pub struct Supervisor {
    pub(super) program: Rc<Program>,
    pub(super) lifecycle: Lifecycle,
    pub(super) generations: BTreeMap<GenerationId, Running>,
    pub(super) host: Option<Host>,
    pub(super) last_reload: Option<Receipt>,
    pub(super) identity: Identity,
    limits: Limits,
    /// Whoever waits for the next launch, and for the outcome of one.
    waiting: Vec<oneshot::Sender<Answer>>,
    trying: BTreeMap<GenerationId, Vec<oneshot::Sender<Answer>>>,
    messages: mpsc::UnboundedSender<Message>,
    inbox: mpsc::UnboundedReceiver<Message>,
}

/// What stays the same for as long as we live.
#[derive(Clone, Debug)]
pub struct Identity {
    pub instance: String,
    pub haproxy_version: String,
    /// Ports that clients address beside those that HAProxy listens on (`HAPROXY_INTERCEPT`).
    pub intercepted_ports: Vec<u16>,
}

#[derive(Debug)]
pub struct Setting {
    pub program: Program,
    pub limits: Limits,
    pub host: Option<Host>,
    pub identity: Identity,
}

/// Runs until everything is given back; the answer is the exit status.
pub async fn run(
    setting: Setting,
    mut signals: Signals,
    mut asked: mpsc::UnboundedReceiver<Asked>,
) -> u8 {
    let (mut supervisor, first) = Supervisor::new(setting);
    let mut done = supervisor.perform(first).await;
    loop {
        if let Some(status) = done {
            return status;
        }
        let wake_at = supervisor.lifecycle.wake_at();
        done = tokio::select! {
            biased;
            heard = signals.next() => supervisor.heard(heard).await,
            Some(message) = supervisor.inbox.recv() => supervisor.message(message).await,
            Some(asked) = asked.recv() => supervisor.asked(asked).await,
            () = until(wake_at) => supervisor.event(Event::Tick).await,
        };
    }
}

async fn until(wake_at: Option<Instant>) {
    match wake_at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

impl Supervisor {
    fn new(setting: Setting) -> (Self, Vec<Action>) {
        let Setting { program, limits, host, identity } = setting;
        let (lifecycle, first) = Lifecycle::start(Instant::now(), limits);
        let (messages, inbox) = mpsc::unbounded_channel();
        let supervisor = Self {
            program: Rc::new(program),
            lifecycle,
            generations: BTreeMap::new(),
            host,
            last_reload: None,
            identity,
            limits,
            waiting: Vec::new(),
            trying: BTreeMap::new(),
            messages,
            inbox,
        };
        (supervisor, first)
    }

    async fn heard(&mut self, heard: Heard) -> Option<u8> {
        match heard {
            Heard::Child => {
                for (pid, exit) in reap() {
                    self.child_ended(pid, exit);
                }
                None
            }
            Heard::Wish(signal, event) => {
                info!(signal, "signal received");
                self.event(event).await
            }
        }
    }

    async fn message(&mut self, message: Message) -> Option<u8> {
        match message {
            Message::Event(event) => return self.event(event).await,
            Message::Prepared { id, from } => self.launch(id, from),
            Message::Listens(id, listens) => {
                if let Some(running) = self.generations.get_mut(&id) {
                    running.listens = listens;
                }
            }
            Message::HandedOver(id, handed_over) => {
                if let Some(running) = self.generations.get_mut(&id) {
                    running.listens.clone_from(&handed_over.after);
                    running.handed_over = handed_over;
                }
                return self.event(Event::HandedOver(id)).await;
            }
        }
        None
    }

    async fn asked(&mut self, asked: Asked) -> Option<u8> {
        let Asked { request, answer } = asked;
        match request {
            Request::Status => {
                // Whoever asked may have left; so for every answer below.
                let _ = answer.send(Answer::Status(Box::new(self.status())));
            }
            Request::Health => {
                let _ = answer.send(self.health());
            }
            Request::Reload => {
                info!("reload asked for over the control socket");
                self.waiting.push(answer);
                return self.event(Event::ReloadWanted).await;
            }
            Request::Stop => {
                info!("stop asked for over the control socket");
                let _ = answer.send(Answer::Stopping);
                let stop = super::lifecycle::Stop::Graceful;
                return self.event(Event::StopWanted(stop)).await;
            }
        }
        None
    }

    async fn event(&mut self, event: Event) -> Option<u8> {
        let now = Instant::now();
        if let Event::Ready(id) = event {
            self.note_ready(id, now);
        }
        let before = self.lifecycle.state();
        let actions = self.lifecycle.on(now, event);
        debug!(?event, ?actions, "decided");
        let done = self.perform(actions).await;
        if let Event::Exited(id, exit) = event {
            self.forget(id, exit);
        }
        let state = self.lifecycle.state();
        if state != before {
            let generation = self.lifecycle.serving().map(GenerationId::number);
            info!(generation, "{}", state.as_str());
        }
        done
    }

    async fn perform(&mut self, actions: Vec<Action>) -> Option<u8> {
        for action in actions {
            match action {
                Action::Launch { id, from, .. } => self.prepare(id, from),
                Action::HandOver { from, to } => self.hand_over(from, to),
                Action::Drain(id) => self.signal(id, Signal::USR1, "draining"),
                Action::Terminate(id) => self.signal(id, Signal::TERM, "ending its sessions"),
                Action::Kill(id) => self.kill(id),
                Action::Pause(id) => self.signal(id, Signal::TTOU, "paused accepting"),
                Action::Resume(id) => self.signal(id, Signal::TTIN, "resumed accepting"),
                Action::Intercept => self.intercept().await,
                Action::StopIntercepting => self.stop_intercepting().await,
                Action::ReloadTaken { from, to } => self.reload_taken(from, to),
                Action::ReloadRefused { id, why } => self.reload_refused(id, why),
                Action::Crashed { id, exit, in_a_row, restart_in } => {
                    self.crashed(id, exit, in_a_row, restart_in);
                }
                Action::TearDown { status } => return Some(self.tear_down(status).await),
            }
        }
        None
    }

    fn send(&self, message: Message) {
        // The receiver is our own field.
        let _ = self.messages.send(message);
    }

    /// Whoever asked for a reload by now gets what this launch brings.
    fn prepare(&mut self, id: GenerationId, from: Option<GenerationId>) {
        let waiting = std::mem::take(&mut self.waiting);
        self.trying.insert(id, waiting);
        let mut running = Running {
            launched_at: Instant::now(),
            ready_after: None,
            handle: None,
            pid: None,
            runtime_socket: self.program.runtime_socket(id),
            words: Words::listen(),
            output: None,
            tasks: Vec::new(),
            listens: Vec::new(),
            handed_over: HandedOver::default(),
        };
        let Some(old) = from.and_then(|from| self.generations.get(&from)) else {
            self.generations.insert(id, running);
            return self.launch(id, None);
        };
        let (socket, program) = (old.runtime_socket.clone(), Rc::clone(&self.program));
        let messages = self.messages.clone();
        running.tasks.push(tokio::task::spawn_local(async move {
            if let Err(error) = save_server_state(&socket, program.state_file.path()).await {
                warn!(generation = id.number(), "server state was not saved: {error:#}");
            }
            let _ = messages.send(Message::Prepared { id, from });
        }));
        self.generations.insert(id, running);
    }

    fn launch(&mut self, id: GenerationId, from: Option<GenerationId>) {
        // The one to inherit from may have died while things were saved.
        let socket = from
            .and_then(|from| self.generations.get(&from))
            .filter(|old| old.handle.is_some())
            .map(|old| old.runtime_socket.clone());
        let Some(running) = self.generations.get_mut(&id) else { return };
        running.launched_at = Instant::now();
        match self.program.launch(id, socket.as_deref()) {
            Ok(launched) => self.launched(id, launched),
            Err(NotLaunched { exit, error }) => {
                error!(generation = id.number(), "HAProxy could not be started: {error:#}");
                running.words.hear(&format!("{error:#}"));
                self.send(Message::Event(Event::Exited(id, exit)));
            }
        }
    }

    fn launched(&mut self, id: GenerationId, launched: Launched) {
        let Launched { handle, runtime_socket, output } = launched;
        let Some(running) = self.generations.get_mut(&id) else { return };
        let pid = handle.pid();
        info!(generation = id.number(), pid, "started HAProxy");
        match follow(output, id, pid, running.words.clone()) {
            Ok(task) => running.output = Some(task),
            Err(error) => error!(generation = id.number(), "{error:#}"),
        }
        let messages = self.messages.clone();
        running.tasks.push(tokio::task::spawn_local(async move {
            ready(&runtime_socket, pid).await;
            let _ = messages.send(Message::Event(Event::Ready(id)));
        }));
        running.pid = Some(pid);
        running.handle = Some(handle);
    }

    fn note_ready(&mut self, id: GenerationId, now: Instant) {
        let Some(running) = self.generations.get_mut(&id) else { return };
        let after = now.duration_since(running.launched_at);
        running.ready_after = Some(after);
        info!(generation = id.number(), pid = running.pid, ms = milliseconds(after), "ready");
        // A reload looks at them when it hands over.
        if self.lifecycle.state() == StateName::Reloading {
            return;
        }
        let (messages, socket) = (self.messages.clone(), running.runtime_socket.clone());
        running.tasks.push(tokio::task::spawn_local(async move {
            match seen(&socket).await {
                Ok(listens) => drop(messages.send(Message::Listens(id, listens))),
                Err(error) => warn!(generation = id.number(), "{error:#}"),
            }
        }));
    }

    fn hand_over(&mut self, from: GenerationId, to: GenerationId) {
        let socket = |id| self.generations.get(&id).map(|r| r.runtime_socket.clone());
        let (Some(old), Some(new)) = (socket(from), socket(to)) else { return };
        let messages = self.messages.clone();
        let task = tokio::task::spawn_local(async move {
            let handed_over = hand_over(old, new).await;
            let _ = messages.send(Message::HandedOver(to, handed_over));
        });
        if let Some(running) = self.generations.get_mut(&to) {
            running.tasks.push(task);
        }
    }

    fn signal(&self, id: GenerationId, signal: Signal, doing: &str) {
        let Some(running) = self.generations.get(&id) else { return };
        info!(generation = id.number(), pid = running.pid, "{doing}");
        if let Some(handle) = &running.handle
            && let Err(error) = handle.signal(signal)
        {
            error!(generation = id.number(), "{error:#}");
        }
    }

    fn kill(&mut self, id: GenerationId) {
        let Some(running) = self.generations.get(&id) else { return };
        if running.pid.is_none() {
            // Not launched yet, and now it never will be.
            running.tasks.iter().for_each(JoinHandle::abort);
            return self.send(Message::Event(Event::Exited(id, Exit::Signal(9))));
        }
        self.signal(id, Signal::KILL, "killing");
    }

    fn child_ended(&mut self, pid: i32, exit: Exit) {
        let found = self.generations.iter_mut().find(|(_, running)| {
            running.handle.as_ref().is_some_and(|handle| handle.pid() == pid)
        });
        let Some((&id, running)) = found else {
            debug!(pid, %exit, "reaped an orphan");
            return;
        };
        running.handle = None;
        running.tasks.drain(..).for_each(|task| task.abort());
        let (output, messages) = (running.output.take(), self.messages.clone());
        // Its last words belong before the news of its death.
        tokio::task::spawn_local(async move {
            if let Some(output) = output {
                let _ = tokio::time::timeout(LAST_WORDS, output).await;
            }
            let _ = messages.send(Message::Event(Event::Exited(id, exit)));
        });
    }

    fn forget(&mut self, id: GenerationId, exit: Exit) {
        info!(generation = id.number(), %exit, "gone");
        self.program.forget(id);
        self.generations.remove(&id);
        self.trying.remove(&id);
    }

    async fn intercept(&mut self) {
        let Some(host) = &mut self.host else { return };
        if let Err(error) = host.intercept_on().await {
            error!("interception is off: {error:#}");
        }
    }

    async fn stop_intercepting(&mut self) {
        // A hanging iptables must not keep HAProxy from draining for long.
        let until = Instant::now() + (self.limits.stop / 5).min(HOST_LIMIT);
        let Some(host) = &mut self.host else { return };
        if let Err(error) = host.intercept_off(until).await {
            warn!("{error}; the tear-down will try again");
        }
    }

    async fn tear_down(&mut self, status: u8) -> u8 {
        let limit = Instant::now() + HOST_LIMIT.min(self.limits.stop);
        let until = self.lifecycle.stop_deadline().map_or(limit, |deadline| deadline.min(limit));
        let begin = Instant::now();
        let Some(host) = &mut self.host else { return status };
        match host.tear_down(until).await {
            Ok(()) => {
                info!(ms = milliseconds(begin.elapsed()), "the host is as it was");
                status
            }
            Err(error) => {
                error!("the host is not as it was: {error}; `hapilot sweep` tries again");
                if status == 0 { NOT_TORN_DOWN } else { status }
            }
        }
    }

    fn crashed(
        &self,
        id: GenerationId,
        exit: Exit,
        in_a_row: u32,
        restart_in: Option<Duration>,
    ) {
        let generation = id.number();
        match restart_in {
            Some(wait) => error!(
                generation, %exit, in_a_row, restart_in_ms = milliseconds(wait),
                "HAProxy crashed; it is started again"
            ),
            None => error!(generation, %exit, in_a_row, "HAProxy crashed; ending"),
        }
    }

    fn reload_taken(&mut self, from: GenerationId, to: GenerationId) {
        let mut receipt = self.receipt(Some(to), None);
        receipt.from_generation = Some(from.number());
        receipt.from_pid = self.generations.get(&from).and_then(Running::pid);
        if let Some(running) = self.generations.get_mut(&to) {
            let handed_over = &running.handed_over;
            receipt.listeners = handed_over.listeners.clone();
            receipt.carried_over.clone_from(&handed_over.carried_over);
            receipt.warnings.clone_from(&handed_over.warnings);
        }
        for warning in &receipt.warnings {
            warn!(generation = to.number(), "{warning}");
        }
        info!("reload {receipt}");
        self.answer(Some(to), receipt);
    }

    fn reload_refused(&mut self, id: Option<GenerationId>, why: Refusal) {
        let ready = humantime::format_duration(self.limits.ready);
        let reason = match why {
            Refusal::Died(exit) => format!("the new HAProxy ended with {exit}"),
            Refusal::NotReady => format!("the new HAProxy was not ready within {ready}"),
            Refusal::Paused => "accepting is paused; resume it with SIGTTIN first".to_owned(),
            Refusal::Stopping => "hapilot is stopping".to_owned(),
        };
        let mut receipt = self.receipt(id, Some(reason));
        let serving = self.lifecycle.serving();
        receipt.from_generation = serving.map(GenerationId::number);
        receipt.from_pid =
            serving.and_then(|id| self.generations.get(&id)).and_then(Running::pid);
        warn!("reload {receipt}");
        self.answer(id, receipt);
    }

    fn receipt(&self, to: Option<GenerationId>, reason: Option<String>) -> Receipt {
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut receipt = match reason {
            Some(reason) => Receipt::refused(at, reason),
            None => Receipt::taken(at),
        };
        receipt.to_generation = to.map(GenerationId::number);
        if let Some(running) = to.and_then(|to| self.generations.get(&to)) {
            receipt.to_pid = running.pid;
            receipt.ready_ms = running.ready_after.map(milliseconds);
            receipt.haproxy = running.words.take();
        }
        receipt
    }

    fn answer(&mut self, id: Option<GenerationId>, receipt: Receipt) {
        let waiting = match id {
            Some(id) => self.trying.remove(&id).unwrap_or_default(),
            None => std::mem::take(&mut self.waiting),
        };
        for answer in waiting {
            let _ = answer.send(Answer::Reload(Box::new(receipt.clone())));
        }
        self.last_reload = Some(receipt);
    }

    pub(super) fn phase_of(phase: Phase) -> &'static str {
        match phase {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Draining => "draining",
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
