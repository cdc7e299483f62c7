//! Decides: the question for the kernel's TCP sockets, and its answers, as bytes
//! (`linux/inet_diag.h`, `linux/sock_diag.h`).
//!
//! Reading takes nothing for granted: what is cut short or unknown is passed over.

use std::io;
use std::net::{IpAddr, SocketAddr as Address};
use std::time::Duration;

use rustix::net::{AddressFamily, ipproto};

use crate::host::netlink::{DUMP, REQUEST, attributes, find, frame, messages, number};

const BY_FAMILY: u16 = 20;

/// States, as a question names them: `net/tcp_states.h`.
pub const ESTABLISHED: u32 = 1 << 1;
pub const SYN_RECEIVED: u32 = 1 << 3;
pub const LISTEN: u32 = 1 << 10;
const FIN_WAIT_1: u32 = 1 << 4;
const FIN_WAIT_2: u32 = 1 << 5;
const CLOSE_WAIT: u32 = 1 << 8;
/// Those in which somebody may still hold a connection.
pub const HELD: u32 = ESTABLISHED | FIN_WAIT_1 | FIN_WAIT_2 | CLOSE_WAIT;

const INFO: u16 = 2;
const V6_ONLY: u16 = 11;
const UNIX_SHOW_USER: u32 = 64;
const UNIX_USER: u16 = 7;
const UNIX_HEADER: usize = 16;
/// The attributes come behind this.
const HEADER: usize = 72;
/// Of the timers of a connection, the one for what was not answered.
const RETRANSMIT: u8 = 1;

/// What is told of each socket besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extensions {
    None,
    /// `struct tcp_info`.
    Info,
}

/// A TCP socket as the kernel tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket<'a> {
    pub local: Address,
    pub remote: Address,
    /// That it is bound to; 0 for none.
    pub interface: u32,
    /// How often it was tried again to get an answer that is still waited for.
    pub retries: u8,
    pub received: u32,
    pub sent: u32,
    pub user: u32,
    pub inode: u32,
    attributes: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub local_port: u16,
    /// 0 while nobody has accepted it.
    pub inode: u64,
}

/// A connection that some process holds, whichever side has ended it already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    pub local_port: u16,
    pub remote: Address,
    pub inode: u64,
    /// Since data last came or went.
    pub silent: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    pub local_port: u16,
    pub inode: u64,
    /// Connections that wait to be accepted.
    pub queued: u32,
    pub backlog: u32,
    /// Who opened it, whoever holds it now.
    pub user: u32,
}

/// A connection in the middle of its handshake. The kernel does not tell with which listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOpen {
    pub local_port: u16,
    pub remote: Address,
    /// How often it was asked again to go on.
    pub retries: u8,
}

/// Those of one family that are in one of `states`.
#[must_use]
pub fn question(family: AddressFamily, states: u32, extensions: Extensions) -> Vec<u8> {
    let [family, _] = family.as_raw().to_le_bytes();
    let [protocol, ..] = ipproto::TCP.as_raw().get().to_le_bytes();
    let extensions = match extensions {
        Extensions::None => 0,
        Extensions::Info => 1 << (INFO - 1),
    };
    let mut body = vec![family, protocol, extensions, 0];
    body.extend(states.to_ne_bytes());
    // Any addresses, ports and interface.
    body.extend([0; 48]);
    frame(BY_FAMILY, REQUEST | DUMP, 0, &body)
}

/// Every unix socket that listens, with its user (`linux/unix_diag.h`).
#[must_use]
pub fn unix_question() -> Vec<u8> {
    let [family, _] = AddressFamily::UNIX.as_raw().to_le_bytes();
    let mut body = vec![family, 0, 0, 0];
    // Any inode and any cookie.
    for field in [LISTEN, 0, UNIX_SHOW_USER, u32::MAX, u32::MAX] {
        body.extend(field.to_ne_bytes());
    }
    frame(BY_FAMILY, REQUEST | DUMP, 0, &body)
}

