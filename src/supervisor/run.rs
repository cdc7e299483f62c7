//! Acts: carries out what `lifecycle` decides and tells it what happened.
//!
//! One loop on one thread. Whatever may take time runs beside it, as a task or on a thread of its own,
//! and ends as a message. So a signal is heard in every state, and nothing in here is `async` but the
//! loop itself: what it does upon an event cannot wait.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use rustix::process::Signal;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use super::census::Census;
use super::drift::{Drift, Look};
use super::generations::Running;
use super::guarding::{Came, Policy, Raising};
use super::lifecycle::{Action, Event, Lifecycle, Limits, Phase, StateName};
use super::neighbours::Neighbours;
use super::reaper::reap;
use super::relief::Guest;
use super::saving::Saving;
use super::signals::{Heard, Signals};
use super::takeover::TakingOver;
use crate::control::door::{Door, Way};
use crate::control::metrics::Metrics;
use crate::control::protocol::{Answer, ReloadStatus, Request};
use crate::control::server::Asked;
use crate::handover::fitness::unfit;
use crate::handover::guard::{Guard, Outcome};
use crate::handover::receipt::Receipt;
use crate::handover::reload::HandedOver;
use crate::handover::takeover::door::{Facts, Knock, Visit};
use crate::handover::takeover::find::{Found, Hindered};
use crate::handover::takeover::predecessor::Told;
use crate::handover::takeover::protocol;
use crate::handover::takeover::receipt::Takeover;
use crate::haproxy::configuration_files::Copies;
use crate::haproxy::generation::GenerationId;
use crate::haproxy::judge::Judge;
use crate::haproxy::launch::Program;
use crate::haproxy::server_state::Servers;
use crate::haproxy::starved;
use crate::host::TearDownError;
use crate::host::orders::{Orders, TornDown};
use crate::host::watch::Changed;
use crate::listeners::fetch::Listener;
use crate::listeners::keeper::Keeper;
use crate::logging::Log;
use crate::process::handle::Handle;
use crate::process::last_resort;
use crate::process::rights::keep_what_is_needed;
use crate::syslog::socket::Syslog;
use crate::watch::Watch;

/// For host changes outside the stop deadline.
const HOST_LIMIT: Duration = Duration::from_secs(10);
pub(super) const PUT_BACK_LIMIT: Duration = Duration::from_secs(1);
/// When an interception that could not be ended is tried again, and how late at most.
const OFF_AGAIN_FIRST: Duration = Duration::from_millis(100);
const OFF_AGAIN_MOST: Duration = Duration::from_mins(1);
/// Our own bug, or a host that could not be given back.
const SOFTWARE: u8 = 70;
/// The host lacks something.
pub(super) const UNAVAILABLE: u8 = 69;

/// What a task beside the loop has to say.
#[derive(Debug)]
pub(super) enum Message {
    Event(Event),
    /// A step of making room, with whether it came to what was waited for.
    Room(Event, Came),
    /// What had to be saved before the launch is saved.
    Prepared(GenerationId, Servers),
    /// Its runtime socket answered, and said what it listens on, or did not.
    Ready(GenerationId, anyhow::Result<Vec<Listener>>),
    /// Another process than the one that was launched answered for it: its worker.
    Worker(GenerationId, anyhow::Result<Handle>),
    WorkerEnded(GenerationId),
    /// It will never be known whether that one is ready.
    Unready(GenerationId),
    /// It waits for threads that it cannot have.
    Starved(GenerationId),
    /// What follows beside the listeners.
    HandedOver(GenerationId, HandedOver),
    /// A guard is up, or none could be raised.
    Raised(GenerationId),
    /// A guard's steps, each with whether it came to what was waited for.
    Settled(GenerationId, Came),
    ListenersGone(GenerationId, Came),
    GuardDone(GenerationId, Outcome),
    /// Those whom we are to relieve.
    Found(Result<Found, Hindered>),
    /// What becomes of one of them.
    Told(usize, Told),
    /// Somebody may have removed something of ours from the host.
    HostChanged(Changed),
    /// Somebody who was before us died, and may have left something on the host.
    SweepWanted,
    /// Our interception is still there, though a successor serves.
    StillIntercepting {
        again_in: Duration,
    },
    /// It is off, or was not to be had off in time.
    InterceptionOff,
    /// What a look at the host came to.
    Looked(Look),
    /// Another process may have begun to listen where we do.
    LookBeside,
    /// A successor may relieve us; these connections are left.
    MayRetire(Visit, mpsc::UnboundedSender<protocol::Answer>, Option<u64>),
    /// So many are left to the generations that drain.
    Draining(Option<u64>),
    /// It is told which sessions that generation has: now they may be cut.
    Counted(GenerationId),
    /// The end: what the tear-down came to.
    TornDown {
        status: u8,
        took: Duration,
        torn_down: TornDown,
    },
}

