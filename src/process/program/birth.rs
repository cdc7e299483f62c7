//! Acts: what a child of ours does between `fork` and `exec`.
#![allow(unsafe_code, reason = "std cannot say these things of a child; each is one system call")]

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

/// The first descriptor behind the standard ones.
const OTHERS: libc::c_uint = 3;

/// A program of ours: in a group of its own, with nothing inherited but its three pipes, and killed
/// when the thread that runs it ends, also by a kill of hapilot. A program that hangs would otherwise
/// keep the lock of iptables-legacy from the whole host.
pub(super) fn prepare(command: &mut Command) {
    let ours = getpid();
    let in_child = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        inherit_nothing();
        // Ours ended before that was asked for.
        if is_child_of(ours) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    command.process_group(0);
    // SAFETY: it makes system calls only, all of them async-signal-safe, and does not allocate.
    unsafe { command.pre_exec(in_child) };
}

fn is_child_of(parent: Pid) -> bool {
    getppid() == Some(parent)
}

/// Whatever was left open without `CLOEXEC`. A kernel before Linux 5.11 keeps it open.
fn inherit_nothing() {
    // SAFETY: it changes flags of descriptors of the child, which owns nothing that relies on them.
    unsafe {
        libc::syscall(libc::SYS_close_range, OTHERS, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
}
