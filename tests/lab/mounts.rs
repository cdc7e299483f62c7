//! The mount namespace of a container, by which its processes are known.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use super::process;

/// Held open: else the kernel gives its number to another container, and we kill the wrong ones.
#[derive(Debug)]
pub struct Mounts(File);

impl Mounts {
    pub fn of_this_thread() -> Self {
        Self(File::open("/proc/thread-self/ns/mnt").unwrap())
    }

    /// Everyone who lives in the container.
    pub fn inhabitants(&self) -> Vec<u32> {
        let name = format!("mnt:[{}]", self.0.metadata().unwrap().ino());
        let lives_here = |pid: &u32| process::namespace(*pid, "mnt").as_ref() == Some(&name);
        process::all().into_iter().filter(lives_here).collect()
    }
}
