//! Acts: binds unix sockets by a path, with the rights that they are to have from their first moment.
//!
//! The kernel gives the file of a socket the mode of the socket itself, less the `umask` (`unix(7)` does
//! not say so). A change of the mode by the path could meet what another process has put there.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use rustix::process::umask;

use super::file::directory;

/// As std asks for.
const LONGEST_QUEUE: i32 = 4096;

/// For our own user alone. The directory is ours alone too: if it is mounted somewhere else, or
/// opened up, the socket is closed still.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = bound(path, SocketType::STREAM, Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&socket, LONGEST_QUEUE)?;
    Ok(socket.into())
}

/// Every user may send to it. It may be in a directory of HAProxy's user, such as its `chroot`: no
/// link that this user may change leads to another place.
pub fn receive_from_all(path: &Path) -> io::Result<UnixDatagram> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let directory = directory(path.parent().unwrap_or(Path::new("")))?;
    let held = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    // The whole process has this for a moment; nothing else of ours makes a file meanwhile.
    let before = umask(Mode::empty());
    let socket = bound(&held, SocketType::DGRAM, Mode::from_raw_mode(0o666));
    umask(before);
    Ok(socket?.into())
}

fn bound(path: &Path, kind: SocketType, mode: Mode) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    fchmod(&socket, mode)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_socket_is_born_with_its_rights() {
        let directory = tempfile::tempdir().unwrap();
        let mode = |name: &str| {
            fs::metadata(directory.path().join(name)).unwrap().permissions().mode() & 0o777
        };
        let _private = listen(&directory.path().join("private")).unwrap();
        let _open = receive_from_all(&directory.path().join("open")).unwrap();
        assert_eq!((mode("private"), mode("open")), (0o600, 0o666));
        // What is there is not touched, whatever it is a link to.
        std::os::unix::fs::symlink("victim", directory.path().join("link")).unwrap();
        assert!(listen(&directory.path().join("link")).is_err());
        assert!(!directory.path().join("victim").exists());
        let (theirs, elsewhere) = (directory.path().join("theirs"), directory.path().join("other"));
        fs::create_dir(&theirs).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, theirs.join("dev")).unwrap();
        std::os::unix::fs::chown(&theirs, Some(65534), None).unwrap();
        assert!(receive_from_all(&theirs.join("dev/log")).is_err());
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    }
}
