//! The lease: an abstract unix socket whose existence means that its instance lives.
//!
//! It is in the namespace in which the rules are, and the kernel removes it with the process,
//! however that ends. The set-up lock is another such socket: held while numbers are chosen and
//! applied, and while they are taken back, so that no two instances take the same numbers and no
//! two believe that the other one will restore a sysctl.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::AsyncReadExt as _;

use super::instance::Instance;

const SETUP_LOCK: &str = "hapilot-setup";

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
    match connect(&name) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(false),
        // A full queue needs somebody who listens.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error).with_context(|| format!("connect to @{name}")),
    }
}

/// Every instance that lives in this network namespace.
pub fn living() -> Result<BTreeSet<Instance>> {
    let path = "/proc/thread-self/net/unix";
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let names = text.lines().filter_map(|line| line.rsplit_once(" @hapilot/"));
    Ok(names.filter_map(|(_, instance)| instance.parse().ok()).collect())
}

/// Nobody else sets up, takes down or sweeps while this is held.
#[derive(Debug)]
#[must_use]
pub struct SetupLock {
    _listener: UnixListener,
}

impl SetupLock {
    /// Waits for the holder to hang up, which the kernel does for one that dies.
    pub async fn take(limit: Duration) -> Result<Self> {
        tokio::time::timeout(limit, Self::wait()).await.with_context(|| {
            format!("another hapilot has been setting up or tearing down for {limit:?}")
        })?
    }

    async fn wait() -> Result<Self> {
        loop {
            match listen(SETUP_LOCK) {
                Ok(listener) => {
                    return Ok(Self { _listener: listener });
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse => hung_up().await?,
                Err(error) => {
                    return Err(error).with_context(|| format!("listen on @{SETUP_LOCK}"));
                }
            }
        }
    }
}

/// The holder never accepts: our connection ends when its listener does.
async fn hung_up() -> Result<()> {
    let stream = match connect(SETUP_LOCK) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("connect to @{SETUP_LOCK}")),
    };
    let mut stream = tokio::net::UnixStream::from_std(stream).context("watch the set-up lock")?;
    // End of file or a reset: either way it is gone.
    let _gone = stream.read(&mut [0]).await;
    Ok(())
}

fn listen(name: &str) -> io::Result<UnixListener> {
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// std's own would block while the queue is full.
fn connect(name: &str) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    Ok(socket.into())
}
