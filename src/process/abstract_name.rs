//! Acts: unix sockets by an abstract name (`unix(7)`): they are in the network namespace, have no file
//! and no owner, and are gone when the last process that has them is.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// As long as the kernel allows.
const QUEUE: i32 = -1;

/// Non-blocking. `before`: what is done to the socket before any process can see it there.
pub fn listen(name: &str, before: impl FnOnce(&OwnedFd)) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    before(&socket);
    net::bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    net::listen(&socket, QUEUE)?;
    Ok(socket.into())
}

/// Non-blocking. std's own would block while the queue is full.
pub fn connect(name: &[u8]) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::connect(&socket, &SocketAddrUnix::new_abstract_name(name)?)?;
    Ok(socket.into())
}
