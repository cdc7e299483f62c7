//! Acts: a child of ours, held by its pidfd (`pidfd_open(2)`, Linux 5.3).
//!
//! It is opened right after the spawn, on the thread that also reaps, so the PID cannot have been
//! given to somebody else in between.

use std::io;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

use super::procfs;
use super::readiness::watch;
use crate::fault::{self, Point};

#[derive(Debug)]
pub struct Handle {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Handle {
    pub fn open(child: &std::process::Child) -> Result<Self> {
        let pid = Pid::from_child(child);
        let pidfd = fault::at(Point::Pidfd)
            .and_then(|()| Ok(pidfd_open(pid, PidfdFlags::empty())?))
            .with_context(|| format!("open a pidfd for process {}", child.id()))?;
        Ok(Self { pid, pidfd })
    }

    /// Of a child of that process. Its PID may have been given away before: the parent is looked at
    /// when the pidfd is there already.
    pub fn of_child(pid: i32, parent: i32) -> Result<Self> {
        let pid = Pid::from_raw(pid).with_context(|| format!("find a process in PID {pid}"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .with_context(|| format!("open a pidfd for process {pid}"))?;
        let found = procfs::parent(pid.as_raw_nonzero().get());
        ensure!(found.ok().flatten() == Some(parent), "process {pid} is no child of {parent}");
        Ok(Self { pid, pidfd })
    }

    /// What comes back when the process has ended.
    pub fn end(&self) -> io::Result<impl Future<Output = ()> + use<>> {
        let pidfd = watch(self.pidfd.try_clone()?)?;
        Ok(async move {
            // An error would mean that the descriptor is none.
            let _ = pidfd.readable().await;
        })
    }

    /// Whether or not its parent has waited for it.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut pidfd = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut pidfd, Some(&Timespec::default())).is_ok_and(|ended| ended > 0)
    }

    /// To all that it started and that stayed with it. For a leader of its group that nobody has
    /// waited for: until then the group is its own.
    pub fn kill_group(&self) {
        // Nobody in there any more is what was wanted.
        let _ = kill_process_group(self.pid, Signal::KILL);
    }

    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// A process that is gone already is not an error: that is what the signal was for, or its
    /// exit is about to be reported.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        fault::at(Point::Signal).with_context(|| {
            format!("send signal {} to process {}", signal.as_raw(), self.pid())
        })?;
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno).with_context(|| {
                format!("send signal {} to process {}", signal.as_raw(), self.pid())
            }),
        }
    }
}
