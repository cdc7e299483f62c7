//! Acts: what a child of ours does between `fork` and `exec`.
#![allow(unsafe_code, reason = "std cannot say these things of a child; each is one system call")]

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use rustix::io::Errno;
use rustix::process::{
    Resource, Rlimit, Signal, getpid, getppid, getrlimit, set_parent_process_death_signal,
    setrlimit,
};

use super::{descriptors, memory};

/// The first descriptor behind the standard ones.
const OTHERS: libc::c_uint = 3;

/// A program of ours: in a group of its own, with nothing inherited but its three pipes, and killed
/// when the thread that runs it ends, also by a kill of hapilot. A program that hangs would otherwise
/// keep the lock of iptables-legacy from the whole host.
pub(super) fn of_program(command: &mut Command) {
    let ours = getpid();
    in_child(command, Vec::new(), move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        memory::ends_first();
        // Ours ended before that was asked for.
        if getppid() == Some(ours) { Ok(()) } else { Err(Errno::SRCH.into()) }
    });
}

/// A HAProxy that is to serve: it inherits these descriptors, those that were kept for it, and no other, so nothing that another
/// thread opens or lets a child inherit comes along.
pub fn of_haproxy(command: &mut Command, mut inherited: Vec<RawFd>) {
    inherited.extend(descriptors::kept().iter().map(|kept| kept.number));
    let first = memory::may_be_taken_back();
    in_child(command, inherited, move || {
        if first {
            memory::ends_first();
        }
        Ok(())
    });
}

/// `more` makes system calls only, all of them async-signal-safe, and does not allocate.
fn in_child(
    command: &mut Command,
    inherited: Vec<RawFd>,
    more: impl Fn() -> io::Result<()> + Send + Sync + 'static,
) {
    let soft_limit = descriptors::of_children();
    let prepare = move || {
        more()?;
        if let Some(soft) = soft_limit {
            limit_descriptors(soft);
        }
        inherit(&inherited)
    };
    // A terminal's Ctrl-C is for hapilot, which then tells HAProxy.
    command.process_group(0);
    // SAFETY: it makes system calls only, all of them async-signal-safe, and does not allocate.
    unsafe { command.pre_exec(prepare) };
}

/// As it was for hapilot at first, unless somebody has lowered the hard limit meanwhile.
fn limit_descriptors(soft: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(maximum.map_or(soft, |most| most.min(soft)));
    // It does not raise anything, so it cannot be refused.
    let _ = setrlimit(Resource::Nofile, Rlimit { current, maximum });
}

/// Whatever else was left open without `CLOEXEC` is closed by `exec`. A kernel before Linux 5.11 keeps
/// it open.
fn inherit(wanted: &[RawFd]) -> io::Result<()> {
    // SAFETY: it changes flags of descriptors of the child, which owns nothing that relies on them.
    unsafe {
        libc::syscall(libc::SYS_close_range, OTHERS, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    for descriptor in wanted {
        // SAFETY: as above.
        if unsafe { libc::fcntl(*descriptor, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
