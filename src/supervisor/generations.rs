//! Acts: the generations as processes. What they are to each other is the lifecycle's business.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use super::guarding::Guarded;
use super::lifecycle::{Event, Phase, Sharing, StateName, Why};
use super::run::{Message, Supervisor, beside, milliseconds};
use crate::handover::reload::{HandedOver, carry, prepare, servers_of};
use crate::handover::saved::Saved;
use crate::haproxy::configuration_files::{Copies, texts};
use crate::haproxy::generation::GenerationId;
use crate::haproxy::insider::Insider;
use crate::haproxy::judge::Judgement;
use crate::haproxy::launch::{Known, Launched, NotLaunched};
use crate::haproxy::output::{Words, follow};
use crate::haproxy::places;
use crate::haproxy::ready::ready;
use crate::haproxy::server_state::{Born, Servers, Since};
use crate::haproxy::starved::starved;
use crate::listeners::compare::Seen;
use crate::listeners::counters::{self, Counters};
use crate::listeners::fetch::{Listener, listeners};
use crate::listeners::socket_table::listening;
use crate::process::exit::Exit;
use crate::process::handle::Handle;
use crate::process::{memory, procfs};

/// After a process is gone its last words are in the pipe already; only something that inherited
/// the pipe can keep it open longer.
const LAST_WORDS: Duration = Duration::from_millis(500);

const KILLED: Exit = Exit::Signal(9);
const OUT_OF_MEMORY: &str = "HAProxy was killed while it started, by another process or by the kernel for \
                             want of memory: see docker run --memory (docker update --memory), and dmesg";

/// A generation as a process; `lifecycle` knows its phase.
#[derive(Debug)]
pub(super) struct Running {
    why: Why,
    /// Its configuration as it was when it was launched; with us once it is ready.
    copies: Option<Copies>,
    launched_at: Instant,
    pub(super) ready_after: Option<Duration>,
    /// The kernel's, at the launch.
    pub(super) counters: Counters,
    /// The sockets of everybody that listened then.
    pub(super) listening_before: BTreeSet<u64>,
    /// `None` before the launch and after the exit.
    pub(super) handle: Option<Handle>,
    /// Where `handle` is a master (`master-worker`): the process that serves clients.
    pub(super) worker: Option<Handle>,
    pub(super) pid: Option<i32>,
    pub(super) runtime_socket: PathBuf,
    pub(super) words: Words,
    output: Option<JoinHandle<()>>,
    pub(super) tasks: Vec<JoinHandle<()>>,
    pub(super) listens: Vec<Seen>,
    pub(super) handed_over: HandedOver,
    /// What it is to know of its servers before it accepts its first connection.
    known: Servers,
    /// Of the text of its configuration.
    configuration: u64,
    /// Whether that is another one than the configuration of the generation before.
    pub(super) since: Since,
    /// The servers that it began with, once it has said so.
    born: Rc<RefCell<Option<Rc<Born>>>>,
    /// What its configuration is warned of.
    pub(super) warnings: Vec<String>,
    /// Those about the configuration.
    pub(super) judged: Vec<String>,
    /// It was started with another configuration than the one on disk, which is to follow.
    follow_up: bool,
    /// It answered, but would serve nobody.
    rejected: bool,
    /// By hapilot.
    killed: bool,
    /// How long it accepts after it was told to stop.
    pub(super) grace: Duration,
    pub(super) guarded: Guarded,
    /// From ready on.
    pub(super) insider: Option<Insider>,
}

impl Running {
    pub(super) fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// The process that has the clients' connections.
    pub(super) fn serving_pid(&self) -> Option<i32> {
        self.worker.as_ref().map(Handle::pid).or(self.pid)
    }

    /// As long as nobody has waited for it.
    pub(super) fn child(&self) -> Option<i32> {
        self.handle.as_ref().map(Handle::pid)
    }

    pub(super) fn is_reload(&self) -> bool {
        self.why == Why::Reload
    }

    /// The process has ended, whether or not the lifecycle knows already.
    pub(super) fn is_gone(&self) -> bool {
        self.handle.is_none()
    }

