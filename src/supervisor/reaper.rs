//! Acts: the one who waits for children.
//!
//! It waits for children of its own thread only (`__WNOTHREAD`, wait(2)), which is hapilot's first: to
//! that the kernel gives orphans, and HAProxy once the thread that started it has ended. A program of
//! hapilot's is a child of the thread that runs it and waits for it (`process::program`), so its status
//! cannot be stolen here, and orphans are reaped while programs run.

use std::io;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::fault::{self, Point};
use crate::process::exit::Exit;

/// Every child of this thread that has ended, and those that are `known`, whose starting thread may be
/// there still.
#[must_use]
pub fn reap(known: &[i32]) -> Vec<(i32, Exit)> {
    let known = known.iter().filter_map(|pid| ended(|| Id::Pid(Pid::from_raw(*pid)), ANY));
    let own = std::iter::from_fn(|| ended(|| Id::All, WaitPidFlag::__WNOTHREAD));
    known.chain(own).collect()
}

const ANY: WaitPidFlag = WaitPidFlag::empty();

/// The first of these that has.
fn ended<'fd>(of: impl Fn() -> Id<'fd>, which: WaitPidFlag) -> Option<(i32, Exit)> {
    loop {
        return match waitid(of(), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | which) {
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
