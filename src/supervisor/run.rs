//! Acts: carries out what `lifecycle` decides and tells it what happened.
//!
//! One loop on one thread. Whatever may take time runs as a task beside it and ends as a message,
//! so a signal is heard in every state; only the host's set-up and tear-down are waited for, each
//! with a bound.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use super::generations::Running;
use super::guarding::{Came, Policy};
use super::lifecycle::{Action, Event, Lifecycle, Limits, Why};
use super::reaper::reap;
use super::signals::{Heard, Signals};
use crate::control::protocol::{Answer, Request};
use crate::control::server::Asked;
use crate::handover::fitness::unfit;
use crate::handover::guard::{Guard, Outcome};
use crate::handover::receipt::Receipt;
use crate::handover::reload::HandedOver;
use crate::haproxy::configuration_files::Copies;
use crate::haproxy::generation::GenerationId;
use crate::haproxy::judge::Judge;
use crate::haproxy::launch::Program;
use crate::host::Host;
use crate::listeners::fetch::Listener;
use crate::listeners::keeper::Keeper;
use crate::logging::LAST_WORDS;

/// For host changes outside the stop deadline.
const HOST_LIMIT: Duration = Duration::from_secs(10);
const PUT_BACK_LIMIT: Duration = Duration::from_secs(1);
/// Our own bug, or a host that could not be given back.
const SOFTWARE: u8 = 70;
/// The host lacks something.
const UNAVAILABLE: u8 = 69;

/// What a task beside the loop has to say.
#[derive(Debug)]
pub(super) enum Message {
    Event(Event),
    /// What had to be saved before the launch is saved.
    Prepared(GenerationId),
    /// Its runtime socket answered; `None` where it did not say what it listens on.
    Ready(GenerationId, Option<Vec<Listener>>),
    HandedOver(GenerationId, HandedOver),
    /// A guard's steps, each with whether it came to what was waited for.
    Settled(GenerationId, Came),
    ListenersGone(GenerationId, Came),
    GuardDone(GenerationId, Outcome),
}

#[derive(Debug)]
pub struct Supervisor {
    pub(super) program: Rc<Program>,
    pub(super) judge: Judge,
    pub(super) lifecycle: Lifecycle,
    pub(super) generations: BTreeMap<GenerationId, Running>,
    pub(super) host: Option<Host>,
    pub(super) keeper: Keeper,
    pub(super) policy: Policy,
    pub(super) guard: Option<Guard>,
    /// A guard that is down and being tidied up.
    pub(super) lowering: Option<JoinHandle<()>>,
    pub(super) last_reload: Option<Receipt>,
    /// The configuration of the generation that was ready last.
    pub(super) last_good: Option<Copies>,
    pub(super) identity: Identity,
    pub(super) limits: Limits,
    /// Whoever waits for the next launch, and for the outcome of one.
    pub(super) waiting: Vec<oneshot::Sender<Answer>>,
    pub(super) trying: BTreeMap<GenerationId, Vec<oneshot::Sender<Answer>>>,
    pub(super) messages: mpsc::UnboundedSender<Message>,
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
    pub judge: Judge,
    pub limits: Limits,
    pub host: Option<Host>,
    pub keeper: Keeper,
    pub policy: Policy,
    pub identity: Identity,
}

