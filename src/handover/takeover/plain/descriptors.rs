//! Acts: duplicates a listening socket out of another process's table of descriptors
//! (`pidfd_getfd(2)`, Linux 5.6). The kernel asks for the same rights as for tracing it.

use std::fmt;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::BindToDevice;
use rustix::fs::fstat;
use rustix::net::{SocketType, getpeername, sockopt};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::process::Process;
use crate::fault::{self, Point};
use crate::listeners::fetch::{Listener, describe};
use crate::listeners::wire::Description;

/// What became of a descriptor.
#[derive(Debug)]
pub(super) enum Taken {
    Listener(Listener),
    /// No listener, or another socket than it was when it was looked at.
    Other,
}

/// The kernel does not let us.
#[derive(Debug)]
pub(super) struct Denied(rustix::io::Errno);

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

pub(super) fn take(from: &Process, descriptor: i32, inode: u64) -> Result<Taken, Denied> {
    let allowed = fault::at(Point::Duplicate).map_err(|_| rustix::io::Errno::PERM);
    let duplicate = || pidfd_getfd(from.pidfd(), descriptor, PidfdGetfdFlags::empty());
    match allowed.and_then(|()| duplicate()) {
        Ok(socket) => Ok(listener(socket, inode).unwrap_or(Taken::Other)),
        // It closed it, or has ended.
        Err(rustix::io::Errno::BADF | rustix::io::Errno::SRCH) => Ok(Taken::Other),
        Err(errno) => Err(Denied(errno)),
    }
}

fn listener(socket: OwnedFd, inode: u64) -> Result<Taken> {
    if fstat(&socket).context("look at a socket")?.st_ino != inode || !listens(&socket) {
        return Ok(Taken::Other);
    }
    let interface = getsockopt(&socket, BindToDevice).context("ask for its interface")?;
    let interface = interface.to_string_lossy().into_owned();
    let interface = (!interface.is_empty()).then_some(interface);
    describe(socket, Description { namespace: None, interface }).map(Taken::Listener)
}

/// UDP sockets do not listen. HAProxy shares the port of those that it binds, unlike the kernel
/// that of one from which log lines are sent.
fn listens(socket: &OwnedFd) -> bool {
    match sockopt::socket_type(socket) {
        Ok(SocketType::DGRAM) => {
            sockopt::socket_reuseport(socket).unwrap_or(false) && getpeername(socket).is_err()
        }
        _ => sockopt::socket_acceptconn(socket).unwrap_or(false),
    }
}
