//! A control group for one container: the limits that `docker run` and `docker update` set.
//!
//! Version 1 has a hierarchy for each controller, version 2 one for all.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{LONG, until};

const ROOT: &str = "/sys/fs/cgroup";

#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// For `pids` or `memory`.
    pub fn new(controller: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (one, two) = (Path::new(ROOT).join(controller), Path::new(ROOT));
        let above = if one.is_dir() {
            one
        } else {
            let enable = two.join("cgroup.subtree_control");
            fs::write(&enable, format!("+{controller}")).unwrap_or_else(|error| {
                panic!("this machine has no control groups for {controller}: {error}")
            });
            two.to_owned()
        };
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let group = above.join(format!("hapilot-test-{}-{number}", std::process::id()));
        fs::create_dir(&group).unwrap_or_else(|error| panic!("make {}: {error}", group.display()));
        Self(group)
    }

    /// What makes a command a member, for `Spec::wrapped`.
    pub fn wrapper(&self) -> [String; 4] {
        let enter = format!("echo 0 > {}/cgroup.procs && exec \"$@\"", self.0.display());
        ["sh".to_owned(), "-c".to_owned(), enter, "sh".to_owned()]
    }

    pub fn set(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value).unwrap();
    }

    /// The files of what is used, and of the limit.
    pub fn memory(&self) -> (&'static str, &'static str) {
        if self.0.join("memory.max").exists() {
            ("memory.current", "memory.max")
        } else {
            ("memory.usage_in_bytes", "memory.limit_in_bytes")
        }
    }

    pub fn number(&self, file: &str) -> u64 {
        fs::read_to_string(self.0.join(file)).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Its members may be there still.
            let _ = fs::remove_dir(&self.0);
            return;
        }
        until(LONG, "the control group is empty", || fs::remove_dir(&self.0).ok());
    }
}
