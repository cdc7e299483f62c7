//! Acts: has the kernel say that something stirs (inotify(7)). Nothing is asked again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::inotify::{
    CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch,
};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::scene::Places;
use crate::process::readiness::watch;

/// Those of names; what is written to a file counts when it is closed.
const NAMES: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::CREATE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// What matters of a directory or a file.
#[derive(Debug, Default)]
struct Matter {
    names: BTreeSet<OsString>,
    /// Each that does not begin with a dot.
    whole: bool,
}

impl Matter {
    fn has(&self, name: &OsStr) -> bool {
        self.names.contains(name) || (self.whole && !name.as_bytes().starts_with(b"."))
    }
}

#[derive(Debug)]
pub(super) struct Inotify {
    kernel: AsyncFd<OwnedFd>,
    watched: BTreeMap<i32, Matter>,
    /// Said once.
    out_of_watches: bool,
}

impl Inotify {
    pub(super) fn open() -> Result<Self> {
        let kernel = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context(
            "watch the configuration (HAPROXY_WATCH=on): ask the kernel for a watch; the host's \
             fs.inotify.max_user_instances may be too small",
        )?;
        let kernel = watch(kernel).context("wait for what the kernel says of files")?;
        Ok(Self { kernel, watched: BTreeMap::new(), out_of_watches: false })
    }

    /// These from now on, and no others.
    pub(super) fn watch(&mut self, places: &Places) {
        let mut watched: BTreeMap<i32, Matter> = BTreeMap::new();
        for (directory, names) in &places.names {
            if let Some(descriptor) = self.add(directory, NAMES) {
                watched.entry(descriptor).or_default().names.extend(names.iter().cloned());
            }
        }
        for directory in &places.whole {
            if let Some(descriptor) = self.add(directory, NAMES) {
                watched.entry(descriptor).or_default().whole = true;
            }
        }
        for file in &places.files {
            if let Some(descriptor) = self.add(file, WatchFlags::CLOSE_WRITE) {
                watched.entry(descriptor).or_default();
            }
        }
        for gone in self.watched.keys().filter(|descriptor| !watched.contains_key(descriptor)) {
            // The kernel may have removed it itself, with what it watched.
            let _ = remove_watch(self.kernel.get_ref(), *gone);
        }
        self.watched = watched;
    }

    fn add(&mut self, path: &Path, flags: WatchFlags) -> Option<i32> {
        match add_watch(self.kernel.get_ref(), path, flags) {
            Ok(descriptor) => Some(descriptor),
            Err(Errno::NOSPC) if !self.out_of_watches => {
                self.out_of_watches = true;
                tracing::warn!(
                    path = %path.display(),
                    "not all of the configuration can be watched: raise the host's \
                     fs.inotify.max_user_watches"
                );
                None
            }
            // Gone since we looked, which its directory says, or not ours to read.
            Err(_) => None,
        }
    }

    pub(super) async fn stirred(&mut self) {
        loop {
            let Ok(mut ready) = self.kernel.readable().await else {
                return std::future::pending().await;
            };
            let mut stirred = false;
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = Reader::new(ready.get_inner().as_fd(), &mut buffer);
            loop {
                match reader.next() {
                    Ok(event) => {
                        let matter = self.watched.get(&event.wd());
                        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                        stirred |= event.events().contains(ReadFlags::QUEUE_OVERFLOW)
                            || matter.is_some_and(|m| name.is_none_or(|name| m.has(name)));
                    }
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
            }
            ready.clear_ready();
            if stirred {
                return;
            }
        }
    }
}
