//! Acts: shows on a connection that a process has `CAP_NET_ADMIN` over this network, and sees
//! whether the process at the other end has it.
//!
//! One end names a number that is larger than `net.core.rmem_max`. The other end makes it the size
//! of its own receive buffer. That takes `SO_RCVBUFFORCE` (`socket(7)`), for which the kernel asks for the
//! capability in the user namespace that owns the network namespace. The first end looks the size up
//! (`sock_diag(7)`), by the inode that the kernel names as its peer. So a number that is passed on to
//! another process shows nothing: it would be the buffer of another connection. A socket of another
//! network namespace cannot be at the other end of a connection to an abstract name.
//!
//! A listener shows it to every process, by the largest buffer that there is: it has that size before
//! it has its name, and no two listeners have the same name.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use rustix::fs::fstat;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt,
};
use serde::{Deserialize, Serialize};

use super::netlink::{DUMP, REQUEST, attributes, find, frame, messages, number};

const BY_FAMILY: u16 = 20;
/// `UDIAG_SHOW_NAME`, `UDIAG_SHOW_PEER` and `UDIAG_SHOW_MEMINFO` of `linux/unix_diag.h`, and what they bring.
const SHOW_NAME: u32 = 1;
const SHOW_PEER: u32 = 4;
const SHOW_MEMORY: u32 = 32;
const NAME: u16 = 0;
const PEER: u16 = 2;
const MEMORY: u16 = 5;
/// `SK_MEMINFO_RCVBUF` of `linux/sock_diag.h`, in bytes.
const RECEIVE_BUFFER: usize = 4;
/// `struct unix_diag_msg`, and where it names the kind of the socket.
const HEADER: usize = 16;
const KIND: usize = 1;
/// A set of states of sockets: all, and `TCP_LISTEN` alone, which is that of a unix socket too.
const ANY: u32 = u32::MAX;
const LISTENING: u32 = 1 << 10;
/// The kernel's own largest for a part of a dump.
const LONGEST_PART: usize = 32 * 1024;
/// The kernel stores twice what it is told, in 31 bits.
const LARGEST: u32 = i32::MAX as u32 / 2;
/// With fewer numbers to choose from, one might come twice.
const FEWEST: u32 = 1 << 24;

/// The size of a receive buffer that only `CAP_NET_ADMIN` can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Challenge(u32);

impl Challenge {
    /// A fresh one.
    pub fn draw() -> Result<Self> {
        let floor = largest_without_right()?;
        let room = LARGEST.saturating_sub(floor);
        ensure!(
            room >= FEWEST,
            "net.core.rmem_max or rmem_default is so large that any process may set any buffer"
        );
        let mut bytes = [0; 4];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .context("draw a number")?;
        Ok(Self(floor + 1 + u32::from_ne_bytes(bytes) % room))
    }

    /// Takes the capability.
    pub fn show(self, stream: impl AsFd) -> Result<()> {
        let size = usize::try_from(self.0).unwrap_or_default();
        sockopt::set_socket_recv_buffer_size_force(stream, size).context("show CAP_NET_ADMIN")
    }

    /// Whether the process at the other end has shown it.
    pub fn is_shown(self, stream: impl AsFd) -> Result<bool> {
        let ours = fstat(stream).context("look at a connection")?.st_ino;
        let ours = u32::try_from(ours).context("look at a connection")?;
        let peer = ask(ours, SHOW_PEER, PEER, 0).context("ask the kernel for the peer")?;
        let size = ask(peer, SHOW_MEMORY, MEMORY, RECEIVE_BUFFER)
            .context("ask the kernel for the peer's buffer")?;
        Ok(size == self.0 * 2)
    }
}

/// Whether this process has the capability and what shows it works here.
pub fn can_be_shown() -> Result<()> {
    let (ours, theirs) = UnixStream::pair().context("open two sockets")?;
    let challenge = Challenge::draw()?;
    challenge.show(&theirs)?;
    ensure!(challenge.is_shown(&ours)?, "the kernel does not show the size of a peer's buffer");
    Ok(())
}

/// To every process of this network, on a socket that is going to listen. Takes the capability.
pub fn show_to_all(listener: impl AsFd) -> Result<()> {
    Challenge(LARGEST).show(listener)
}

/// Of those abstract names at which a process listens: whether it has shown the capability there. That
/// says something only where it `can_be_shown`.
pub fn shown_at(names: &BTreeSet<String>) -> Result<BTreeMap<String, bool>> {
    let socket = diagnosis()?;
    send(&socket, &question(0, LISTENING, SHOW_NAME | SHOW_MEMORY, DUMP), SendFlags::empty())?;
    let mut found = BTreeMap::new();
    let mut buffer = vec![0; LONGEST_PART];
    loop {
        let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        ensure!(length > 0, "the kernel ended its list of sockets too early");
        for message in messages(&buffer[..length]) {
            if let Some(answer) = message.answer() {
                answer.context("list the sockets that listen")?;
                return Ok(found);
            }
            let listener = stream_at_abstract_name(message.body());
            found.extend(listener.filter(|(name, _)| names.contains(name)));
        }
    }
}

