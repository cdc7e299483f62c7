//! Acts: a child of ours, held by its pidfd (`pidfd_open(2)`, Linux 5.3).
//!
//! It is opened right after the spawn, on the thread that also reaps, so the PID cannot have been
//! given to somebody else in between.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

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
