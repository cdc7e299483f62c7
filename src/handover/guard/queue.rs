//! One NFQUEUE: packets wait in the kernel until we say what becomes of them
//! (`linux/netfilter/nfnetlink_queue.h`).
//!
//! The socket is closed on exec: a child that inherited it would keep the queue alive after us, and
//! packets would go to nobody.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt,
};
use tokio::io::unix::AsyncFd;

use crate::process::readiness::watch;

const SUBSYSTEM: u16 = 3 << 8;
const PACKET: u16 = SUBSYSTEM;
const VERDICT: u16 = SUBSYSTEM | 1;
const CONFIG: u16 = SUBSYSTEM | 2;
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
/// What does not fit passes.
const FAIL_OPEN: u32 = 1;
/// The packet goes through the same hook once more.
const REPEAT: u32 = 4;

/// A netlink header, and netfilter's behind it.
const HEADERS: usize = 16 + 4;
const BUFFER: usize = 64 * 1024;
const SOCKET_BUFFER: usize = 8 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Queue {
    socket: AsyncFd<OwnedFd>,
    number: u16,
}

impl Queue {
    /// The first free one from `first` on; the kernel lets nobody have one twice.
    pub(super) fn open(first: u16, most: u32) -> io::Result<Self> {
        const TRIES: u16 = 64;
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for number in (0..TRIES).map(|more| first.wrapping_add(more)) {
            match Self::bind(number, most) {
                Ok(queue) => return Ok(queue),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn bind(number: u16, most: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::NETFILTER);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        // A full buffer only lets packets pass, so as much as we get.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER);
        let flags = FAIL_OPEN.to_be_bytes();
        let request = message(
            CONFIG,
            REQUEST | ACKNOWLEDGE,
            number,
            &[
                (COMMAND, &[BIND, 0, 0, 0]),
                (PARAMETERS, &[0, 0, 0, 0, WITHOUT_CONTENT]),
                (MOST, &most.to_be_bytes()),
                (MASK, &flags),
                (FLAGS, &flags),
            ],
        );
        send(&socket, &request, SendFlags::empty())?;
        // It is there already: netlink answers while it is asked.
        let mut answer = [0; 1024];
        let (read, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
        acknowledged(&answer[..read])?;
        Ok(Self { socket: watch(socket)?, number })
    }

    pub(super) fn number(&self) -> u16 {
        self.number
    }

    /// Waits until packets have come.
    pub(super) async fn receive(&self) -> io::Result<Vec<u32>> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|_| self.read()) {
                Ok(packets) => return packets,
                Err(_would_block) => {}
            }
        }
    }

    /// What has come already; empty when nothing has.
    pub(super) fn waiting(&self) -> Vec<u32> {
        let mut all = Vec::new();
        while let Ok(packets) = self.read() {
            all.extend(packets);
        }
        all
    }

    fn read(&self) -> io::Result<Vec<u32>> {
        let mut buffer = vec![0; BUFFER];
        match recv(self.socket.get_ref(), buffer.as_mut_slice(), RecvFlags::empty()) {
            Ok((read, _)) => Ok(packets(&buffer[..read])),
            // Some did not fit and have passed.
            Err(Errno::NOBUFS) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets a packet go its way, which begins with all rules of the hook once more.
    pub(super) fn repeat(&self, packet: u32) -> io::Result<()> {
        let mut verdict = [0; 8];
        verdict[..4].copy_from_slice(&REPEAT.to_be_bytes());
        verdict[4..].copy_from_slice(&packet.to_be_bytes());
        let request = message(VERDICT, REQUEST, self.number, &[(VERDICT_HEADER, &verdict)]);
        send(self.socket.get_ref(), &request, SendFlags::empty())?;
        Ok(())
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
    let code = messages(answer)
        .find(|(kind, _)| *kind == ERROR)
        .and_then(|(_, body)| Some(i32::from_ne_bytes(body.get(16..20)?.try_into().ok()?)));
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The numbers by which the kernel knows them.
fn packets(datagram: &[u8]) -> Vec<u32> {
    messages(datagram)
        .filter(|(kind, _)| *kind == PACKET)
        .filter_map(|(_, message)| {
            let mut rest = message.get(HEADERS..)?;
            loop {
                let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
                let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
                if kind == PACKET_HEADER {
                    return Some(u32::from_be_bytes(rest.get(4..8)?.try_into().ok()?));
                }
                rest = rest.get(length.max(4).next_multiple_of(4)..)?;
            }
        })
        .collect()
}

/// Each with its type.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
        let length = usize::try_from(length).ok()?.max(16);
        let message = bytes.get(..length)?;
        let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_in_order_and_anything_else_is_passed_over() {
        let header = |id: u32| {
            let mut value = id.to_be_bytes().to_vec();
            value.extend([8, 0, 0]);
            value
        };
        let mut datagram = message(PACKET, 0, 7, &[(9, b"x"), (PACKET_HEADER, &header(258))]);
        datagram.extend(message(VERDICT, 0, 7, &[(PACKET_HEADER, &header(1))]));
        datagram.extend(message(PACKET, 0, 7, &[(PACKET_HEADER, &header(259))]));
        assert_eq!(packets(&datagram), [258, 259]);
        for end in 0..datagram.len() {
            assert!(packets(&datagram[..end]).len() < 2);
        }
    }

    #[test]
    fn an_answer_is_a_success_or_the_kernels_error() {
        let mut answer = message(ERROR, 0, 0, &[]);
        answer[16..20].copy_from_slice(&0_i32.to_ne_bytes());
        assert!(acknowledged(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-1_i32).to_ne_bytes());
        assert_eq!(acknowledged(&answer).unwrap_err().raw_os_error(), Some(1));
        assert!(acknowledged(&[]).is_err());
    }
}
