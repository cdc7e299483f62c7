//! The lease: an abstract unix socket whose existence means that its instance lives.
//!
//! It is in the namespace in which the rules are, and the kernel removes it with the process,
//! however that ends. The set-up lock is another such socket: held while numbers are chosen and
//! applied, and while they are taken back, so that no two instances take the same numbers and no
//! two believe that the other one will restore a sysctl.
//!
//! Any process may take such names. A hapilot that has something on the host has `CAP_NET_ADMIN` over
//! this network, and its listener shows that (`net_admin`): so one that does not show it protects no
//! rules and is not waited for. Where it cannot be shown (`HasRight`), the user decides.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::UCred;
use tracing::{debug, warn};

use super::instance::Instance;
use super::introduction::{HungUp, Shown, introduce};
use super::net_admin;
use crate::fault::{self, Point};
use crate::process::abstract_name::{self, connect};
use crate::process::procfs;

const SETUP_LOCK: &str = "hapilot-setup";
/// A set-up takes some 50 ms.
const STRANGERS_LIMIT: Duration = Duration::from_secs(1);
/// How everything begins that is said at a hapilot's door, also to those who are not let in.
const ANSWER: [u8; 10] = *b"{\"answer\":";
/// Of names of hapilots. On one network there are one or two; any process may take such names.
const MOST: usize = 4096;
/// To get in at a door where strangers crowd.
const CROWD_LIMIT: Duration = Duration::from_secs(3);
const AGAIN: Duration = Duration::from_millis(5);

/// We live as long as this does.
#[derive(Debug)]
pub struct Lease {
    instance: Instance,
    listener: UnixListener,
}

impl Lease {
    /// Draws an instance and takes its name.
    pub fn take() -> Result<Self> {
        // Taken names are one in four thousand million; a few tries are plenty.
        for _ in 0..8 {
            let mut bytes = [0; 4];
            rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
                .context("draw an instance")?;
            fault::at(Point::Lease).context("take a lease")?;
            if let Some(lease) = Self::of(Instance::new(u32::from_ne_bytes(bytes)))? {
                return Ok(lease);
            }
        }
        bail!("take a lease: every name that was drawn is taken")
    }

    /// Takes the name of an instance; `None` when that instance lives. Held on to, it keeps a
    /// second sweeper away.
    pub fn of(instance: Instance) -> Result<Option<Self>> {
        let name = instance.lease_name();
        match listen(&name) {
            Ok(listener) => Ok(Some(Self { instance, listener })),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error).with_context(|| format!("listen on @{name}")),
        }
    }

    #[must_use]
    pub fn instance(&self) -> Instance {
        self.instance
    }

    /// The door for a successor. Non-blocking.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

fn listen(name: &str) -> io::Result<UnixListener> {
    abstract_name::listen(name, |socket| {
        // Without the right there is nothing of ours on the host either.
        let _ = net_admin::show_to_all(socket);
    })
}

/// Of a process that listens at a name; `None` where that cannot be told.
type HasRight = Option<bool>;

/// One look at the kernel's list, however many names there are.
fn have_right(names: &BTreeSet<String>) -> BTreeMap<String, bool> {
    let shown = net_admin::can_be_shown().and_then(|()| net_admin::shown_at(names));
    shown.unwrap_or_else(|error| {
        debug!("which hapilots have CAP_NET_ADMIN cannot be told: {error:#}");
        BTreeMap::new()
    })
}

fn has_right(name: &str) -> HasRight {
    have_right(&BTreeSet::from([name.to_owned()])).get(name).copied()
}

/// Whether what this instance recorded on the host may still be its own.
pub fn keeps(instance: Instance) -> Result<bool> {
    Ok(lives(instance)? && has_right(&instance.lease_name()) != Some(false))
}

/// Those whose names are of processes without the right: no hapilots that have something on the host.
#[must_use]
pub fn powerless(instances: &BTreeSet<Instance>) -> BTreeSet<Instance> {
    let rights = have_right(&instances.iter().map(|instance| instance.lease_name()).collect());
    let is_powerless = |of: &&Instance| rights.get(&of.lease_name()) == Some(&false);
    instances.iter().filter(is_powerless).copied().collect()
}

/// Whether that instance lives. Unlike `Lease::of` it never holds the name, not even for a moment.
pub fn lives(instance: Instance) -> Result<bool> {
    let name = instance.lease_name();
    match connect(name.as_bytes()) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(false),
        // A full queue needs somebody who listens.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error).with_context(|| format!("connect to @{name}")),
    }
}

/// Waits until that instance is dead: a process that dies may close its connections before its lease.
pub async fn dead(instance: Instance) {
    while lives(instance).unwrap_or(false) {
        hung_up(&instance.lease_name()).await;
    }
}