/// Runs until everything is given back; the answer is the exit status.
pub async fn run(setting: Setting, signals: Signals, asked: mpsc::UnboundedReceiver<Asked>) -> u8 {
    let (mut supervisor, first) = Supervisor::new(setting);
    let served = AssertUnwindSafe(supervisor.serve(first, signals, asked)).catch_unwind().await;
    match served {
        Ok(status) => status,
        // The panic is on stderr; the host is given back all the same.
        Err(_) => supervisor.abandon().await,
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
        let Setting { program, judge, limits, host, keeper, policy, identity } = setting;
        let (lifecycle, first) = Lifecycle::start(Instant::now(), limits);
        let (messages, inbox) = mpsc::unbounded_channel();
        let supervisor = Self {
            program: Rc::new(program),
            judge,
            lifecycle,
            generations: BTreeMap::new(),
            host,
            keeper,
            policy,
            guard: None,
            lowering: None,
            last_reload: None,
            last_good: None,
            identity,
            limits,
            waiting: Vec::new(),
            trying: BTreeMap::new(),
            messages,
            inbox,
        };
        (supervisor, first)
    }

    async fn serve(
        &mut self,
        first: Vec<Action>,
        mut signals: Signals,
        mut asked: mpsc::UnboundedReceiver<Asked>,
    ) -> u8 {
        let mut done = self.perform(first).await;
        loop {
            if let Some(status) = done {
                return status;
            }
            let wake_at = self.lifecycle.wake_at();
            done = tokio::select! {
                biased;
                heard = signals.next() => self.heard(heard).await,
                Some(message) = self.inbox.recv() => self.message(message).await,
                () = until(wake_at) => self.event(Event::Tick).await,
                Some(asked) = asked.recv() => self.asked(asked).await,
            };
        }
    }

    async fn abandon(&mut self) -> u8 {
        error!("hapilot failed, which is a bug; ending HAProxy and giving the host back");
        if let Some(guard) = self.guard.take() {
            drop(guard.lower());
        }
        for id in self.generations.keys() {
            self.signal(*id, Signal::KILL, "killing");
        }
        self.tear_down(SOFTWARE).await
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
            Message::Prepared(id) => self.launch(id),
            Message::Ready(id, listeners) => return self.ready(id, listeners).await,
            Message::HandedOver(id, handed_over) => {
                // It died meanwhile and the news is on its way: the old one must not drain for it.
                if self.generations.get(&id)?.is_gone() {
                    return None;
                }
                let sharing = self.decide(id, handed_over);
                return self.event(Event::HandedOver(id, sharing)).await;
            }
            Message::Settled(id, came) => {
                if self.generations.get(&id)?.is_gone() {
                    return None;
                }
                self.note_settled(id, came);
                return self.event(Event::Settled(id)).await;
            }
            Message::ListenersGone(id, came) => {
                self.note_gone(id, came);
                return self.event(Event::ListenersGone(id)).await;
            }
            Message::GuardDone(id, outcome) => {
                self.note_outcome(id, outcome);
                return self.event(Event::GuardDone(id)).await;
            }
        }
        None
    }

    /// One that would serve nobody is not ready, whatever it says itself.
    async fn ready(&mut self, id: GenerationId, listeners: Option<Vec<Listener>>) -> Option<u8> {
        let seen: Option<Vec<_>> =
            listeners.as_ref().map(|listeners| listeners.iter().map(Listener::seen).collect());
        if let Some(reason) = seen.and_then(|seen| unfit(&seen, &self.policy.intercept)) {
            self.reject(id, &reason);
            return None;
        }
        let done = self.event(Event::Ready(id)).await;
        // A reload looks again when it hands over.
        if let Some(listeners) = listeners
            && self.lifecycle.serving() == Some(id)
        {
            self.keep(id, listeners);
        }
        done
    }

    async fn asked(&mut self, asked: Asked) -> Option<u8> {
        let Asked { request, answer } = asked;
        match request {
            Request::Status => {
                // Whoever asked may have left; so for every answer below.
                let _ = answer.send(Answer::Status(Box::new(self.status())));
            }
            Request::Health => {
                self.answer_health(answer);
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
        if let Event::Exited(id, exit) = event {
            info!(generation = id.number(), %exit, "gone");
        }
        let before = self.lifecycle.state();
        let actions = self.lifecycle.on(now, event);
        debug!(?event, ?actions, "decided");
        let done = self.perform(actions).await;
        if let Event::Exited(id, _) = event {
            self.forget(id);
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
                Action::Launch { id, from, why } => {
                    if why == Why::Reload {
                        self.put_back().await;
                    }
                    self.prepare(id, from, why);
                }
                Action::HandOver { from, to } => self.hand_over(from, to),
                Action::RaiseGuard(id) => self.raise_guard(id).await,
                Action::Keep(id) => self.keep_fresh(id),
                Action::WatchListeners(id) => self.watch_listeners(id),
                Action::LowerGuard(id) => self.lower_guard(id),
                Action::Drain(id) => self.signal(id, Signal::USR1, "draining"),
                Action::Terminate(id) => self.signal(id, Signal::TERM, "ending its sessions"),
                Action::Kill(id) => self.kill(id),
                Action::Pause(id) => self.signal(id, Signal::TTOU, "paused accepting"),
                Action::Resume(id) => self.signal(id, Signal::TTIN, "resumed accepting"),
                Action::Intercept => self.intercept().await,
                Action::StopIntercepting => self.stop_intercepting().await,
                Action::CloseKeeper => self.keeper.close(),
                Action::ReloadTaken { from, to } => self.reload_taken(from, to),
                Action::ReloadRefused { id, why } => self.reload_refused(id, why),
                Action::Crashed { id, exit, in_a_row, restart_in } => {
                    Self::crashed(id, exit, in_a_row, restart_in);
                }
                Action::TearDown { status } => return Some(self.tear_down(status).await),
            }
        }
        None
    }

    pub(super) fn send(&self, message: Message) {
        // The receiver is our own field.
        let _ = self.messages.send(message);
    }

    async fn intercept(&mut self) {
        let Some(host) = &mut self.host else { return };
        if let Err(error) = host.intercept_on().await {
            error!("interception cannot be set up: {error:#}");
            self.send(Message::Event(Event::HostFailed { status: UNAVAILABLE }));
        }
    }

    /// A reload is also when an operator expects that what somebody flushed is there again.
    async fn put_back(&mut self) {
        // No signal is heard meanwhile, and a stop must not be late for a hanging iptables.
        let until = Instant::now() + (self.limits.stop / 10).min(PUT_BACK_LIMIT);
        let Some(host) = &mut self.host else { return };
        match host.put_back(until).await {
            Ok(places) => {
                for place in places {
                    warn!(%place, "somebody had removed rules of ours; they are back");
                }
            }
            Err(error) => error!("what is missing on the host was not put back: {error:#}"),
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
        // The end of the deadline is for the last words, should nobody read them.
        let until = self.lifecycle.stop_deadline().and_then(|at| at.checked_sub(2 * LAST_WORDS));
        let until = until.map_or(limit, |until| until.min(limit));
        let begin = Instant::now();
        self.finish_lowering().await;
        let Some(host) = &mut self.host else {
            return status;
        };
        match host.tear_down(until).await {
            Ok(()) => {
                info!(ms = milliseconds(begin.elapsed()), "the host is as it was");
                status
            }
            Err(error) => {
                error!("the host is not as it was: {error}; `hapilot sweep` tries again");
                if status == 0 { SOFTWARE } else { status }
            }
        }
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
