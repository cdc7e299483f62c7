//! Acts: asks a HAProxy for duplicates of its listening sockets.
//!
//! HAProxy blocks while it answers, for up to a second until it is acknowledged, so every message
//! is acknowledged before anything else is done with it.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketType, getsockname,
    recvmsg, sockopt,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::compare::Seen;
use super::wire::{self, Description};
use crate::fault::{self, Point};
use crate::printable::printable;
use crate::process::limits::explained;
use crate::process::patience::within;

/// The verdict on the listeners waits for no longer.
const LIMIT: Duration = Duration::from_secs(1);

/// One for each port, which is more than any HAProxy has descriptors for.
pub const MOST: usize = 65_536;
/// Of namespaces and interfaces. An interface's has 15 bytes at most.
const MOST_NAMES: usize = 2 * 1024 * 1024;

/// A duplicate of one listening socket.
#[derive(Debug)]
pub struct Listener {
    pub socket: OwnedFd,
    pub description: Description,
    /// As a `bind` line would write it: `0.0.0.0:80`, `[::]:80 v6only`, `udp@[::]:443`, `abns@name`, `/run/x.sock`.
    pub address: String,
    /// Two processes that share a socket see the same inode.
    pub inode: u64,
}

impl Listener {
    #[must_use]
    pub fn seen(&self) -> Seen {
        Seen { address: self.address.clone(), inode: self.inode }
    }

    pub(super) fn duplicate(&self) -> io::Result<Self> {
        let (socket, description) = (self.socket.try_clone()?, self.description.clone());
        Ok(Self { socket, description, address: self.address.clone(), inode: self.inode })
    }
}

pub async fn listeners(runtime_socket: &Path) -> Result<Vec<Listener>> {
    within(LIMIT, fetch(runtime_socket))
        .await
        .with_context(|| format!("ask {} for its listeners", runtime_socket.display()))
        .map_err(explained)
}

async fn fetch(runtime_socket: &Path) -> Result<Vec<Listener>> {
    fault::within(Point::Listeners).await?;
    from(UnixStream::connect(runtime_socket).await.context("connect")?, MOST).await
}

/// Without a limit.
pub async fn from(mut stream: UnixStream, most: usize) -> Result<Vec<Listener>> {
    stream.write_all(wire::REQUEST).await.context("send the request")?;
    let mut count = [0; 4];
    match stream.read_exact(&mut count).await {
        // HAProxy just ends the connection when it listens on nothing that it may hand over.
        Err(end) if end.kind() == io::ErrorKind::UnexpectedEof => return Ok(Vec::new()),
        other => other.context("read the number of listeners")?,
    };
    let count = usize::try_from(u32::from_ne_bytes(count)).context("count the listeners")?;
    ensure!(count <= most, "it says that it has {count} listeners, and {most} are the most");
    let (mut listeners, mut named) = (Vec::new(), 0);
    while listeners.len() < count {
        let (bytes, sockets) = message(&stream).await.context("receive listeners")?;
        ensure!(!sockets.is_empty(), "it hung up after {} of {count}", listeners.len());
        // HAProxy 2.6 does not wait for the last one and has hung up by then; were there more to
        // come, the next read would say so.
        let _ = stream.write_all(&wire::ACKNOWLEDGEMENT).await;
        let descriptions = wire::descriptions(&bytes, sockets.len()).map_err(anyhow::Error::msg)?;
        named += descriptions.iter().map(Description::length).sum::<usize>();
        ensure!(
            named <= MOST_NAMES,
            "the names of its interfaces have more than {MOST_NAMES} bytes"
        );
        for (socket, description) in sockets.into_iter().zip(descriptions) {
            listeners.push(describe(socket, description)?);
        }
    }
    Ok(listeners)
}

async fn message(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; wire::MOST_IN_ONE * wire::LONGEST];
    let (read, sockets) = stream
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut into = [io::IoSliceMut::new(&mut bytes)];
            let got = recvmsg(stream.as_fd(), &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
            if got.flags.contains(ReturnFlags::CTRUNC) {
                // The kernel leaves out what does not fit the limit of descriptors (unix(7)).
                return Err(Errno::MFILE.into());
            }
            let sockets: Vec<OwnedFd> = ancillary
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
                    _ => None,
                })
                .flatten()
                .collect();
            Ok((got.bytes, sockets))
        })
        .await?;
    bytes.truncate(read);
    Ok((bytes, sockets))
}

pub fn describe(socket: OwnedFd, description: Description) -> Result<Listener> {
    let inode = rustix::fs::fstat(&socket).context("look at a received socket")?.st_ino;
    let name = getsockname(&socket).context("read the address of a received socket")?;
    let kind = sockopt::socket_type(&socket).context("read the type of a received socket")?;
    let v6only = sockopt::ipv6_v6only(&socket).unwrap_or_default();
    let address = Address { name: &name, kind, v6only, description: &description }.to_string();
    Ok(Listener { socket, description, address, inode })
}