/// A connection to that instance's door.
pub fn knock(instance: Instance) -> Result<tokio::net::UnixStream> {
    let name = instance.lease_name();
    let stream = connect(name.as_bytes()).with_context(|| format!("connect to @{name}"))?;
    tokio::net::UnixStream::from_std(stream).with_context(|| format!("watch @{name}"))
}

/// A connection to that instance's door that has been let in, and what the other end has shown.
/// Without a limit. A door that strangers crowd may show one out before it has said a word.
pub async fn enter(instance: Instance) -> Result<(tokio::net::UnixStream, Shown)> {
    let deadline = Instant::now() + CROWD_LIMIT;
    loop {
        let entered = match of_our_user(instance) {
            Ok(stream) => introduce(stream, instance).await,
            Err(error) => Err(error),
        };
        match entered {
            Err(error) if is_crowded(&error) && Instant::now() < deadline => {
                tokio::time::sleep(AGAIN).await;
            }
            entered => return entered,
        }
    }
}

/// Its queue is full, or it had no place for one that had not shown anything yet.
fn is_crowded(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    error.is::<HungUp>() || io.is_some_and(|io| io.kind() == ErrorKind::WouldBlock)
}

fn of_our_user(instance: Instance) -> Result<tokio::net::UnixStream> {
    let stream = knock(instance)?;
    let user = stream.peer_cred().context("ask who it is")?.uid();
    let own = rustix::process::geteuid().as_raw();
    ensure!(user == own, "user {user} runs it, and we are user {own}");
    Ok(stream)
}

/// The same by the name of its door.
pub async fn enter_by(name: &[u8]) -> Result<tokio::net::UnixStream> {
    let name = String::from_utf8_lossy(name);
    let instance = name.strip_prefix("hapilot/").and_then(|instance| instance.parse().ok());
    let instance = instance.with_context(|| format!("@{name} is no hapilot's"))?;
    Ok(enter(instance).await?.0)
}

/// The PID of that instance as we see it, whether it answers or not; `None` where it is in a PID
/// namespace that we do not see.
#[must_use]
pub fn holder(instance: Instance) -> Option<i32> {
    knock(instance).ok()?.peer_cred().ok()?.pid().filter(|pid| *pid > 0)
}

/// Who has the name of an instance that we cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occupant {
    Hapilot,
    /// Anybody can take the name of a dead one.
    Stranger(String),
    /// A living one may find its queue filled by somebody else, and may be unable to show its right.
    Unknown(String),
}

/// Asked all at the same time, for each may keep silent. To a free name nobody answers, as to that of
/// a stranger.
pub async fn occupants(instances: &BTreeSet<Instance>) -> BTreeMap<Instance, Occupant> {
    let rights = have_right(&instances.iter().map(|instance| instance.lease_name()).collect());
    let asked = instances.iter().map(async |instance| {
        let right = rights.get(&instance.lease_name()).copied();
        (*instance, Occupant::of(*instance, right).await)
    });
    futures_util::future::join_all(asked).await.into_iter().collect()
}

impl Occupant {
    /// By its right. Where that cannot be told, whoever listens is believed if it is of our user or
    /// root's; a hapilot of another user says at once that it does not know us.
    async fn of(instance: Instance, right: HasRight) -> Self {
        if right == Some(true) {
            return Self::Hapilot;
        }
        let name = instance.lease_name();
        let stream = connect(name.as_bytes()).and_then(tokio::net::UnixStream::from_std);
        let mut stream = match stream {
            Ok(stream) => stream,
            // A hapilot has its name and listens in one breath, long before it writes anything.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused || right.is_some() => {
                return Self::Stranger(Holder { peer: None, right }.to_string());
            }
            Err(error) => return Self::Unknown(error.to_string()),
        };
        let holder = Holder { peer: stream.peer_cred().ok(), right };
        if right.is_some() {
            return Self::Stranger(holder.to_string());
        }
        if holder.is_trusted() {
            return Self::Hapilot;
        }
        let mut start = [0; ANSWER.len()];
        let answered = tokio::time::timeout(STRANGERS_LIMIT, stream.read_exact(&mut start)).await;
        let is_hapilot = matches!(answered, Ok(Ok(_))) && start == ANSWER;
        if is_hapilot { Self::Hapilot } else { Self::Stranger(holder.to_string()) }
    }
}

/// Every instance that lives in this network namespace.
pub fn living() -> Result<BTreeSet<Instance>> {
    let path = "/proc/thread-self/net/unix";
    let table = File::open(path).with_context(|| format!("read {path}"))?;
    let mut living = BTreeSet::new();
    // Any process may fill that table: it is never in memory as a whole.
    for line in BufReader::new(table).split(b'\n') {
        let line = line.with_context(|| format!("read {path}"))?;
        let line = String::from_utf8_lossy(&line);
        let instance = line.rsplit_once(" @hapilot/").and_then(|(_, name)| name.parse().ok());
        if living.len() < MOST {
            living.extend::<Option<Instance>>(instance);
        }
    }
    Ok(living)
}