#[derive(Debug)]
pub struct Supervisor {
    pub(super) program: Rc<Program>,
    pub(super) judge: Judge,
    /// What was warned of at the last launch: nothing is said again as long as it stays.
    pub(super) warned: Vec<String>,
    pub(super) lifecycle: Lifecycle,
    pub(super) generations: BTreeMap<GenerationId, Running>,
    pub(super) host: Orders,
    /// Those that wait for the interception to be off.
    held_back: Option<Vec<Action>>,
    pub(super) keeper: Keeper,
    pub(super) policy: Policy,
    pub(super) guard: Option<Guard>,
    pub(super) raising: Option<Raising>,
    /// A guard that is on its way down, or down and being tidied up.
    pub(super) lowering: Option<JoinHandle<()>>,
    pub(super) last_reload: Option<Receipt>,
    /// The last first.
    pub(super) reloads: VecDeque<ReloadStatus>,
    pub(super) taking_over: TakingOver,
    pub(super) last_takeover: Option<Takeover>,
    /// What is told at the door of us.
    pub(super) facts: Facts,
    /// The successor that we hold still for.
    pub(super) guest: Option<Guest>,
    /// Whoever relieved us and waits for our end.
    pub(super) watchers: Vec<mpsc::UnboundedSender<protocol::Answer>>,
    /// The configuration of the generation that was ready last.
    pub(super) last_good: Option<Copies>,
    /// The digest of its text.
    pub(super) served: Option<u64>,
    pub(super) saving: Saving,
    pub(super) drift: Drift,
    pub(super) identity: Identity,
    pub(super) limits: Limits,
    pub(super) metrics: Rc<Metrics>,
    pub(super) census: Census,
    pub(super) log: Log,
    pub(super) started: SystemTime,
    pub(super) door: Door,
    pub(super) syslog: Syslog,
    pub(super) watch: Option<Watch>,
    pub(super) neighbours: Neighbours,
    /// While stopping: when to say again what is waited for.
    pub(super) tell_again_at: Option<Instant>,
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
    /// Of the host, found at the start.
    pub warnings: Vec<String>,
}

#[derive(Debug)]
pub struct Setting {
    pub program: Program,
    pub judge: Judge,
    pub limits: Limits,
    pub host: Orders,
    pub keeper: Keeper,
    pub policy: Policy,
    pub identity: Identity,
    pub metrics: Metrics,
    pub log: Log,
    pub door: Door,
    pub syslog: Syslog,
    pub watch: Option<Watch>,
    pub taking_over: TakingOver,
    pub facts: Facts,
}

/// What others may ask of us while we run.
#[derive(Debug)]
pub struct Requests {
    pub signals: Signals,
    /// Over the control socket.
    pub asked: mpsc::UnboundedReceiver<Asked>,
    /// At the successor's door.
    pub knocks: mpsc::UnboundedReceiver<Knock>,
}

