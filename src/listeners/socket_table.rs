//! Acts: the kernel's own table of TCP sockets (`sock_diag(7)`), of our network namespace.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result};
use rustix::net::netdevice::index_to_name;
use rustix::net::{
    self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
    socket_with,
};

use super::compare::Seen;
use super::diagnosis::{
    ESTABLISHED, Extensions, HELD, LISTEN, SYN_RECEIVED, Socket, question, read, read_unix,
    unix_question,
};

pub use super::diagnosis::{Connection, HalfOpen, Listening, Session};

/// The kernel sends no more at once.
const BUFFER: usize = 64 * 1024;

/// Every established TCP connection, IPv4 and IPv6.
pub fn established() -> Result<Vec<Connection>> {
    dump(ESTABLISHED, Extensions::None, |socket| socket.into())
}

/// Every TCP connection that is not only the kernel's any more.
pub fn sessions() -> Result<Vec<Session>> {
    let mut found = Vec::new();
    each_session(|session| found.push(session))?;
    Ok(found)
}

/// The same one by one, for there may be many.
pub fn each_session(mut look: impl FnMut(Session)) -> Result<()> {
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        let each = |socket: &Socket<'_>| {
            let session: Session = socket.into();
            if session.inode != 0 {
                look(session);
            }
        };
        ask(&question(family, HELD, Extensions::Info), each)
            .context("ask the kernel for its TCP sockets")?;
    }
    Ok(())
}

/// Every listening TCP socket.
pub fn listening() -> Result<Vec<Listening>> {
    dump(LISTEN, Extensions::None, |socket| socket.into())
}

/// Every listening TCP socket by its address, as `fetch` writes it.
pub fn seen() -> Result<Vec<Seen>> {
    let any = net::socket(AddressFamily::INET, SocketType::DGRAM, None)
        .context("open a socket to ask for the names of interfaces")?;
    let found = dump(LISTEN, Extensions::None, |socket| {
        (socket.bound_to(), socket.interface, u64::from(socket.inode))
    })?;
    let seen = |(mut address, interface, inode): (String, u32, u64)| {
        // One that is gone has nothing bound to it any more.
        if let Some(name) = (interface != 0).then(|| index_to_name(&any, interface).ok()).flatten()
        {
            let _ = write!(address, " interface {name}");
        }
        Seen { address, inode }
    };
    Ok(found.into_iter().map(seen).collect())
}

/// The users that opened the unix sockets that listen, by inode; none where the kernel does not say.
pub fn unix_users() -> Result<BTreeMap<u64, u32>> {
    let mut users = BTreeMap::new();
    let note = |inode: u32, user| users.extend([(u64::from(inode), user)]);
    ask_for(&unix_question(), note, |datagram, note| read_unix(datagram, note))
        .context("ask the kernel for its unix sockets")?;
    Ok(users)
}

/// Every handshake that is under way.
pub fn half_open() -> Result<Vec<HalfOpen>> {
    dump(SYN_RECEIVED, Extensions::None, |socket| socket.into())
}

fn dump<T>(states: u32, extensions: Extensions, each: impl Fn(&Socket<'_>) -> T) -> Result<Vec<T>> {
    let mut found = Vec::new();
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        let question = question(family, states, extensions);
        ask(&question, |socket| found.push(each(socket)))
            .context("ask the kernel for its TCP sockets")?;
    }
    Ok(found)
}

fn ask(question: &[u8], each: impl FnMut(&Socket<'_>)) -> Result<()> {
    ask_for(question, each, |datagram, each| read(datagram, each))
}

fn ask_for<E>(
    question: &[u8],
    mut each: E,
    read: impl Fn(&[u8], &mut E) -> Option<std::io::Result<()>>,
) -> Result<()> {
    let protocol = Some(netlink::SOCK_DIAG);
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    send(&socket, question, SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let (length, _) = recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        if let Some(end) = read(&buffer[..length], &mut each) {
            return Ok(end?);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr as Address, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::super::fetch::describe;
    use super::super::wire::Description;
    use super::*;

    #[test]
    fn a_unix_listener_has_its_user() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(directory.path().join("x")).unwrap();
        let inode = rustix::fs::fstat(&listener).unwrap().st_ino;
        let own = std::fs::metadata(directory.path()).unwrap().uid();
        assert_eq!(unix_users().unwrap().get(&inode), Some(&own));
    }

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
    fn a_listener_is_seen_as_the_one_who_fetched_it_sees_it() {
        use rustix::net::sockopt::set_ipv6_v6only;
        for (bound, v6only) in [("[::]:0", true), ("[::]:0", false), ("[::1]:0", true)] {
            let socket = net::socket(AddressFamily::INET6, SocketType::STREAM, None).unwrap();
            set_ipv6_v6only(&socket, v6only).unwrap();
            net::bind(&socket, &bound.parse::<Address>().unwrap()).unwrap();
            net::listen(&socket, 1).unwrap();
            let lo = std::ffi::OsString::from("lo");
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &lo)
                .unwrap();
            let interface = Some("lo".to_owned());
            let fetched = describe(socket, Description { namespace: None, interface }).unwrap();
            assert!(seen().unwrap().contains(&fetched.seen()), "{:?}", fetched.seen());
        }
    }

    #[test]
    fn a_session_says_how_long_it_is_silent_until_its_owner_lets_go() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let find = || sessions().unwrap().into_iter().find(|session| session.local_port == port);
        let age = |session: Option<Session>| session.unwrap().silent;
        while age(find()) < Duration::from_millis(30) {
            std::thread::yield_now();
        }
        let written = std::time::Instant::now();
        server.write_all(b"x").unwrap();
        // The kernel counts by its own ticks.
        assert!(age(find()) < written.elapsed() + Duration::from_millis(20));
        // Unread, it would end the connection with a reset.
        client.read_exact(&mut [0]).unwrap();
        drop(client);
        assert!(find().is_some(), "the client left, our side is still held");
        drop(server);
        assert_eq!(find(), None);
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
