//! Acts: how many descriptors hapilot may have open, and how many its children.
//!
//! hapilot holds each listener of HAProxy, and during a reload a second time. So it takes as many as it
//! may have. Its children get the limit that it was started with: HAProxy raises it by itself as far as
//! it needs, and hands it on to the programs that it runs.

use std::fs;
use std::io;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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
