//! Acts: receives syslog messages over UDP on the loopback (`HAPROXY_SYSLOG`).
//!
//! What finds the socket's queue full is counted by the kernel, which says so with the next message
//! (`SO_RXQ_OVFL`, socket(7)).

use std::cell::{Cell, OnceCell};
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use super::socket::{LONGEST, print};

/// As much as the host lets us have (`net.core.rmem_max`).
const QUEUE: usize = 4 * 1024 * 1024;
/// At the end, however many are still sent.
const MOST_LAST_WORDS: usize = 10_000;
const TRY_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Udp {
    socket: Rc<OnceCell<UdpSocket>>,
    lost: Rc<Cell<u32>>,
    task: JoinHandle<()>,
}

/// Before anything is changed: an address that is taken is a reason not to start.
pub fn listen(address: SocketAddr) -> io::Result<StdUdpSocket> {
    let socket = StdUdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::RxqOvfl, &1)?;
    setsockopt(&socket, sockopt::RcvBuf, &QUEUE)?;
    Ok(socket)
}

impl Udp {
    /// Without a socket, as soon as whoever has the address lets go of it.
    pub(super) fn open(address: SocketAddr, socket: Option<StdUdpSocket>) -> Self {
        let (cell, lost) = (Rc::new(OnceCell::new()), Rc::new(Cell::new(0)));
        let (its_cell, its_lost) = (Rc::clone(&cell), Rc::clone(&lost));
        let task = tokio::task::spawn_local(async move {
            let opened = match socket {
                Some(socket) => Ok(socket),
                None => when_free(address).await,
            };
            match opened.and_then(UdpSocket::from_std) {
                Ok(socket) => read(its_cell.get_or_init(|| socket), address, &its_lost).await,
                Err(error) => tracing::error!(%address, %error, "no syslog message is received"),
            }
        });
        Self { socket: cell, lost, task }
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.get().into()
    }
}

impl Drop for Udp {
    fn drop(&mut self) {
        self.task.abort();
        let Some(socket) = self.socket.get() else { return };
        let mut datagram = vec![0; LONGEST + 1];
        for _ in 0..MOST_LAST_WORDS {
            let Ok(length) = receive(socket, &mut datagram, &self.lost) else { return };
            print(&datagram[..length]);
        }
    }
}

/// No event tells when an address is free.
async fn when_free(address: SocketAddr) -> io::Result<StdUdpSocket> {
    loop {
        match listen(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                tokio::time::sleep(TRY_AGAIN).await;
            }
            opened => return opened,
        }
    }
}

async fn read(socket: &UdpSocket, address: SocketAddr, lost: &Cell<u32>) {
    tracing::info!(%address, "syslog messages are printed");
    let mut datagram = vec![0; LONGEST + 1];
    loop {
        let before = lost.get();
        let received = socket.async_io(Interest::READABLE, || receive(socket, &mut datagram, lost));
        match received.await {
            Ok(length) => print(&datagram[..length]),
            Err(error) => return tracing::error!(%error, "no syslog message can be read any more"),
        }
        let more = lost.get().wrapping_sub(before);
        if more > 0 {
            tracing::warn!("{more} syslog messages were lost: they came faster than they are read");
        }
    }
}

fn receive(socket: &UdpSocket, datagram: &mut [u8], lost: &Cell<u32>) -> io::Result<usize> {
    let mut pieces = [IoSliceMut::new(datagram)];
    let mut space = nix::cmsg_space!(u32);
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    let message = recvmsg::<()>(fd, &mut pieces, Some(&mut space), flags)?;
    for said in message.cmsgs()? {
        if let ControlMessageOwned::RxqOvfl(count) = said {
            lost.set(count);
        }
    }
    Ok(message.bytes)
}