/// Runs until everything is given back; the answer is the exit status.
pub async fn run(setting: Setting, mut requests: Requests) -> u8 {
    let (mut supervisor, first) = Supervisor::new(setting);
    let begin = |supervisor: &mut Supervisor| {
        supervisor.watch_host();
        supervisor.perform(first);
    };
    let mut ended = supervisor.survive(begin, &mut requests).await;
    if ended.is_none() {
        let rest = supervisor.salvage();
        ended = supervisor.survive(|supervisor| supervisor.perform(rest), &mut requests).await;
    }
    let Ended { status, hangs } = match ended {
        Some(ended) => ended,
        None => supervisor.abandon().await,
    };
    if hangs {
        error!("a change of the host hangs: what is left of it is swept by this process anew");
        supervisor.log.finish();
        last_resort::begin();
    }
    status
}

/// All is over.
#[derive(Clone, Copy, Debug)]
struct Ended {
    status: u8,
    /// A thread is still changing the host.
    hangs: bool,
}

/// Runs beside the loop and ends as a message; where it panics, as the other one: nothing waits for a
/// message that does not come. The panic is on stderr.
pub(super) fn beside(
    messages: &mpsc::UnboundedSender<Message>,
    task: impl Future<Output = Message> + 'static,
    or: Message,
) -> JoinHandle<()> {
    let messages = messages.clone();
    tokio::task::spawn_local(async move {
        let message = AssertUnwindSafe(task).catch_unwind().await.unwrap_or(or);
        // The receiver is gone once the loop has ended.
        let _ = messages.send(message);
    })
}

