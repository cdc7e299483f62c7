//! Acts: the one who waits for children.
//!
//! It runs on the thread that also runs the synchronous commands (iptables and the like), so at
//! this moment none of those is waiting for a child of its own: every corpse is a generation's or an
//! orphan's, and nobody's status is stolen. Where a command runs beside the loop (`process::aside`)
//! it asks for the generations alone.

use std::io;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::fault::{self, Point};
use crate::process::aside::is_busy;
use crate::process::exit::Exit;

/// Every child that has ended, oldest first; of those only that are `known`, while somebody else
/// waits for others.
#[must_use]
pub fn reap(known: &[i32]) -> Vec<(i32, Exit)> {
    if is_busy() {
        return known.iter().filter_map(|pid| ended(|| Id::Pid(Pid::from_raw(*pid)))).collect();
    }
    std::iter::from_fn(|| ended(|| Id::All)).collect()
}

/// The first of these that has.
fn ended<'fd>(of: impl Fn() -> Id<'fd>) -> Option<(i32, Exit)> {
    loop {
        return match waitid(of(), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(pid, code)) => {
                // The kernel keeps eight bits of it.
                let code = u8::try_from(code & 0xff).unwrap_or(u8::MAX);
                Some((pid.as_raw(), Exit::Code(code)))
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                Some((pid.as_raw(), Exit::Signal(signal as i32)))
            }
            Err(Errno::EINTR) => continue,
            Ok(_) | Err(_) => None,
        };
    }
}

/// As PID 1 orphans come to us anyway; elsewhere this asks for them (`prctl(2)`,
/// `PR_SET_CHILD_SUBREAPER`).
pub fn adopt_orphans() -> io::Result<()> {
    fault::at(Point::Orphans)?;
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}
