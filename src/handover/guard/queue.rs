//! Acts: one NFQUEUE. Packets wait in the kernel until we say what becomes of them.
//!
//! The socket is closed on exec: a child that inherited it would keep the queue alive after us, and
//! packets would go to nobody.

use std::io;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt,
};
use tokio::io::unix::AsyncFd;

use super::queued;
use crate::fault::{self, Point};
use crate::host::netlink::messages;
use crate::process::readiness::watch;

const BUFFER: usize = 64 * 1024;
const SOCKET_BUFFER: usize = 8 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Queue {
    socket: AsyncFd<OwnedFd>,
    number: u16,
}

impl Queue {
    /// The first free one from `first` on; the kernel lets nobody have one twice.
    pub(super) fn open(first: u16, most: u32) -> Result<Self> {
        const TRIES: u16 = 64;
        fault::at(Point::Queue).context("open an NFQUEUE")?;
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for number in (0..TRIES).map(|more| first.wrapping_add(more)) {
            match Self::bind(number, most) {
                Ok(queue) => return Ok(queue),
                Err(error) => last = error,
            }
        }
        let end = first.wrapping_add(TRIES - 1);
        Err(last).with_context(|| {
            format!(
                "open an NFQUEUE, a number from {first} to {end} \
                 (/proc/net/netfilter/nfnetlink_queue shows which are taken)"
            )
        })
    }

    fn bind(number: u16, most: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::NETFILTER);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        // A full buffer only lets packets pass, so as much as we get.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER);
        send(&socket, &queued::bind(number, most), SendFlags::empty())?;
        // It is there already: netlink answers while it is asked.
        let mut answer = [0; 1024];
        let (read, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
        let answered = messages(&answer[..read]).find_map(|message| message.answer());
        answered.unwrap_or_else(|| Err(io::ErrorKind::InvalidData.into()))?;
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
            Ok((read, _)) => Ok(queued::packets(&buffer[..read])),
            // Some did not fit and have passed.
            Err(Errno::NOBUFS) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets a packet go its way, which begins with all rules of the hook once more.
    pub(super) fn repeat(&self, packet: u32) -> io::Result<()> {
        send(self.socket.get_ref(), &queued::repeat(self.number, packet), SendFlags::empty())?;
        Ok(())
    }
}