async fn stirred(watch: Option<&mut Watch>) {
    match watch {
        Some(watch) => watch.stirred().await,
        None => std::future::pending().await,
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
        let Setting { program, judge, limits, host, keeper, policy, identity, .. } = setting;
        let Setting { metrics, log, door, syslog, watch, taking_over, facts, .. } = setting;
        let (lifecycle, first) = Lifecycle::start(Instant::now(), limits, taking_over.birth());
        let (messages, inbox) = mpsc::unbounded_channel();
        let supervisor = Self {
            program: Rc::new(program),
            judge,
            warned: Vec::new(),
            lifecycle,
            generations: BTreeMap::new(),
            host,
            held_back: None,
            keeper,
            policy,
            guard: None,
            raising: None,
            lowering: None,
            last_reload: None,
            reloads: VecDeque::new(),
            taking_over,
            last_takeover: None,
            facts,
            guest: None,
            watchers: Vec::new(),
            last_good: None,
            served: None,
            saving: Saving::default(),
            drift: Drift::default(),
            identity,
            limits,
            metrics: Rc::new(metrics),
            census: Census::default(),
            log,
            started: SystemTime::now(),
            door,
            syslog,
            watch,
            neighbours: Neighbours::default(),
            tell_again_at: None,
            waiting: Vec::new(),
            trying: BTreeMap::new(),
            messages,
            inbox,
        };
        (supervisor, first)
    }

    /// `None`: it panicked, which is on stderr.
    async fn survive(
        &mut self,
        begin: impl FnOnce(&mut Self),
        requests: &mut Requests,
    ) -> Option<Ended> {
        AssertUnwindSafe(self.serve(begin, requests)).catch_unwind().await.ok()
    }

    async fn serve(&mut self, begin: impl FnOnce(&mut Self), requests: &mut Requests) -> Ended {
        let Requests { signals, asked, knocks } = requests;
        begin(self);
        loop {
            let (wake_at, tell_at) = (self.lifecycle.wake_at(), self.tell_again_at);
            let look_at = self.watch.as_ref().and_then(Watch::look_at);
            tokio::select! {
                biased;
                heard = signals.next() => self.heard(heard),
                Some(message) = self.inbox.recv() => {
                    if let Some(ended) = self.message(message) {
                        return ended;
                    }
                }
                () = until(wake_at) => self.event(Event::Tick),
                Some(asked) = asked.recv() => self.asked(asked),
                Some(knock) = knocks.recv() => self.knocked(knock),
                () = until(tell_at) => self.tell_of_sessions(),
                () = stirred(self.watch.as_mut()) => self.stir(),
                () = until(look_at) => self.look_for_changes(),
            }
        }
    }

    fn stir(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.stir(Instant::now());
        }
    }

    fn look_for_changes(&mut self) {
        let changes = self.watch.as_mut().map(|watch| watch.changes(&self.judge));
        let changes = changes.unwrap_or_default();
        let Some(first) = changes.first().map(|first| first.display().to_string()) else { return };
        if matches!(self.lifecycle.state(), StateName::Stopping | StateName::Relieved) {
            return;
        }
        info!(changes = changes.len(), first, "the configuration changed: reloading");
        self.event(Event::ReloadWanted);
    }

    /// After a panic of the loop: what serves drains within the stop deadline, as in any stop.
    fn salvage(&mut self) -> Vec<Action> {
        error!("hapilot failed, which is a bug; HAProxy drains, then the host is given back");
        // Nobody can be told any more what becomes of it.
        self.waiting.clear();
        self.trying.clear();
        self.generations.retain(|_, running| !running.is_gone());
        if self.guard.is_some() || self.raising.is_some() {
            self.lower_guard(GenerationId::FIRST);
        }
        self.spare();
        self.watch = None;
        self.held_back = None;
        let alive = self.generations.iter().map(|(id, running)| {
            let accepts = running.ready_after.is_some();
            (*id, if accepts { Phase::Serving } else { Phase::Starting })
        });
        let now = Instant::now();
        let (lifecycle, actions) = Lifecycle::salvage(now, self.limits, alive, SOFTWARE);
        self.lifecycle = lifecycle;
        StateName::Stopping.as_str().clone_into(&mut self.facts.borrow_mut().state);
        last_resort::arm();
        actions
    }

    /// After one more: the short way.
    async fn abandon(&mut self) -> Ended {
        error!("hapilot failed once more; ending HAProxy and giving the host back");
        for id in self.generations.keys() {
            self.signal(*id, Signal::KILL, "killing");
        }
        self.tear_down(SOFTWARE);
        loop {
            match self.inbox.recv().await {
                Some(Message::TornDown { status, took, torn_down }) => {
                    return self.torn_down(status, took, torn_down);
                }
                Some(_) => {}
                // Its other end is ours.
                None => return Ended { status: SOFTWARE, hangs: false },
            }
        }
    }

    fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Child => {
                let generations = self.generations.values();
                let known: Vec<i32> = generations.filter_map(Running::child).collect();
                for (pid, exit) in reap(&known) {
                    self.child_ended(pid, exit);
                }
            }
            Heard::Wish(signal, event) => {
                info!(signal, "signal received");
                self.event(event);
            }
        }
    }

    fn message(&mut self, message: Message) -> Option<Ended> {
        match message {
            Message::Event(event) => {
                let event = self.explain(event);
                self.event(event);
            }
            Message::Room(event, came) => {
                let event = self.room_news(event, came);
                self.event(event);
            }
            Message::Prepared(id, known) => {
                self.prepared(id, known);
                // An operator expects that what somebody flushed is there after a reload. And while
                // HAProxy reads its configuration nobody waits for it.
                if self.generations.get(&id).is_some_and(Running::is_reload) {
                    self.event(Event::LookWanted);
                }
            }
            Message::Worker(id, worker) => self.worker(id, worker),
            Message::WorkerEnded(id) => self.worker_ended(id),
            Message::Starved(id) => self.reject(id, starved::WHY),
            Message::Ready(id, listeners) => self.ready(id, listeners),
            Message::Unready(id) => {
                self.reject(id, "hapilot failed to wait for it, which is a bug");
            }
            Message::HandedOver(id, rest) => {
                let event = self.handed_over(id, rest)?;
                self.event(event);
            }
            Message::Raised(id) => self.raised(id),
            Message::Settled(id, came) => {
                if self.generations.get(&id)?.is_gone() {
                    return None;
                }
                self.note_settled(id, came);
                self.event(Event::Settled(id));
            }
            Message::ListenersGone(id, came) => {
                self.note_gone(id, came);
                self.event(Event::ListenersGone(id));
            }
            Message::GuardDone(id, outcome) => {
                self.note_outcome(id, outcome);
                self.event(Event::GuardDone(id));
            }
            Message::Found(found) => self.found(found),
            Message::Told(at, told) => self.told(at, &told),
            Message::HostChanged(changed) => {
                let event = self.host_changed(changed);
                self.event(event);
            }
            Message::SweepWanted => self.sweep_after_the_dead(),
            // Any other stop is about to tear it down.
            Message::StillIntercepting { again_in } => {
                if self.lifecycle.state() == StateName::Relieved {
                    self.stop_intercepting(again_in);
                }
            }
            Message::InterceptionOff => {
                let held_back = self.held_back.take().unwrap_or_default();
                self.perform(held_back);
            }
            Message::Looked(look) => self.looked(look),
            Message::LookBeside => self.warn_of_others_beside(),
            Message::MayRetire(visit, answers, sessions) => self.retire(visit, answers, sessions),
            Message::Draining(sessions) => {
                self.tell_watchers(&protocol::Answer::Draining { sessions });
            }
            Message::Counted(id) => self.cut(id),
            Message::TornDown { status, took, torn_down } => {
                return Some(self.torn_down(status, took, torn_down));
            }
        }
        None
    }

    /// One that would serve nobody is not ready, whatever it says itself.
    fn ready(&mut self, id: GenerationId, listeners: anyhow::Result<Vec<Listener>>) {
        let Some(running) = self.generations.get_mut(&id) else { return };
        match listeners {
            Ok(listeners) => running.handed_over.fresh = Some(listeners),
            Err(error) => {
                warn!(generation = id.number(), "{error:#}");
                running.handed_over.warnings.push(format!("{error:#}"));
            }
        }
        let seen = running.handed_over.seen();
        if let Some(reason) = seen.and_then(|seen| unfit(&seen, &self.policy.intercept)) {
            return self.reject(id, &reason);
        }
        self.event(Event::Ready(id));
        // A reload and a take-over keep them once nothing can go back to those before.
        if self.lifecycle.serving() == Some(id)
            && !self.has_predecessors()
            && let Some(running) = self.generations.get_mut(&id)
            && let Some(listeners) = running.handed_over.fresh.take()
        {
            self.keep(id, listeners);
            self.warn_of_others_beside();
        }
    }

    fn asked(&mut self, asked: Asked) {
        let Asked { request, answer } = asked;
        match request {
            Request::Status => self.answer_status(answer),
            Request::Health => {
                self.answer_health(answer);
            }
            Request::Metrics => self.answer_metrics(answer),
            Request::Sessions => self.answer_sessions(answer),
            Request::Runtime { generation, words } => {
                self.answer_runtime(generation, &words, answer);
            }
            Request::Reload => {
                info!("reload asked for over the control socket");
                self.waiting.push(answer);
                self.event(Event::ReloadWanted);
            }
            Request::Stop => {
                info!("stop asked for over the control socket");
                // Whoever asked may have left.
                let _ = answer.send(Answer::Stopping);
                let stop = super::lifecycle::Stop::Graceful;
                self.event(Event::StopWanted(stop));
            }
        }
    }

    pub(super) fn event(&mut self, event: Event) {
        let now = Instant::now();
        if let Event::Ready(id) = event {
            self.note_ready(id, now);
        }
        if let Event::Exited(id, exit) | Event::Blocked(id, exit) = event {
            info!(generation = id.number(), %exit, "gone");
        }
        let before = self.lifecycle.state();
        let actions = self.lifecycle.on(now, event);
        debug!(?event, ?actions, "decided");
        self.point_the_way();
        if matches!(event, Event::ResumeWanted | Event::ReserveEnded) {
            // What changed meanwhile was refused for that.
            self.stir();
        }
        self.perform(actions);
        if let Event::Exited(id, _) | Event::Blocked(id, _) = event {
            self.forget(id);
            self.tell_watchers_of_sessions();
        }
        self.save_what_serves();
        let state = self.lifecycle.state();
        if state != before {
            state.as_str().clone_into(&mut self.facts.borrow_mut().state);
            if state != StateName::Stopped {
                let generation = self.lifecycle.serving().map(GenerationId::number);
                info!(generation, "{}", state.as_str());
            }
            match state {
                StateName::Serving => self.look_into_nobody(),
                StateName::Stopping => {
                    // However it was asked for; a signal has done so already.
                    last_resort::arm();
                    self.tell_of_sessions();
                }
                _ => {}
            }
        }
    }

    /// Before the old one is told to drain: from then on it answers nobody who is new.
    fn point_the_way(&self) {
        let serving = self.lifecycle.serving().and_then(|id| self.generations.get(&id));
        self.door.lead(match (serving, self.lifecycle.state()) {
            (Some(running), _) => Way::To(running.runtime_socket.clone()),
            (None, StateName::Stopping | StateName::Stopped) => Way::NoMore,
            (None, _) => Way::NotYet,
        });
    }

    /// Whoever was to be relieved is, and among the host's processes this right reaches far.
    fn look_into_nobody(&mut self) {
        let program = Rc::make_mut(&mut self.program);
        if !std::mem::take(&mut program.needs.relieve) {
            return;
        }
        if let Err(error) = keep_what_is_needed(program.needs, &program.binary) {
            error!("{error:#}");
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            if let (Action::CloseKeeper | Action::Drain(_), Some(held_back)) =
                (action, &mut self.held_back)
            {
                held_back.push(action);
                continue;
            }
            match action {
                Action::Launch { id, from, why } => {
                    self.prepare(id, from, why);
                }
                Action::FindPredecessors => self.find_predecessors(),
                Action::TakeOver(id) => self.compare_with_predecessors(id),
                Action::Relieve => self.relieve(),
                Action::Spare => self.spare(),
                Action::GuardRoom(id) => self.guard_room(id),
                Action::PausePredecessors => self.pause_predecessors(),
                Action::AwaitReturn => self.await_return(),
                Action::TakenOver(id) => self.taken_over(id),
                Action::Reserved => {
                    let paused = self.lifecycle.is_paused();
                    self.answer_successor(protocol::Answer::Reserved { paused });
                }
                Action::NotReserved => {
                    let reason = "it is stopping".to_owned();
                    self.answer_successor(protocol::Answer::Refused { reason, by: None });
                }
                Action::HandOver { from, to } => self.hand_over(from, to),
                Action::RaiseGuard(id) => self.raise_guard(id),
                Action::Keep(id) => self.keep_fresh(id),
                Action::WatchListeners(id) => self.watch_listeners(id),
                Action::LowerGuard(id) => self.lower_guard(id),
                Action::Drain(id) => self.drain(id),
                Action::Terminate(id) => self.prepare_cut(id),
                Action::Kill(id) => self.kill(id),
                Action::Pause(id) => self.signal(id, Signal::TTOU, "paused accepting"),
                Action::Resume(id) => self.signal(id, Signal::TTIN, "resumed accepting"),
                Action::Intercept => self.intercept(),
                Action::PutBack => self.put_back(),
                Action::Contested { times } => warn!(
                    times,
                    "somebody removes parts of ours from the host again and again; from now on \
                     they are put back later each time, up to a minute"
                ),
                Action::StopIntercepting => {
                    if self.stop_intercepting(OFF_AGAIN_FIRST) {
                        self.held_back = Some(Vec::new());
                    }
                }
                Action::CloseKeeper => self.keeper.close(),
                Action::ReloadTaken { from, to } => self.reload_taken(from, to),
                Action::ReloadRefused { id, why } => self.reload_refused(id, why),
                Action::Crashed { id, exit, in_a_row, restart_in } => {
                    self.saving.lost();
                    Self::crashed(id, exit, in_a_row, restart_in);
                }
                Action::NotStarted { id, exit, in_a_row, again_in } => {
                    Self::not_started(id, exit, in_a_row, again_in);
                }
                Action::TearDown { status } => self.tear_down(status),
            }
        }
    }

    pub(super) fn send(&self, message: Message) {
        // The receiver is our own field.
        let _ = self.messages.send(message);
    }

    pub(super) fn beside(
        &self,
        task: impl Future<Output = Message> + 'static,
        or: Message,
    ) -> JoinHandle<()> {
        beside(&self.messages, task, or)
    }

    fn intercept(&self) {
        let (host, until) = (self.host.clone(), Instant::now() + HOST_LIMIT);
        let on = async move {
            Message::Event(match host.intercept_on(until).await {
                Ok(()) => Event::Intercepted,
                Err(error) => {
                    error!("interception cannot be set up: {error:#}");
                    Event::HostFailed { status: UNAVAILABLE }
                }
            })
        };
        self.beside(on, Message::Event(Event::HostFailed { status: SOFTWARE }));
    }

    /// A hanging iptables must not keep HAProxy from draining for long.
    pub(super) fn host_until(&self) -> Instant {
        Instant::now() + (self.limits.stop / 5).min(HOST_LIMIT)
    }

    /// Whether there is anything to be waited for.
    fn stop_intercepting(&self, again_in: Duration) -> bool {
        if self.policy.intercept.is_empty() || !self.host.has_host() {
            return false;
        }
        let (host, until, messages) = (self.host.clone(), self.host_until(), self.messages.clone());
        let off = async move {
            if let Err(error) = host.intercept_off(until).await {
                warn!("{error:#}; it is tried again");
                // The tear-down may be hours away, and a successor's interception comes behind ours.
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(again_in).await;
                    let again_in = (2 * again_in).min(OFF_AGAIN_MOST);
                    let _ = messages.send(Message::StillIntercepting { again_in });
                });
            }
            Message::InterceptionOff
        };
        self.beside(off, Message::InterceptionOff);
        true
    }

    /// Ends as `Message::TornDown`.
    fn tear_down(&mut self, status: u8) {
        self.held_back = None;
        let begin = Instant::now();
        let limit = begin + HOST_LIMIT.min(self.limits.stop);
        // Not in the last moment: then the last resort would have to do it anew.
        let kept = self.limits.after_tear_down() + self.limits.last_resort() / 5;
        let until = self.lifecycle.stop_deadline().and_then(|at| at.checked_sub(kept));
        let until = until.map_or(limit, |until| until.min(limit));
        let (host, debts) = (self.host.clone(), self.policy.site.debts.clone());
        // A program that hangs shall leave time for all the others.
        let lowered = self.finish_lowering(until.saturating_duration_since(begin) / 4);
        let torn_down = async move {
            lowered.await;
            let torn_down = host.tear_down(until, debts).await;
            Message::TornDown { status, took: begin.elapsed(), torn_down }
        };
        let torn_down_not = TornDown { failures: Vec::new(), hangs: true };
        let or = Message::TornDown { status, took: Duration::ZERO, torn_down: torn_down_not };
        self.beside(torn_down, or);
    }

    fn torn_down(&mut self, status: u8, took: Duration, torn_down: TornDown) -> Ended {
        let TornDown { failures, hangs } = torn_down;
        let is_whole = failures.is_empty() && !hangs;
        if !failures.is_empty() {
            let left = TearDownError(failures);
            error!("the host is not as it was: {left}; `hapilot sweep` tries again");
        } else if is_whole && self.host.has_host() {
            info!(ms = milliseconds(took), "the host is as it was");
        }
        let status = if status == 0 && !is_whole { SOFTWARE } else { status };
        self.tell_watchers(&protocol::Answer::Ended { status });
        self.watchers.clear();
        Ended { status, hangs }
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
