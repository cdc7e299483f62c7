//! A network namespace without a name: it lives as long as this value, or a socket made in it.
//!
//! A namespace belongs to a thread, not to a process. So whoever wants to be inside gets a fresh
//! thread, and the programs and sockets that it makes are inside as well.
#![allow(unsafe_code, reason = "rustix marks unshare as unsafe; it is used on fresh threads only")]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::bounded::{self, LONG};

#[derive(Clone, Debug)]
pub struct Namespace {
    handle: Arc<File>,
}

impl Namespace {
    pub fn create() -> Self {
        let handle = thread::spawn(|| {
            let outside = inode();
            unshare(UnshareFlags::NEWNET);
            assert_ne!(outside, inode(), "the thread must have left the machine's own network");
            File::open("/proc/thread-self/ns/net").unwrap()
        })
        .join()
        .unwrap();
        let namespace = Self { handle: Arc::new(handle) };
        namespace.run("ip link set lo up");
        namespace
    }

    /// The path under which other programs find this namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }

    /// Does something inside and waits for the result.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.move_here();
                work()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Does something inside that goes on beside us.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let namespace = self.clone();
        thread::spawn(move || {
            namespace.move_here();
            work()
        })
    }

    fn move_here(&self) {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(self.handle.as_fd(), kind).expect("tests need root");
    }

    /// Runs a command line (words separated by blanks) that must succeed; returns what it prints.
    pub fn run(&self, line: &str) -> String {
        let output = self.attempt(line);
        assert!(
            output.status.success(),
            "{line}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn attempt(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        self.output(&mut command)
    }

    pub fn output(&self, command: &mut Command) -> Output {
        self.enter(|| bounded::output(command, LONG))
    }

    pub fn sysctl(&self, key: &str) -> String {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.enter(|| std::fs::read_to_string(&path).unwrap()).trim().to_owned()
    }

    pub fn set_sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.enter(|| std::fs::write(&path, value).unwrap());
    }
}

/// Takes the calling thread, which should be a fresh one, into namespaces of its own.
pub fn unshare(flags: UnshareFlags) {
    // SAFETY: none of the flags used here takes away descriptors, which is what can be unsound.
    unsafe { rustix::thread::unshare_unsafe(flags) }.expect("tests need root");
}

fn inode() -> u64 {
    std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
}
