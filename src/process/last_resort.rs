//! Acts: holds the stop deadline where hapilot itself hangs.
//!
//! One thread does everything, and a system call from which it does not come back would keep it
//! from hearing of a stop. So the handlers of the signals that ask for one also start a timer. When
//! that is up we execute ourselves anew, in our own place, as `hapilot last-resort`: every
//! descriptor is closed, as by a kill, and what a killed one leaves is then swept.
#![allow(unsafe_code, reason = "handlers of signals may do no more than signal-safety(7) lists")]

use std::ffi::CString;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::libc::{self, ITIMER_REAL, itimerval, timeval};
use nix::sys::signal::{SigSet, Signal, raise};
use rustix::process::{Pid, kill_process};
use signal_hook::consts::{SIGALRM, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::flag::register_conditional_shutdown;
use signal_hook::low_level::register;

use super::procfs;

pub const STATUS: u8 = 70;

/// From the wish to stop on; nought: there is no last resort.
static PATIENCE: AtomicU64 = AtomicU64::new(0);
static ARMED: AtomicBool = AtomicBool::new(false);

/// From now on a stop ends `stop` after its signal, of which `reserve` is for the last resort: our
/// own `command`, with the milliseconds of that.
pub fn prepare(command: &str, stop: Duration, reserve: Duration) -> Result<()> {
    let words = ["hapilot", command, &reserve.as_millis().to_string()].map(CString::new);
    let [name, command, left] = words;
    let (name, command, left) = (name?, command?, left?);
    let executable = CString::new("/proc/self/exe")?;
    let begin_anew = move || {
        let argv = [name.as_ptr(), command.as_ptr(), left.as_ptr(), ptr::null()];
        // SAFETY: each word ends with a zero byte and lives in this closure, which is never
        // dropped; the list ends with a null pointer. Both functions are async-signal-safe.
        unsafe {
            libc::execv(executable.as_ptr(), argv.as_ptr());
            libc::_exit(STATUS.into());
        }
    };
    // SAFETY: it does nothing but two async-signal-safe calls.
    unsafe { register(SIGALRM, begin_anew) }.context("watch the stop deadline")?;
    for signal in [SIGTERM, SIGUSR1, SIGINT, SIGQUIT] {
        // SAFETY: atomics and one system call.
        unsafe { register(signal, arm) }.context("watch the stop deadline")?;
    }
    PATIENCE.store(microseconds(stop.saturating_sub(reserve)), Ordering::SeqCst);
    Ok(())
}

/// A stop has begun, by whatever way. The first counts.
pub fn arm() {
    let patience = PATIENCE.load(Ordering::SeqCst);
    if patience > 0 && !ARMED.swap(true, Ordering::SeqCst) {
        set_timer(patience);
    }
}

/// At once: something else than this thread hangs, and nothing else is left to do.
pub fn begin() {
    if PATIENCE.load(Ordering::SeqCst) > 0 {
        // Its handler does not come back.
        let _ = raise(Signal::SIGALRM);
    }
}

/// For the last resort itself: it ends within that time as well.
pub fn end_within(left: Duration) -> Result<()> {
    // Blocked still, as in the handler that executed us.
    SigSet::from(Signal::SIGALRM).thread_unblock().context("let SIGALRM come")?;
    let always = Arc::new(AtomicBool::new(true));
    register_conditional_shutdown(SIGALRM, STATUS.into(), always).context("watch the end")?;
    set_timer(microseconds(left));
    Ok(())
}

/// Every child that the one before had.
pub fn kill_children() {
    let us = std::process::id().cast_signed();
    let ours = procfs::parents().into_iter().filter(|(_, parent)| *parent == us);
    for pid in ours.filter_map(|(pid, _)| Pid::from_raw(pid)) {
        // It is nobody else's: nobody has waited for it.
        let _ = kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}

fn set_timer(after: u64) {
    let part = |microseconds: u64| microseconds.try_into().unwrap_or(0);
    let after = timeval { tv_sec: part(after / 1_000_000), tv_usec: part(after % 1_000_000) };
    let timer = itimerval { it_interval: timeval { tv_sec: 0, tv_usec: 0 }, it_value: after };
    // SAFETY: the timer is read during the call only, and nothing is to be written.
    unsafe { libc::setitimer(ITIMER_REAL, &raw const timer, ptr::null_mut()) };
}
