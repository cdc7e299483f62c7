//! Acts: the one who waits for children.
//!
//! It runs on the thread that also runs the synchronous commands (iptables and the like), so at
//! this moment no command is waiting for a child of its own: every corpse is a generation's or an
//! orphan's, and nobody's status is stolen.

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use crate::process::exit::Exit;

/// Every child that has ended, oldest first.
#[must_use]
pub fn reap() -> Vec<(i32, Exit)> {
    let mut ended = Vec::new();
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(pid, code)) => {
                // The kernel keeps eight bits of it.
                let code = u8::try_from(code & 0xff).unwrap_or(u8::MAX);
                ended.push((pid.as_raw(), Exit::Code(code)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                ended.push((pid.as_raw(), Exit::Signal(signal as i32)));
            }
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return ended,
        }
    }
}

/// As PID 1 orphans come to us anyway; elsewhere this asks for them (`prctl(2)`,
/// `PR_SET_CHILD_SUBREAPER`).
pub fn adopt_orphans() -> nix::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)
}