/// Inodes and users of the unix sockets in one datagram. Before Linux 5.3 none has a user. `None`:
/// more is to come.
pub fn read_unix(datagram: &[u8], mut each: impl FnMut(u32, u32)) -> Option<io::Result<()>> {
    for message in messages(datagram) {
        if let Some(end) = message.answer() {
            return Some(end);
        }
        if message.kind == BY_FAMILY
            && let Some((header, rest)) = message.body().split_at_checked(UNIX_HEADER)
            && let Some(inode) = number(&header[4..]).map(u32::from_ne_bytes)
            && let Some(user) = find(attributes(rest), UNIX_USER).and_then(number)
        {
            each(inode, u32::from_ne_bytes(user));
        }
    }
    None
}

/// Tells of the sockets in one datagram. `None`: more is to come.
pub fn read(datagram: &[u8], mut each: impl FnMut(&Socket<'_>)) -> Option<io::Result<()>> {
    for message in messages(datagram) {
        if let Some(end) = message.answer() {
            return Some(end);
        }
        if message.kind == BY_FAMILY
            && let Some(socket) = Socket::read(message.body())
        {
            each(&socket);
        }
    }
    None
}

impl<'a> Socket<'a> {
    fn read(body: &'a [u8]) -> Option<Self> {
        let (header, attributes) = body.split_at_checked(HEADER)?;
        let family = AddressFamily::from_raw(header[0].into());
        let port = |at: usize| number(&header[at..]).map(u16::from_be_bytes);
        let field = |at: usize| number(&header[at..]).map(u32::from_ne_bytes);
        let address = |at: usize| {
            let bytes = &header[at..];
            match family {
                AddressFamily::INET => number::<4>(bytes).map(IpAddr::from),
                AddressFamily::INET6 => number::<16>(bytes).map(IpAddr::from),
                _ => None,
            }
        };
        Some(Self {
            local: Address::new(address(8)?, port(4)?),
            remote: Address::new(address(24)?, port(6)?),
            interface: field(40)?,
            retries: if header[2] == RETRANSMIT { header[3] } else { 0 },
            received: field(56)?,
            sent: field(60)?,
            user: field(64)?,
            inode: field(68)?,
            attributes,
        })
    }

    /// As `bind` would have to be told: one for any IPv6 address may take IPv4 as well.
    #[must_use]
    pub fn bound_to(&self) -> String {
        let v6_only = find(attributes(self.attributes), V6_ONLY).and_then(<[u8]>::first);
        let only = self.local.ip().is_unspecified() && v6_only.is_some_and(|only| *only != 0);
        format!("{}{}", self.local, if only { " v6only" } else { "" })
    }

    /// `tcpi_last_data_sent` and `tcpi_last_data_recv` of `struct tcp_info` (linux/tcp.h), in ms.
    fn silent(&self) -> Option<Duration> {
        let info = find(attributes(self.attributes), INFO)?;
        let field = |at: usize| number(info.get(at..)?).map(u32::from_ne_bytes);
        Some(Duration::from_millis(field(44)?.min(field(52)?).into()))
    }
}

impl From<&Socket<'_>> for Connection {
    fn from(socket: &Socket<'_>) -> Self {
        Self { local_port: socket.local.port(), inode: socket.inode.into() }
    }
}

impl From<&Socket<'_>> for Session {
    fn from(socket: &Socket<'_>) -> Self {
        Self {
            local_port: socket.local.port(),
            remote: socket.remote,
            inode: socket.inode.into(),
            silent: socket.silent().unwrap_or_default(),
        }
    }
}

impl From<&Socket<'_>> for Listening {
    fn from(socket: &Socket<'_>) -> Self {
        Self {
            local_port: socket.local.port(),
            inode: socket.inode.into(),
            queued: socket.received,
            backlog: socket.sent,
            user: socket.user,
        }
    }
}

impl From<&Socket<'_>> for HalfOpen {
    fn from(socket: &Socket<'_>) -> Self {
        let Socket { local, remote, retries, .. } = *socket;
        Self { local_port: local.port(), remote, retries }
    }
}
