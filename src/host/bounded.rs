//! Bounds a synchronous call that runs a program, even when that program hangs.
//!
//! The `iptables` package hides its child's pid, and the one thread of this program waits for it.
//! So a watchdog thread finds that child when the time is up, and kills it with its descendants:
//! one that kept the output pipe open would make the caller wait on. A child is ours when we are
//! its parent, it is in our network namespace and its arguments are the ones that we gave.

use std::fmt;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::process::procfs;

/// How long after a kill the watchdog looks again, should the call still not have returned.
const AGAIN: Duration = Duration::from_millis(20);

/// A program that gets less could not finish: starting it would only cost the others their time.
const SHORTEST: Duration = Duration::from_millis(5);

/// It may or may not have done what it was told.
#[derive(Debug)]
pub(super) struct Killed {
    program: String,
    how: String,
}

impl Killed {
    /// Of what ended by a signal: the watchdog of a call beside this one has the same arguments to
    /// look for, the kernel may be out of memory.
    pub(super) fn by_signal(program: &str, status: ExitStatus) -> Option<Self> {
        status.signal()?;
        Some(Self { program: program.to_owned(), how: format!("was killed ({status})") })
    }
}

impl fmt::Display for Killed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program, self.how)
    }
}

impl std::error::Error for Killed {}

/// What the child looks like in `/proc`.
#[derive(Debug)]
struct Child {
    /// Zero bytes between them, as in `/proc/PID/cmdline`. Without the program's name: a wrapper
    /// executes another program in its own place, with the same arguments.
    arguments: Vec<u8>,
    namespace: PathBuf,
}

/// Runs `call`, which shall run `program` with `arguments`; an error when it had to be killed.
pub(super) fn within<T>(
    limit: Duration,
    program: &str,
    arguments: &[&str],
    call: impl FnOnce() -> T,
) -> Result<T> {
    if limit < SHORTEST {
        bail!("no time is left to run {program}");
    }
    let child = Child::new(arguments)?;
    let (finished, watch) = mpsc::channel::<()>();
    let watchdog = thread::Builder::new()
        .name("watchdog".into())
        .spawn(move || {
            let mut wait = limit;
            let mut killed = false;
            while watch.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                killed |= child.kill();
                wait = AGAIN;
            }
            killed
        })
        .context("start a watchdog")?;
    let output = call();
    drop(finished);
    match watchdog.join() {
        Ok(false) => Ok(output),
        Ok(true) => {
            let how = format!("was still running after {limit:?} and was killed");
            Err(Killed { program: program.into(), how }.into())
        }
        Err(_) => bail!("the watchdog of {program} panicked"),
    }
}

impl Child {
    fn new(words: &[&str]) -> Result<Self> {
        let namespace =
            fs::read_link("/proc/thread-self/ns/net").context("read our network namespace")?;
        // The zero byte that ends the name, or the last argument: never a part of a longer word.
        let mut arguments = vec![0];
        for word in words {
            arguments.extend_from_slice(word.as_bytes());
            arguments.push(0);
        }
        Ok(Self { arguments, namespace })
    }

    fn kill(&self) -> bool {
        let us = std::process::id().cast_signed();
        let mut killed = false;
        let ours = procfs::parents().into_iter().filter(|(_, parent)| *parent == us);
        for (pid, _) in ours.filter(|(pid, _)| self.is(*pid)) {
            // Stopped first, or it could start another child between the look and the kill.
            signal(pid, us, Signal::STOP);
            let parents = procfs::parents();
            for descendant in procfs::descendants(&parents, pid).into_iter().rev() {
                signal(descendant, parents[&descendant], Signal::KILL);
            }
            killed |= signal(pid, us, Signal::KILL);
        }
        killed
    }

    fn is(&self, pid: i32) -> bool {
        let in_our_namespace = fs::read_link(format!("/proc/{pid}/ns/net"))
            .is_ok_and(|namespace| namespace == self.namespace);
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        in_our_namespace && command_line.ends_with(&self.arguments)
    }
}

/// By pidfd, and only if it still has that parent: a pid alone may be somebody else's by now.
fn signal(pid: i32, parent: i32, signal: Signal) -> bool {
    let Some(fd) = Pid::from_raw(pid).and_then(|p| pidfd_open(p, PidfdFlags::empty()).ok()) else {
        return false;
    };
    parent_of(pid) == Some(parent) && pidfd_send_signal(fd, signal).is_ok()
}

fn parent_of(pid: i32) -> Option<i32> {
    procfs::parent(pid).ok().flatten()
}