fn stream_at_abstract_name(body: &[u8]) -> Option<(String, bool)> {
    let is_stream = u32::from(*body.get(KIND)?) == SocketType::STREAM.as_raw();
    let about = |kind| find(attributes(body.get(HEADER..)?), kind);
    let name = about(NAME)?.strip_prefix(b"\0")?;
    let size = about(MEMORY)?.get(RECEIVE_BUFFER..).and_then(number).map(u32::from_ne_bytes)?;
    is_stream.then(|| (String::from_utf8_lossy(name).into_owned(), size == LARGEST * 2))
}

/// What any process may have: what the kernel grants without the capability, or gives unasked.
fn largest_without_right() -> Result<u32> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .context("open a socket")?;
    let size = || sockopt::socket_recv_buffer_size(&socket).context("read a buffer's size");
    let unasked = size()?;
    let most = usize::try_from(LARGEST).unwrap_or(usize::MAX);
    sockopt::set_socket_recv_buffer_size(&socket, most).context("ask for the largest buffer")?;
    Ok(u32::try_from(size()?.max(unasked) / 2).unwrap_or(LARGEST))
}

/// A number that the kernel tells of a unix socket of our network namespace.
fn ask(inode: u32, show: u32, kind: u16, at: usize) -> Result<u32> {
    let socket = diagnosis()?;
    send(&socket, &question(inode, ANY, show, 0), SendFlags::empty())?;
    let mut buffer = [0; 1024];
    let (length, _) = recv(&socket, &mut buffer, RecvFlags::empty())?;
    let message = messages(&buffer[..length]).next().context("it does not answer")?;
    if let Some(answer) = message.answer() {
        answer?;
    }
    let found = message.body().get(HEADER..).map(attributes);
    let value = found.and_then(|all| find(all, kind)).and_then(|value| value.get(at..));
    value.and_then(number).map(u32::from_ne_bytes).context("it does not say")
}

fn diagnosis() -> Result<OwnedFd> {
    let (kind, protocol) = (SocketType::RAW, Some(netlink::SOCK_DIAG));
    Ok(socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, protocol)?)
}

/// `struct unix_diag_req`, without a cookie.
fn question(inode: u32, states: u32, show: u32, flags: u16) -> Vec<u8> {
    let [family, _] = AddressFamily::UNIX.as_raw().to_le_bytes();
    let mut body = vec![family, 0, 0, 0];
    for field in [states, inode, show, u32::MAX, u32::MAX] {
        body.extend(field.to_ne_bytes());
    }
    frame(BY_FAMILY, REQUEST | flags, 0, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_shown_on_its_own_connection_alone() {
        can_be_shown().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (other, _their_other) = UnixStream::pair().unwrap();
        let (first, second) = (Challenge::draw().unwrap(), Challenge::draw().unwrap());
        assert!(!first.is_shown(&ours).unwrap());
        first.show(&theirs).unwrap();
        assert!(first.is_shown(&ours).unwrap());
        assert!(!second.is_shown(&ours).unwrap(), "each connection has a number of its own");
        assert!(!first.is_shown(&other).unwrap(), "it is the other end's buffer that counts");
        assert!(!first.is_shown(&theirs).unwrap());
    }

    #[test]
    fn without_the_right_no_number_that_is_drawn_can_be_set() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let challenge = Challenge::draw().unwrap();
        let size = usize::try_from(challenge.0).unwrap();
        sockopt::set_socket_recv_buffer_size(&theirs, size).unwrap();
        assert!(!challenge.is_shown(&ours).unwrap());
    }

    #[test]
    fn a_listener_shows_it_by_its_name_and_one_of_another_kind_does_not_count() {
        use rustix::net::{SocketAddrUnix, bind};
        let name = format!("net-admin-{}", std::process::id());
        let at = |name: &str| shown_at(&BTreeSet::from([name.to_owned()])).unwrap();
        assert_eq!(at(&name), BTreeMap::new());
        let other =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        show_to_all(&other).unwrap();
        bind(&other, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
        rustix::net::listen(&other, 1).unwrap();
        assert_eq!(at(&name), BTreeMap::new());
        let largest_of_any = |socket: &OwnedFd| {
            sockopt::set_socket_recv_buffer_size(socket, 1 << 30).unwrap();
        };
        let listener = crate::process::abstract_name::listen(&name, largest_of_any).unwrap();
        assert_eq!(at(&name), BTreeMap::from([(name.clone(), false)]));
        show_to_all(&listener).unwrap();
        assert_eq!(at(&name), BTreeMap::from([(name.clone(), true)]));
        assert_eq!(at(&format!("{name}0")), BTreeMap::new());
    }

    #[test]
    fn the_end_of_the_peer_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(Challenge::draw().unwrap().is_shown(&ours).is_err());
    }
}
