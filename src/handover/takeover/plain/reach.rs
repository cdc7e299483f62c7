//! Acts: finds a unix socket of a process in another container.
//!
//! The table of the kernel has the name under which a process bound it, in that process's own file
//! system. That is entered through `/proc/PID/root`; a HAProxy with `chroot` has left it, but the
//! way up from there is open to us. What is found is held, so that a name longer than the 108 bytes
//! of an address does not matter.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2};

use super::tables::UnixName;

/// Something to connect to.
#[derive(Debug)]
pub(super) struct Door {
    /// For people.
    pub(super) shown: String,
    path: PathBuf,
    held: Option<(OwnedFd, Stat)>,
}

/// Where names begin.
#[derive(Debug)]
pub(super) struct Root(OwnedFd);

/// Deep enough for any `chroot`.
const WAY_UP: &str = "../../../../../../../../../../../../../../../../../../../../../../../..";

impl Root {
    pub(super) fn ours() -> io::Result<Self> {
        Self::open(Path::new("/"))
    }

    /// That of the process, and the one that it had before a `chroot`. None where we may not.
    pub(super) fn of(pid: i32) -> Vec<Self> {
        let own = PathBuf::from(format!("/proc/{pid}/root"));
        let before = own.join(WAY_UP);
        [own, before].iter().filter_map(|path| Self::open(path).ok()).collect()
    }

    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, path, flags, Mode::empty())?))
    }

    fn socket(&self, path: &Path) -> io::Result<(OwnedFd, Stat)> {
        // Links such as /var/run -> /run mean the other file system's.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = openat2(&self.0, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        let stat = fstat(&found)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Socket {
            Ok((found, stat))
        } else {
            Err(io::Error::from(io::ErrorKind::InvalidInput))
        }
    }
}

impl Door {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether that name means the same file in our own file system.
    pub(super) fn is_ours_too(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        self.held.as_ref().is_none_or(|(_, theirs)| {
            fs::metadata(&self.shown)
                .is_ok_and(|ours| (ours.dev(), ours.ino()) == (theirs.st_dev, theirs.st_ino))
        })
    }

    fn same_file(&self, other: &Self) -> bool {
        let file = |door: &Self| door.held.as_ref().map(|(_, stat)| (stat.st_dev, stat.st_ino));
        file(self) == file(other)
    }
}

/// Every socket that the name means from one of those roots.
pub(super) fn doors(name: &UnixName, roots: &[Root]) -> Vec<Door> {
    match name {
        UnixName::Abstract(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            let mut path = vec![0];
            path.extend_from_slice(bytes);
            vec![Door {
                shown: format!("abns@{}", text.trim_end_matches('\0')),
                path: std::ffi::OsString::from_vec(path).into(),
                held: None,
            }]
        }
        UnixName::Path(path) => {
            let mut doors = Vec::new();
            for (socket, stat) in roots.iter().filter_map(|root| root.socket(path).ok()) {
                let door = Door {
                    shown: path.display().to_string(),
                    path: format!("/proc/self/fd/{}", socket.as_raw_fd()).into(),
                    held: Some((socket, stat)),
                };
                if !doors.iter().any(|other: &Door| other.same_file(&door)) {
                    doors.push(door);
                }
            }
            doors
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_name_longer_than_an_address_can_be_connected_to() {
        let directory = tempfile::tempdir().unwrap();
        let short = directory.path().join("x.sock");
        let _listener = UnixListener::bind(&short).unwrap();
        let deep = directory.path().join("d".repeat(150));
        fs::create_dir(&deep).unwrap();
        let long = deep.join("x.sock");
        fs::rename(&short, &long).unwrap();
        assert!(UnixStream::connect(&long).is_err(), "the kernel takes it after all");
        let roots = [Root::ours().unwrap()];
        let found = doors(&UnixName::Path(long), &roots);
        assert_eq!(found.len(), 1);
        assert!(found[0].is_ours_too());
        UnixStream::connect(found[0].path()).unwrap();
    }

    #[test]
    fn only_sockets_are_doors_and_each_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let socket = directory.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let roots = Root::of(pid);
        assert_eq!(roots.len(), 2);
        assert!(doors(&UnixName::Path(file), &roots).is_empty());
        assert_eq!(doors(&UnixName::Path(socket), &roots).len(), 1);
    }
}