/// Nobody else sets up, takes down or sweeps while this is held.
#[derive(Debug)]
#[must_use]
pub struct SetupLock {
    /// `None` where a stranger keeps the name: to wait for him would be to never start.
    _listener: Option<UnixListener>,
}

impl SetupLock {
    /// Waits for the holder to hang up, which the kernel does for one that dies. Anybody may take
    /// the name; one that has not shown its right, or has another user than ours and root where that
    /// cannot be told, is waited for only as long as a hapilot would need it.
    pub async fn take(limit: Duration) -> Result<Self> {
        let deadline = Instant::now() + limit;
        for until in [deadline.min(Instant::now() + STRANGERS_LIMIT), deadline] {
            if let Ok(taken) = tokio::time::timeout_at(until.into(), Self::wait()).await {
                return taken;
            }
            let holder = Holder::of_setup_lock();
            if !holder.is_trusted() {
                // It may have hung up since.
                if let Ok(listener) = listen(SETUP_LOCK) {
                    return Ok(Self { _listener: Some(listener) });
                }
                warn!(
                    "{holder} holds @{SETUP_LOCK}, which is for hapilots: going on without; end \
                     that process (ss -xap shows it)"
                );
                return Ok(Self { _listener: None });
            }
        }
        let holder = Holder::of_setup_lock();
        bail!("another hapilot has been setting up or tearing down for {limit:?}: {holder}")
    }

    async fn wait() -> Result<Self> {
        fault::within(Point::SetupLock).await?;
        loop {
            match listen(SETUP_LOCK) {
                Ok(listener) => return Ok(Self { _listener: Some(listener) }),
                Err(error) if error.kind() == ErrorKind::AddrInUse => hung_up(SETUP_LOCK).await,
                Err(error) => {
                    return Err(error).with_context(|| format!("listen on @{SETUP_LOCK}"));
                }
            }
        }
    }
}

/// A hapilot never accepts here: our connection ends when its listener does.
async fn hung_up(name: &str) {
    if let Ok(mut stream) = connect(name.as_bytes()).and_then(tokio::net::UnixStream::from_std) {
        // End of file or a reset: either way it is gone.
        let _gone = stream.read(&mut [0]).await;
    }
    // A stranger may not listen, have a full queue, or hang up on us and stay.
    tokio::time::sleep(AGAIN).await;
}

/// Who has the name of the lock, as far as the kernel tells.
struct Holder {
    peer: Option<UCred>,
    right: HasRight,
}

impl Holder {
    fn of_setup_lock() -> Self {
        let stream = connect(SETUP_LOCK.as_bytes()).and_then(tokio::net::UnixStream::from_std);
        let peer = stream.and_then(|stream| stream.peer_cred()).ok();
        Self { peer, right: has_right(SETUP_LOCK) }
    }

    /// Who does not let us connect is no hapilot: those listen, and have a long queue.
    fn is_trusted(&self) -> bool {
        let own = rustix::process::geteuid().as_raw();
        let by_user = || self.peer.is_some_and(|peer| [0, own].contains(&peer.uid()));
        self.right.unwrap_or_else(by_user)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(peer) = self.peer else { return write!(f, "a process that lets nobody connect") };
        let right = if self.right == Some(false) { " without CAP_NET_ADMIN" } else { "" };
        match peer.pid().filter(|pid| *pid > 0) {
            Some(pid) => {
                let name = procfs::name(pid).unwrap_or_default();
                write!(f, "process {pid} ({name}) of user {}{right}", peer.uid())
            }
            None => write!(f, "a process of user {}{right} in another container", peer.uid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It could be a living one's, filled by somebody else.
    #[tokio::test(flavor = "current_thread")]
    async fn a_full_queue_is_taken_for_a_living_ones_where_no_right_can_be_told() {
        let lease = Lease::take().unwrap();
        let instance = lease.instance();
        rustix::net::listen(lease.listener(), 0).unwrap();
        let mut crowd = Vec::new();
        while let Ok(stream) = connect(instance.lease_name().as_bytes()) {
            crowd.push(stream);
        }
        assert!(matches!(Occupant::of(instance, None).await, Occupant::Unknown(_)));
        assert!(matches!(Occupant::of(instance, Some(false)).await, Occupant::Stranger(_)));
        assert_eq!(Occupant::of(instance, Some(true)).await, Occupant::Hapilot);
        drop(crowd);
        drop(lease);
        assert!(matches!(Occupant::of(instance, None).await, Occupant::Stranger(_)));
    }
}
