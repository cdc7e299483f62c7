//! The lease: an abstract unix socket whose existence means that its instance lives.
//!
//! It is in the namespace in which the rules are, and the kernel removes it with the process,
//! however that ends. The set-up lock is another such socket: held while numbers are chosen and
//! applied, and while they are taken back, so that no two instances take the same numbers and no
//! two believe that the other one will restore a sysctl.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::UCred;
use tracing::warn;

use super::instance::Instance;
use super::introduction::{HungUp, Shown, introduce};
use crate::fault::{self, Point};
use crate::process::abstract_name::{connect, listen};
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
    /// A living one may find its queue filled by somebody else.
    Unknown(String),
}

impl Occupant {
    /// Of our user or root's whoever listens is believed; a hapilot of another user says at once that
    /// it does not know us.
    pub async fn of(instance: Instance) -> Self {
        let name = instance.lease_name();
        let stream = connect(name.as_bytes()).and_then(tokio::net::UnixStream::from_std);
        let mut stream = match stream {
            Ok(stream) => stream,
            // A hapilot has its name and listens in one breath, long before it writes anything.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                return Self::Stranger(Holder(None).to_string());
            }
            Err(error) => return Self::Unknown(error.to_string()),
        };
        let holder = Holder(stream.peer_cred().ok());
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
    /// the name; who is neither our user nor root is waited for only as long as a hapilot of his
    /// would need it.
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
struct Holder(Option<UCred>);

impl Holder {
    fn of_setup_lock() -> Self {
        let stream = connect(SETUP_LOCK.as_bytes()).and_then(tokio::net::UnixStream::from_std);
        Self(stream.and_then(|stream| stream.peer_cred()).ok())
    }

    /// Who does not let us connect is no hapilot: those listen, and have a long queue.
    fn is_trusted(&self) -> bool {
        let own = rustix::process::geteuid().as_raw();
        self.0.is_some_and(|peer| [0, own].contains(&peer.uid()))
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(peer) = self.0 else { return write!(f, "a process that lets nobody connect") };
        match peer.pid().filter(|pid| *pid > 0) {
            Some(pid) => {
                let name = procfs::name(pid).unwrap_or_default();
                write!(f, "process {pid} ({name}) of user {}", peer.uid())
            }
            None => write!(f, "a process of user {} in another container", peer.uid()),
        }
    }
}