    /// Those whose sockets came from the generation before.
    pub(super) fn shared_addresses(&self) -> &[String] {
        self.handed_over.listeners.as_ref().map_or(&[], |changes| &changes.shared)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn digest(texts: &[String]) -> u64 {
    let mut hasher = DefaultHasher::new();
    texts.hash(&mut hasher);
    hasher.finish()
}

impl Supervisor {
    /// Whoever asked for a reload by now gets what this launch brings.
    pub(super) fn prepare(&mut self, id: GenerationId, from: Option<GenerationId>, why: Why) {
        // The first launch was nobody's wish.
        let waiting = match why {
            Why::Start => Vec::new(),
            _ => std::mem::take(&mut self.waiting),
        };
        self.trying.insert(id, waiting);
        let Judgement { problems, state_file, questions, syslog, grace, missing } =
            self.judge.judge();
        let judged: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let warned = std::mem::replace(&mut self.warned, judged.clone());
        // What the start found is told before.
        let is_new = |one: &&String| why != Why::Start && !warned.contains(one);
        let warnings = judged.iter().filter(is_new).cloned().collect();
        places::make(&missing);
        self.syslog.open(&syslog);
        let program = Rc::make_mut(&mut self.program);
        (program.state_file, program.questions) = (state_file, questions);
        let words = Words::listen();
        let words = if self.may_get_room() { words.without_advice_on_ports() } else { words };
        let mut running = Running {
            why,
            copies: None,
            launched_at: Instant::now(),
            ready_after: None,
            counters: Counters::default(),
            listening_before: BTreeSet::new(),
            handle: None,
            worker: None,
            pid: None,
            runtime_socket: self.program.runtime_socket(id),
            words,
            output: None,
            tasks: Vec::new(),
            listens: Vec::new(),
            handed_over: HandedOver::default(),
            known: Servers::default(),
            configuration: 0,
            since: Since::Changed,
            born: Rc::default(),
            warnings,
            judged,
            follow_up: false,
            rejected: false,
            killed: false,
            grace,
            guarded: Guarded::default(),
            insider: None,
        };
        let old = from.and_then(|from| self.generations.get(&from));
        let olds: Vec<_> = match old {
            Some(old) => vec![old.runtime_socket.clone()],
            None => self.taking_over.runtime_sockets(),
        };
        if olds.is_empty() {
            // After a crash it is what was saved last.
            if why != Why::Start {
                running.known = self.saving.with(Saved::known).unwrap_or_default();
            }
            self.generations.insert(id, running);
            return self.launch(id);
        }
        let prepared = async move {
            let mut known = Servers::default();
            for old in olds {
                match prepare(&old).await {
                    Ok(servers) => known.all.extend(servers.all),
                    Err(error) => warn!(
                        generation = id.number(),
                        "it does not know from its first connection on what the one before knew of its \
                         servers: {error:#}"
                    ),
                }
            }
            Message::Prepared(id, known)
        };
        let or = Message::Prepared(id, Servers::default());
        running.tasks.push(self.beside(prepared, or));
        self.generations.insert(id, running);
    }

    pub(super) fn prepared(&mut self, id: GenerationId, known: Servers) {
        if let Some(running) = self.generations.get_mut(&id) {
            running.known = known;
        }
        self.launch(id);
    }

    pub(super) fn launch(&mut self, id: GenerationId) {
        let source = self.keeper.source().map(Path::to_owned);
        let Some(running) = self.generations.get_mut(&id) else {
            return;
        };
        if let Some(watch) = &mut self.watch {
            watch.launches(&self.judge);
        }
        running.launched_at = Instant::now();
        running.counters = counters::read().unwrap_or_default();
        running.listening_before = listening().into_iter().flatten().map(|l| l.inode).collect();
        let directory = self.judge.directory.as_deref();
        let mut configuration = &self.program.configuration;
        if let (Why::LastGood, Some(served)) = (running.why, &self.last_good)
            && texts(&served.files, None) != texts(configuration, directory)
        {
            warn!(
                generation = id.number(),
                "the configuration on disk is not the one that served: HAProxy is started with the \
                 last good one, and a reload to the one on disk follows"
            );
            configuration = &served.files;
            running.follow_up = true;
        }
        if !running.follow_up {
            // In the moment before HAProxy reads the same.
            let into = self.program.copies(id);
            match Copies::make(configuration, directory, into) {
                Ok(copies) => running.copies = Some(copies),
                Err(error) => {
                    debug!(generation = id.number(), "no copy to fall back on: {error:#}");
                }
            }
        }
        let texts = texts(configuration, directory);
        running.configuration = digest(&texts);
        if self.served == Some(running.configuration) {
            running.since = Since::Unchanged;
        }
        let servers = std::mem::take(&mut running.known).believed(running.since);
        let known = Known { servers: &servers, texts: &texts };
        // Where nobody serves, HAProxy is started all the same.
        let room = if running.is_reload() {
            self.program.ensure_room_for(self.keeper.seen().len())
        } else {
            Ok(())
        };
        let launch = |()| self.program.launch(id, source.as_deref(), configuration, known);
        match room.and_then(launch) {
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
        let Some(running) = self.generations.get_mut(&id) else {
            return;
        };
        let pid = handle.pid();
        info!(generation = id.number(), pid, "started HAProxy");
        match follow(output, id, pid, running.words.clone()) {
            Ok(task) => running.output = Some(task),
            Err(error) => error!(generation = id.number(), "{error:#}"),
        }
        let messages = self.messages.clone();
        let answered = async move {
            let answering = tokio::select! {
                answering = ready(&runtime_socket, pid) => answering,
                () = starved() => return Message::Starved(id),
            };
            if answering != pid {
                let _ = messages.send(Message::Worker(id, Handle::of_child(answering, pid)));
            }
            let listeners = listeners(&runtime_socket).await;
            Message::Ready(id, listeners)
        };
        running.tasks.push(beside(&self.messages, answered, Message::Unready(id)));
        running.pid = Some(pid);
        running.handle = Some(handle);
    }

    pub(super) fn note_ready(&mut self, id: GenerationId, now: Instant) {
        let Some(running) = self.generations.get_mut(&id) else {
            return;
        };
        let after = now.duration_since(running.launched_at);
        running.ready_after = Some(after);
        let threads = running.serving_pid().and_then(|pid| procfs::threads(pid).ok().flatten());
        if let Some(threads) = threads {
            Rc::make_mut(&mut self.program).threads = threads;
        }
        if let Some(Err(error)) = running.pid.map(memory::as_ours) {
            warn!(generation = id.number(), %error, "the kernel ends this HAProxy first if the memory is full");
        }
        running.insider = Some(Insider::enter(running.runtime_socket.clone()));
        self.served = Some(running.configuration);
        let (born, socket) = (Rc::clone(&running.born), running.runtime_socket.clone());
        running.tasks.push(tokio::task::spawn_local(async move {
            match servers_of(&socket).await {
                Ok(servers) => drop(born.replace(Some(Rc::new(Born::with(&servers))))),
                Err(error) => debug!(generation = id.number(), "its servers: {error:#}"),
            }
        }));
        if running.follow_up {
            // Behind the news that this one is ready.
            let _ = self.messages.send(Message::Event(Event::ReloadWanted));
        }
        if let Some(copies) = running.copies.take() {
            self.last_good = Some(copies);
        }
        info!(generation = id.number(), pid = running.pid, ms = milliseconds(after), "ready");
        if !matches!(self.lifecycle.state(), StateName::Reloading) {
            // Nobody will ask what it said.
            drop(running.words.take());
        }
    }

    /// What is done about the listeners is decided at once; the rest may take its time.
    pub(super) fn hand_over(&mut self, from: GenerationId, to: GenerationId) {
        let sharing = self.decide(to);
        self.send(Message::Event(Event::Compared(to, sharing)));
        let old = self.generations.get(&from);
        let old = old.map(|old| (old.runtime_socket.clone(), Rc::clone(&old.born)));
        let (Some((old, born)), Some(running)) = (old, self.generations.get_mut(&to)) else {
            return;
        };
        let (new, since) = (running.runtime_socket.clone(), running.since);
        let carried = async move {
            let born = born.borrow().clone();
            Message::HandedOver(to, carry(&old, &new, born.as_deref(), since).await)
        };
        let or = Message::HandedOver(to, HandedOver::default());
        running.tasks.push(beside(&self.messages, carried, or));
    }

    /// All that follows without its listeners is there, or will not come.
    pub(super) fn handed_over(&mut self, id: GenerationId, rest: HandedOver) -> Option<Event> {
        let running = self.generations.get_mut(&id)?;
        running.handed_over.add(rest);
        // It died meanwhile and the news is on its way: the old one must not drain for it.
        let sharing = running.guarded.sharing.unwrap_or(Sharing::Guarded);
        (!running.is_gone()).then_some(Event::HandedOver(id, sharing))
    }

    /// What `id` listens on is held from now on, unless another one serves meanwhile.
    pub(super) fn keep(&mut self, id: GenerationId, listeners: Vec<Listener>) {
        let accepts = self
            .lifecycle
            .generations()
            .any(|(other, phase, ..)| other == id && phase == Phase::Serving);
        if let Some(running) = self.generations.get_mut(&id)
            && accepts
        {
            running.listens = listeners.iter().map(Listener::seen).collect();
            self.keeper.hold(listeners);
        }
    }

    /// Ends one that is not to serve; the reason goes where HAProxy's own words go.
    pub(super) fn reject(&mut self, id: GenerationId, reason: &str) {
        let Some(running) = self.generations.get_mut(&id) else { return };
        error!(generation = id.number(), "{reason}");
        running.words.hear(reason);
        running.rejected = true;
        self.signal(id, Signal::KILL, "ending it");
    }

    pub(super) fn signal(&self, id: GenerationId, signal: Signal, doing: &str) {
        let Some(running) = self.generations.get(&id) else {
            return;
        };
        info!(generation = id.number(), pid = running.pid, "{doing}");
        for handle in running.whom(signal) {
            if let Err(error) = handle.signal(signal) {
                error!(generation = id.number(), "{error:#}");
            }
        }
    }

    pub(super) fn drain(&mut self, id: GenerationId) {
        self.signal(id, Signal::USR1, "draining");
        if let Some(insider) = self.generations.get_mut(&id).and_then(|r| r.insider.as_mut()) {
            insider.leave_last();
        }
    }

    pub(super) fn kill(&mut self, id: GenerationId) {
        let Some(running) = self.generations.get(&id) else {
            return;
        };
        if running.pid.is_none() {
            // Not launched yet, and now it never will be, even if `Prepared` is in the inbox.
            self.generations.remove(&id);
            return self.send(Message::Event(Event::Exited(id, Exit::Signal(9))));
        }
        let ending = matches!(self.lifecycle.state(), StateName::Stopping | StateName::Stopped);
        if running.ready_after.is_none() && !ending {
            let room = self.taking_over.room.as_ref().map(|_| self.limits.room);
            let limit = humantime::format_duration(room.unwrap_or(self.limits.ready));
            error!(generation = id.number(), %limit, "HAProxy is not ready in time");
        }
        self.signal(id, Signal::KILL, "killing");
        if let Some(running) = self.generations.get_mut(&id) {
            running.killed = true;
        }
    }

    pub(super) fn child_ended(&mut self, pid: i32, exit: Exit) {
        let found = self
            .generations
            .iter_mut()
            .find(|(_, running)| running.handle.as_ref().is_some_and(|handle| handle.pid() == pid));
        let Some((&id, running)) = found else {
            debug!(pid, %exit, "reaped an orphan");
            return;
        };
        if running.outlives_its_master(pid) {
            warn!(
                generation = id.number(),
                pid = running.pid,
                %exit,
                "the master process has ended; hapilot supervises its worker from now on"
            );
            return;
        }
        let by_hapilot = running.killed || running.rejected;
        if exit == KILLED && running.ready_after.is_none() && !by_hapilot {
            error!(generation = id.number(), "{OUT_OF_MEMORY}");
            running.words.hear(OUT_OF_MEMORY);
        }
        // As HAProxy itself ends with a configuration that it refuses.
        let exit = if running.rejected { Exit::Code(1) } else { exit };
        running.handle = None;
        running.tasks.drain(..).for_each(|task| task.abort());
        let output = running.output.take();
        if running.ready_after.is_some() {
            // Somebody else has to serve at once; its last words are logged when they are read.
            return self.send(Message::Event(Event::Exited(id, exit)));
        }
        // Why it could not start belongs before the news that it could not.
        let heard = async move {
            if let Some(output) = output {
                let _ = tokio::time::timeout(LAST_WORDS, output).await;
            }
            Message::Event(Event::Exited(id, exit))
        };
        self.beside(heard, Message::Event(Event::Exited(id, exit)));
    }

    pub(super) fn forget(&mut self, id: GenerationId) {
        self.program.forget(id);
        self.generations.remove(&id);
        self.trying.remove(&id);
    }
}
