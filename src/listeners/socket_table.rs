//! Acts: the kernel's own table of TCP sockets (`sock_diag(7)`), of our network namespace.

use std::net::SocketAddr as Address;

use anyhow::{Context, Result};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

const HEADER: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub local_port: u16,
    /// 0 while nobody has accepted it.
    pub inode: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    pub local_port: u16,
    pub inode: u64,
    /// Connections that wait to be accepted.
    pub queued: u32,
    pub backlog: u32,
}

/// A connection in the middle of its handshake. The kernel does not tell with which listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HalfOpen {
    pub local_port: u16,
    pub remote: Address,
}

/// Every established TCP connection, IPv4 and IPv6.
pub fn established() -> Result<Vec<Connection>> {
    dump(&StateFlags::ESTABLISHED, |response| Connection {
        local_port: response.header.socket_id.source_port,
        inode: u64::from(response.header.inode),
    })
}

/// Every listening TCP socket.
pub fn listening() -> Result<Vec<Listening>> {
    dump(&StateFlags::LISTEN, |response| Listening {
        local_port: response.header.socket_id.source_port,
        inode: u64::from(response.header.inode),
        queued: response.header.recv_queue,
        backlog: response.header.send_queue,
    })
}

/// Every handshake that is under way.
pub fn half_open() -> Result<Vec<HalfOpen>> {
    dump(&StateFlags::SYN_RECV, |response| {
        let id = &response.header.socket_id;
        let remote = Address::new(id.destination_address, id.destination_port);
        HalfOpen { local_port: id.source_port, remote }
    })
}

fn dump<T>(states: &StateFlags, read: impl Fn(&InetResponse) -> T) -> Result<Vec<T>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        dump_family(family, states, |response| found.push(read(response)))
            .context("ask the kernel for its TCP sockets")?;
    }
    Ok(found)
}

fn dump_family(family: u8, states: &StateFlags, mut each: impl FnMut(&InetResponse)) -> Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(family, states.clone()), 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while rest.len() >= HEADER {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)?;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    each(&response);
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io().into()),
                _ => {}
            }
            // Messages are padded to four bytes; a length below the header's would never end.
            let length = usize::try_from(message.header.length)?.max(HEADER);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn request(family: u8, states: StateFlags) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_connection_of_ours_is_in_the_table() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let before = established().unwrap().iter().filter(|c| c.local_port == port).count();
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _server = listener.accept().unwrap();
        let after: Vec<_> =
            established().unwrap().into_iter().filter(|c| c.local_port == port).collect();
        assert_eq!((before, after.len()), (0, 1));
        assert_ne!(after[0].inode, 0);
    }

    #[test]
    fn a_listener_is_there_by_its_inode_with_its_queue_until_it_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = rustix::fs::fstat(listener.as_fd()).unwrap().st_ino;
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let find = || listening().unwrap().into_iter().find(|l| l.inode == inode);
        let found = find().unwrap();
        assert_eq!(found.local_port, listener.local_addr().unwrap().port());
        assert_eq!(found.queued, 1);
        assert!(found.backlog > 0);
        drop(listener);
        assert_eq!(find(), None);
    }
}
