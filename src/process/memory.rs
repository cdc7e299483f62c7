//! Acts: which process the kernel ends first where the memory is full (`oom_score_adj`, proc(5)).
//!
//! A HAProxy that starts, and a program, are told to be the first: so a limit of memory costs a reload, and
//! not the HAProxy that serves. Once it serves, a HAProxy counts as hapilot itself does.

#![allow(unsafe_code, reason = "glibc has no other door to this setting")]

use std::fs;
use std::io;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::geteuid;

const FIRST: &[u8] = b"1000";

/// Makes all threads allocate from one heap: glibc gives each its own, and each stays as large as it once
/// was. hapilot's threads are few and short. musl, which a release is built with, has one anyway.
pub fn keep_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number, before there is another thread.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Whether `as_ours` can take it back: a HAProxy that changed its user belongs to root in `/proc`.
pub(super) fn may_be_taken_back() -> bool {
    geteuid().is_root()
}

/// For this process, between `fork` and `exec`: it does not allocate. A kernel that does not let us is
/// as before.
pub(super) fn ends_first() {
    if let Ok(file) = open(c"/proc/self/oom_score_adj", OFlags::WRONLY, Mode::empty()) {
        let _ = rustix::io::write(&file, FIRST);
    }
}

/// For a HAProxy that is ready, and its worker where it is a master.
pub fn as_ours(pid: i32) -> io::Result<()> {
    if !may_be_taken_back() {
        return Ok(());
    }
    let ours = fs::read_to_string("/proc/self/oom_score_adj")?;
    let workers = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let workers = workers.unwrap_or_default();
    let workers = workers.split_whitespace().filter_map(|word| word.parse().ok());
    std::iter::once(pid)
        .chain(workers)
        .try_for_each(|pid| fs::write(format!("/proc/{pid}/oom_score_adj"), ours.trim()))
}
