//! Acts: a process that is not ours, held by its pidfd before anything is asked of it.
//!
//! As long as the pidfd says that the process lives, its PID belongs to nobody else; so what was
//! read under that PID in between was about this very process, and signals reach no other.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, test_kill_process};

use super::identity::{Look, Network, Refusal, Sight, judge, sight};
use crate::process::procfs::{
    inner_pid_in_status, is_dead_in_stat, name, parent_in_stat, start_in_stat, user_in_status,
};
use crate::process::readiness;

/// `PROC_PID_INIT_INO`: the machine's own PID namespace (`include/linux/proc_ns.h`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    pub look: Look,
}

impl Process {
    /// Only a HAProxy of our network namespace that we may signal.
    pub fn open(number: i32) -> Result<Self, Refusal> {
        let pid = Pid::from_raw(number).ok_or(Refusal::Gone)?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Err(Refusal::NotVisible(our_sight())),
            Err(_) if is_thread(number) => return Err(Refusal::Thread),
            Err(errno) => return Err(Refusal::Unreadable(errno.to_string())),
        };
        if number == rustix::process::getpid().as_raw_nonzero().get() {
            return Err(Refusal::Ourselves);
        }
        let first = look(number).map_err(|error| unreadable(&error))?;
        let process = Self { pid, pidfd, look: first };
        judge(&process.look)?;
        let again = look(number).map_err(|error| unreadable(&error))?;
        if process.has_ended() {
            return Err(Refusal::Gone);
        }
        if again.started != process.look.started {
            return Err(Refusal::Changed);
        }
        match test_kill_process(pid) {
            Err(Errno::PERM) => Err(Refusal::NotAllowed(process.look.name)),
            _ => Ok(process),
        }
    }

    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut watched = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut watched, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    /// One that has ended is not an error: it lets go of everything.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno).with_context(|| {
                format!("send signal {} to HAProxy {}", signal.as_raw(), self.pid())
            }),
        }
    }

    /// Comes back when the process has ended.
    pub async fn gone(&self) -> io::Result<()> {
        readiness::watch(self.pidfd.try_clone()?)?.readable().await.map(drop)
    }
}

fn look(pid: i32) -> io::Result<Look> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let torn = || io::Error::new(ErrorKind::InvalidData, format!("/proc/{pid}/stat: {stat:?}"));
    let executable = fs::read_link(format!("/proc/{pid}/exe")).ok();
    Ok(Look {
        name: name(pid)?,
        executable: executable.map(|path| path.to_string_lossy().into_owned()),
        started: start_in_stat(&stat).ok_or_else(torn)?,
        dead: is_dead_in_stat(&stat),
        parent: parent_in_stat(&stat).ok_or_else(torn)?,
        inner_pid: inner_pid_in_status(&status).unwrap_or(pid),
        network: network(pid)?,
        user: user_in_status(&status).ok_or_else(torn)?,
    })
}

/// The link is refused for a process that changed its user. The files in its `net` directory may be
/// looked at by anybody, and each network namespace has inodes of its own for them.
fn network(pid: i32) -> io::Result<Network> {
    let theirs = fs::read_link(format!("/proc/{pid}/ns/net"));
    let same = if let (Ok(theirs), Ok(ours)) = (theirs, fs::read_link("/proc/thread-self/ns/net")) {
        theirs == ours
    } else {
        let inode = |path: &str| fs::metadata(path).map(|file| file.st_ino());
        inode(&format!("/proc/{pid}/net/dev"))? == inode("/proc/thread-self/net/dev")?
    };
    Ok(if same { Network::Ours } else { Network::Other })
}

fn is_thread(number: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{number}/status")).unwrap_or_default();
    let of = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    of.is_some_and(|of| of.trim() != number.to_string())
}

fn unreadable(error: &io::Error) -> Refusal {
    match (error.kind(), error.raw_os_error().map(Errno::from_raw_os_error)) {
        (ErrorKind::NotFound, _) | (_, Some(Errno::SRCH)) => Refusal::Gone,
        _ => Refusal::Unreadable(error.to_string()),
    }
}

#[must_use]
pub fn our_sight() -> Sight {
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let initial = namespace.to_str() == Some(INITIAL_PID_NAMESPACE);
    let pid_1 = rustix::process::getpid().is_init();
    sight(initial, &name(1).unwrap_or_default(), pid_1)
}
