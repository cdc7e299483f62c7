//! Processes as the kernel shows them: who is whose child, and who lives in whose namespaces.

use std::fs;

use nix::sys::signal::{self, Signal};

/// Sends a signal to a process that the test started, or that lives in one of its containers.
pub fn kill(pid: u32, signal: Signal) {
    let _ = signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()), signal);
}

/// A field of `/proc/PID/status`, such as `PPid`, `NSpid` or `State`.
pub fn field(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

pub fn exists(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

/// Which namespace of that kind (`mnt`, `pid`, `net`) a process is in.
pub fn namespace(pid: u32, kind: &str) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
    Some(link.to_string_lossy().into_owned())
}

pub fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The number by which a process knows itself.
pub fn inner_pid(pid: u32) -> Option<u32> {
    field(pid, "NSpid")?.split_whitespace().last()?.parse().ok()
}

pub fn name(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
}

/// Stops a process, and waits until none of its threads runs any more.
pub fn freeze(pid: u32) {
    kill(pid, Signal::SIGSTOP);
    super::until(super::SHORT, "every thread has stopped", || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let stopped = |thread: u32| Some(field(thread, "State")?.starts_with('T'));
        let mut numbers = threads.map(|entry| entry.unwrap().file_name());
        numbers
            .all(|name| name.to_str().unwrap().parse().ok().and_then(stopped) == Some(true))
            .then_some(())
    });
}

/// How many descriptors it has open.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// What it has in memory.
pub fn memory_kib(pid: u32) -> u64 {
    let resident = field(pid, "VmRSS").unwrap();
    resident.trim_end_matches(" kB").parse().unwrap()
}
