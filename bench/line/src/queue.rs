//! One NFQUEUE, as a line uses it (`linux/netfilter/nfnetlink_queue.h`).
//!
//! The kernel numbers packets in the order in which they come, so that one message releases all up
//! to a number.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};

const SUBSYSTEM: u16 = 3 << 8;
const PACKET: u16 = SUBSYSTEM;
const CONFIG: u16 = SUBSYSTEM | 2;
const VERDICT_BATCH: u16 = SUBSYSTEM | 3;
const ERROR: u16 = 2;

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;

const PACKET_HEADER: u16 = 1;
const VERDICT_HEADER: u16 = 2;
const COMMAND: u16 = 1;
const PARAMETERS: u16 = 2;
const MOST: u16 = 3;
const MASK: u16 = 4;
const FLAGS: u16 = 5;

const BIND: u8 = 1;
const WITHOUT_CONTENT: u8 = 1;
const ACCEPT: u32 = 1;
/// Big packets stay whole.
const GSO: u32 = 4;

/// A netlink header, and netfilter's behind it.
const HEADERS: usize = 16 + 4;
/// What is under way in a second at 100 times the load.
const LENGTH: u32 = 100_000;
const SOCKET_BUFFER: usize = 64 * 1024 * 1024;

/// netlink-sys closes it on exec.
pub(crate) struct Queue {
    socket: Socket,
    number: u16,
}

impl Queue {
    pub(crate) fn open(number: u16) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.set_no_enobufs(true)?;
        socket.set_non_blocking(true)?;
        let queue = Self { socket, number };
        sockopt::set_socket_recv_buffer_size_force(&queue, SOCKET_BUFFER)?;
        let flags = GSO.to_be_bytes();
        queue.send(
            CONFIG,
            REQUEST | ACKNOWLEDGE,
            &[
                (COMMAND, &[BIND, 0, 0, 0]),
                (PARAMETERS, &[0, 0, 0, 0, WITHOUT_CONTENT]),
                (MOST, &LENGTH.to_be_bytes()),
                (MASK, &flags),
                (FLAGS, &flags),
            ],
        )?;
        // It is there already: netlink answers while it is asked.
        let mut answer = [0; 1024];
        let (read, _) = recv(&queue, &mut answer, RecvFlags::empty())?;
        acknowledged(&answer[..read])?;
        Ok(queue)
    }

    /// `None` when nothing has come.
    pub(crate) fn last_of_those_that_came(&self) -> io::Result<Option<u32>> {
        let mut buffer = [0; 4096];
        let mut last = None;
        loop {
            match recv(self, &mut buffer, RecvFlags::empty()) {
                Ok((read, _)) => last = packet(&buffer[..read]).or(last),
                Err(rustix::io::Errno::AGAIN) => return Ok(last),
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(crate) fn accept_up_to(&self, packet: u32) -> io::Result<()> {
        let mut verdict = [0; 8];
        verdict[..4].copy_from_slice(&ACCEPT.to_be_bytes());
        verdict[4..].copy_from_slice(&packet.to_be_bytes());
        self.send(VERDICT_BATCH, REQUEST, &[(VERDICT_HEADER, &verdict)])
    }

    fn send(&self, kind: u16, flags: u16, attributes: &[(u16, &[u8])]) -> io::Result<()> {
        send(self, &message(kind, flags, self.number, attributes), SendFlags::empty())?;
        Ok(())
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn message(kind: u16, flags: u16, queue: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([0, 0]);
    bytes.extend(queue.to_be_bytes());
    for (kind, value) in attributes {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let field = |at: usize| answer.get(at..at + 4)?.try_into().ok().map(i32::from_ne_bytes);
    match (kind(answer), field(16)) {
        (Some(ERROR), Some(0)) => Ok(()),
        (Some(ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Its number; the kernel sends each in a datagram of its own.
fn packet(datagram: &[u8]) -> Option<u32> {
    if kind(datagram)? != PACKET {
        return None;
    }
    let mut rest = datagram.get(HEADERS..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        if u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) == PACKET_HEADER {
            return Some(u32::from_be_bytes(rest.get(4..8)?.try_into().ok()?));
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn kind(message: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?))
}
