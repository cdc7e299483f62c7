//! For tests that call the library itself: a thread in a network namespace of its own.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "each test file uses its own part, and says so loudly when it breaks"
)]

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use hapilot::host::Host;
use hapilot::host::lease::{self, Lease};
use nix::sched::{CloneFlags, unshare};

/// What the thread ended with: a panic is the caller's to go on with.
pub fn in_own_namespace<F>(test: impl FnOnce() -> F + Send + 'static) -> std::thread::Result<()>
where
    F: Future<Output = ()>,
{
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("these tests need the right to make a network namespace (run them as root)");
        let ours = fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_ne!(ours, fs::read_link("/proc/self/ns/net").unwrap(), "still the leader's");
        run("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    thread.join()
}

/// As if that instance had been killed. A child that another test is just forking holds our
/// descriptors until it executes, so the name may live on for a moment.
pub fn kill(lease: Lease, host: Option<Host>) {
    let instance = lease.instance();
    drop((lease, host));
    let deadline = Instant::now() + Duration::from_secs(5);
    while lease::lives(instance).unwrap() {
        assert!(Instant::now() < deadline, "somebody holds the lease of {instance}");
        std::thread::yield_now();
    }
}

#[track_caller]
pub fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
