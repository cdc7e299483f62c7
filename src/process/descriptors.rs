//! Acts: how many descriptors hapilot may have open, and how many its children.
//!
//! hapilot holds each listener of HAProxy, and during a reload a second time. So it takes as many as it
//! may have. Its children get the limit that it was started with: HAProxy raises it by itself as far as
//! it needs, and hands it on to the programs that it runs.
//!
//! What hapilot was started with beside the standard descriptors is closed, unless the configuration
//! names it (`fd@7`): that is kept for every HAProxy to come.
#![allow(
    unsafe_code,
    reason = "descriptors that nothing here has opened are closed by their number"
)]

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::fault::{self, Point};

/// Open before hapilot had opened anything.
static INHERITED: OnceLock<Vec<RawFd>> = OnceLock::new();
static KEPT: OnceLock<Vec<Kept>> = OnceLock::new();

/// A descriptor that the configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub number: RawFd,
    /// As `ls -l /proc/self/fd` shows it.
    pub what: String,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fd@{} {}", self.number, self.what)
    }
}

/// To be called before anything is opened.
pub fn note_inherited() {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<RawFd> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // The one of this look is closed by now.
    let open = |number: &RawFd| *number > STANDARD && what(*number).is_some();
    INHERITED.get_or_init(|| numbers.into_iter().filter(open).collect());
}

/// Closes what was inherited and is not wanted; gives what is closed.
pub fn keep(wanted: impl Fn(RawFd) -> bool) -> Vec<Kept> {
    let inherited = INHERITED.get().into_iter().flatten();
    let named = inherited.filter_map(|number| Some(Kept { number: *number, what: what(*number)? }));
    let (kept, unwanted): (Vec<_>, Vec<_>) = named.partition(|kept| wanted(kept.number));
    if KEPT.set(kept).is_err() {
        return Vec::new();
    }
    for Kept { number, .. } in &unwanted {
        // SAFETY: it was open before hapilot opened anything, so nothing in here owns it.
        drop(unsafe { OwnedFd::from_raw_fd(*number) });
    }
    unwanted
}

#[must_use]
pub fn kept() -> &'static [Kept] {
    KEPT.get().map_or(&[], Vec::as_slice)
}

fn what(number: RawFd) -> Option<String> {
    let link = fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
    Some(link.display().to_string())
}

const STANDARD: RawFd = 2;

static AT_FIRST: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit to the hard one.
pub fn raise() -> io::Result<()> {
    let limit = AT_FIRST.get_or_init(|| getrlimit(Resource::Nofile));
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

/// The soft limit; `None`: as ours.
pub(super) fn of_children() -> Option<u64> {
    AT_FIRST.get()?.current
}

/// Whether so many more can be opened now.
pub fn ensure_room(count: usize) -> io::Result<()> {
    fault::at(Point::Descriptors)?;
    let open = fs::read_dir("/proc/self/fd")?.count();
    match getrlimit(Resource::Nofile).current {
        Some(limit) if u64::try_from(open + count).is_ok_and(|wanted| wanted > limit) => {
            Err(Errno::MFILE.into())
        }
        _ => Ok(()),
    }
}

/// The hard limit; `None` where there is none.
#[must_use]
pub fn most() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}