/// `abns@` fills up the name with zeros to the end of the kernel's structure (as HAProxy has done it
/// since 1.5), `abnsz@` of HAProxy 3.2 does not.
fn of_abstract(name: &[u8]) -> String {
    const FULL: usize = 107;
    let kind = if name.len() == FULL { "abns" } else { "abnsz" };
    let end = name.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    format!("{kind}@{}", printable(&String::from_utf8_lossy(&name[..end])))
}

struct Address<'a> {
    name: &'a rustix::net::SocketAddrAny,
    kind: SocketType,
    v6only: bool,
    description: &'a Description,
}

impl fmt::Display for Address<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Ok(inet) = std::net::SocketAddr::try_from(self.name.clone()) {
            let prefix = if self.kind == SocketType::DGRAM { "udp@" } else { "" };
            write!(f, "{prefix}{inet}")?;
            // Bound to one IPv6 address, every socket is.
            if self.v6only && inet.is_ipv6() && inet.ip().is_unspecified() {
                f.write_str(" v6only")?;
            }
        } else if let Ok(unix) = rustix::net::SocketAddrUnix::try_from(self.name.clone()) {
            match (unix.path_bytes(), unix.abstract_name()) {
                (Some(path), _) => {
                    let path = String::from_utf8_lossy(path);
                    f.write_str(&printable(lasting(&path)))?;
                }
                (_, Some(name)) => f.write_str(&of_abstract(name))?,
                _ => f.write_str("unix@")?,
            }
        } else {
            write!(f, "family {}", self.name.address_family().as_raw())?;
        }
        if let Some(interface) = &self.description.interface {
            write!(f, " interface {interface}")?;
        }
        if let Some(namespace) = &self.description.namespace {
            write!(f, " namespace {namespace}")?;
        }
        Ok(())
    }
}

/// HAProxy binds a unix socket as `PATH.PID.tmp` and renames it; the socket keeps the first name.
#[must_use]
pub fn lasting(path: &str) -> &str {
    path.strip_suffix(".tmp")
        .and_then(|rest| rest.rsplit_once('.'))
        .filter(|(_, pid)| !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit()))
        .map_or(path, |(lasting, _)| lasting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_takes_ipv4_as_well_is_told_from_one_that_does_not() {
        use rustix::net::{AddressFamily, bind, socket};
        for (bound, v6only, address) in [
            ("[::]:0", true, "[::]:PORT v6only"),
            ("[::]:0", false, "[::]:PORT"),
            // The kernel makes this one so by itself.
            ("[::1]:0", false, "[::1]:PORT"),
            ("0.0.0.0:0", false, "0.0.0.0:PORT"),
        ] {
            let bound: std::net::SocketAddr = bound.parse().unwrap();
            let family = if bound.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
            let socket = socket(family, SocketType::STREAM, None).unwrap();
            if bound.is_ipv6() {
                sockopt::set_ipv6_v6only(&socket, v6only).unwrap();
            }
            bind(&socket, &bound).unwrap();
            let name = std::net::SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
            let listener = describe(socket, Description::default()).unwrap();
            assert_eq!(listener.address, address.replace("PORT", &name.port().to_string()));
            assert_eq!(listener.seen().port(), Some(name.port()));
        }
    }

    #[test]
    fn an_abstract_name_is_shown_as_it_was_written() {
        use rustix::net::{AddressFamily, SocketAddrUnix, bind, socket};
        let own = format!("hapilot-{}", std::process::id());
        let full = |name: &str| [name.as_bytes(), &vec![0; 107 - name.len()]].concat();
        for (name, shown) in [
            (full(&own), format!("abns@{own}")),
            (own.clone().into_bytes(), format!("abnsz@{own}")),
            (full(&format!("{own}\n\u{1b}[2J")), format!("abns@{own}\\n\\u{{1b}}[2J")),
        ] {
            let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
            bind(&socket, &SocketAddrUnix::new_abstract_name(&name).unwrap()).unwrap();
            assert_eq!(describe(socket, Description::default()).unwrap().address, shown);
        }
    }

    #[test]
    fn the_name_a_unix_socket_was_bound_under_is_cut_to_the_one_it_has() {
        assert_eq!(lasting("/run/web.sock.4711.tmp"), "/run/web.sock");
        assert_eq!(lasting("/run/web.tmp"), "/run/web.tmp");
        assert_eq!(lasting("/run/web.sock"), "/run/web.sock");
    }
}
