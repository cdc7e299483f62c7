//! Acts: hears when somebody removes what we have on the host. Nothing is asked now and then.
//!
//! The kernel tells of nftables, which iptables-nft writes to as well, and of policy rules and
//! routes. Of iptables-legacy it tells nobody; but that program takes a lock for every change, and
//! inotify tells when the file is closed. Where the container does not have the host's
//! `/run/xtables.lock`, nothing is heard of it.
//!
//! Others may change things by the thousand. They are read in gulps with a pause in between; what
//! does not fit into the socket meanwhile is lost, which is heard of as well and is a reason to look.

use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::inotify;
use rustix::io::{Errno, read};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::backend::Backend;
use super::instance::Instance;
use super::notice::{self, Transactions, removes_routing};
use super::step;
use crate::fault::{self, Point};
use crate::process::readiness::watch;

/// As in the masks that a socket is bound with.
const NFTABLES: u32 = 1 << 6;
const ROUTING: u32 = 1 << 6 | 1 << 10 | 1 << 7 | 1 << 18;

/// A transaction of some thousand rules.
const SOCKET_BUFFER: usize = 2 * 1024 * 1024;
/// The kernel sends no more at once.
const BUFFER: usize = 64 * 1024;
/// At one gulp; then others of this thread have their turn.
const MOST: usize = 64;
const PAUSE: Duration = Duration::from_millis(5);

/// Something may be gone. Whether and what, a look tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Programs that did it, where the kernel says so.
    pub by: Vec<String>,
}

#[derive(Debug)]
pub struct Watch {
    nftables: AsyncFd<OwnedFd>,
    routing: AsyncFd<OwnedFd>,
    legacy: Option<AsyncFd<OwnedFd>>,
    transactions: Transactions,
    /// Before the next gulp, which is a larger one then.
    resting: bool,
}

/// Whose turn it is.
enum Ready {
    Nftables,
    Routing,
    Legacy,
}

impl Watch {
    /// In the network namespace of this thread. Needs a tokio runtime.
    pub fn open(instance: Instance, backend: Backend) -> Result<Self> {
        fault::at(Point::Watch).context("listen for changes")?;
        let nftables = listen(Some(netlink::NETFILTER), NFTABLES);
        let routing = listen(None, ROUTING);
        let legacy = match backend {
            Backend::Iptables(step::Program::Legacy | step::Program::Plain) => legacy_lock()?,
            _ => None,
        };
        Ok(Self {
            nftables: nftables.context("listen to what the kernel says of nftables")?,
            routing: routing.context("listen to what the kernel says of routes")?,
            legacy,
            transactions: Transactions::of(instance),
            resting: false,
        })
    }

    /// Waits until something of ours may be gone.
    pub async fn changed(&mut self) -> io::Result<Changed> {
        loop {
            if std::mem::replace(&mut self.resting, true) {
                tokio::time::sleep(PAUSE).await;
            }
            let ready = tokio::select! {
                ready = self.nftables.readable() => ready.map(|_| Ready::Nftables)?,
                ready = self.routing.readable() => ready.map(|_| Ready::Routing)?,
                () = closed(self.legacy.as_ref()) => Ready::Legacy,
            };
            let changed = match ready {
                Ready::Nftables => self.nftables()?,
                Ready::Routing => gulp(&self.routing, removes_routing)?.then(Changed::default),
                Ready::Legacy => self.legacy()?,
            };
            if let Some(changed) = changed {
                return Ok(changed);
            }
        }
    }

    fn nftables(&mut self) -> io::Result<Option<Changed>> {
        let mut by: Vec<notice::Program> = Vec::new();
        let transactions = &mut self.transactions;
        let lost = gulp(&self.nftables, |datagram| {
            by.extend(transactions.read(datagram));
            false
        })?;
        let touched = lost || !by.is_empty();
        let mut by: Vec<String> = by.into_iter().flatten().collect();
        by.dedup();
        Ok(touched.then_some(Changed { by }))
    }

    /// Somebody was at the lock.
    fn legacy(&self) -> io::Result<Option<Changed>> {
        let Some(legacy) = &self.legacy else { return Ok(None) };
        let mut buffer = [0; 4096];
        let heard = drained(legacy, |fd| Ok(read(fd, &mut buffer)? > 0))?;
        Ok(heard.then(Changed::default))
    }
}

async fn closed(lock: Option<&AsyncFd<OwnedFd>>) {
    let Some(lock) = lock else { return std::future::pending().await };
    // An error of the descriptor comes up again when it is read.
    let _ready = lock.readable().await;
}

/// Without a protocol it is rtnetlink.
fn listen(protocol: Option<Protocol>, groups: u32) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    // A smaller one only loses more, which is heard of.
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER);
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    watch(socket)
}

/// Where iptables-legacy has its lock. `None`: it never ran here.
fn legacy_lock() -> Result<Option<AsyncFd<OwnedFd>>> {
    let path = env::var_os("XTABLES_LOCKFILE")
        .map_or_else(|| PathBuf::from("/run/xtables.lock"), PathBuf::from);
    if !path.exists() {
        return Ok(None);
    }
    let context = || format!("watch {}", path.display());
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let inotify = inotify::init(flags).with_context(context)?;
    let closed = inotify::WatchFlags::CLOSE_NOWRITE | inotify::WatchFlags::CLOSE_WRITE;
    inotify::add_watch(&inotify, &path, closed).with_context(context)?;
    Ok(Some(watch(inotify).with_context(context)?))
}

/// Reads some of what is there. Whether `matters` said so of any of it, or some was lost.
fn gulp(socket: &AsyncFd<OwnedFd>, mut matters: impl FnMut(&[u8]) -> bool) -> io::Result<bool> {
    let mut buffer = vec![0; BUFFER];
    drained(socket, |fd| match recv(fd, buffer.as_mut_slice(), RecvFlags::empty()) {
        Ok((length, _)) => Ok(matters(&buffer[..length])),
        Err(Errno::NOBUFS) => Ok(true),
        Err(error) => Err(error),
    })
}

/// Whether any of the reads said so.
fn drained(
    source: &AsyncFd<OwnedFd>,
    mut read: impl FnMut(&OwnedFd) -> Result<bool, Errno>,
) -> io::Result<bool> {
    let mut heard = false;
    for _ in 0..MOST {
        match source.try_io(Interest::READABLE, |fd| Ok(read(fd)?)) {
            Ok(more) => heard |= more,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(heard)
}
