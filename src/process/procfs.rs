//! What `/proc` says of a process. The parsing is pure; the reading is one line each.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};

/// Of the arguments of a process.
const LONGEST: u64 = 128 * 1024;

/// The parent's PID from the text of `/proc/PID/stat` (proc(5)). The second field is the name in
/// parentheses and may itself hold blanks and parentheses, so the last one counts.
#[must_use]
pub fn parent_in_stat(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(1)?.parse().ok()
}

/// The time of its start in clock ticks since the boot: two processes with the same PID differ in it.
#[must_use]
pub fn start_in_stat(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// Whether it has ended and only waits to be reaped.
#[must_use]
pub fn is_dead_in_stat(stat: &str) -> bool {
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    matches!(state, Some("Z" | "X"))
}

/// The PID by which a process knows itself, from the text of `/proc/PID/status`.
#[must_use]
pub fn inner_pid_in_status(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// The user whose rights it has, from the text of `/proc/PID/status`.
#[must_use]
pub fn user_in_status(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// How many threads it has, from the text of `/proc/PID/status`.
#[must_use]
pub fn threads_in_status(status: &str) -> Option<usize> {
    status.lines().find_map(|line| line.strip_prefix("Threads:"))?.trim().parse().ok()
}

pub fn threads(pid: i32) -> io::Result<Option<usize>> {
    Ok(threads_in_status(&fs::read_to_string(format!("/proc/{pid}/status"))?))
}

pub fn parent(pid: i32) -> io::Result<Option<i32>> {
    Ok(parent_in_stat(&fs::read_to_string(format!("/proc/{pid}/stat"))?))
}

/// Every process that we see.
#[must_use]
pub fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Every process that we see, with its parent. They are read one by one: PIDs that were given away
/// meanwhile may close a circle.
#[must_use]
pub fn parents() -> BTreeMap<i32, i32> {
    all().into_iter().filter_map(|pid| Some((pid, parent(pid).ok()??))).collect()
}

/// All that descend from it, each behind its parent and once.
#[must_use]
pub fn descendants(parents: &BTreeMap<i32, i32>, of: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (pid, parent) in parents {
        children.entry(*parent).or_default().push(*pid);
    }
    let mut found = children.remove(&of).unwrap_or_default();
    let mut at = 0;
    while let Some(pid) = found.get(at) {
        // Nobody's children are looked at twice.
        found.extend(children.remove(pid).unwrap_or_default());
        at += 1;
    }
    found.retain(|pid| *pid != of);
    found
}

/// The name of a process, as `ps` shows it.
pub fn name(pid: i32) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/comm")).map(|name| name.trim_end().to_owned())
}

/// Processes that see the same files as we do and have an argument in which something is found,
/// with the first that is.
#[must_use]
pub fn with_argument<T>(found: impl Fn(&[u8]) -> Option<T>) -> Vec<(i32, T)> {
    let ours = fs::read_link("/proc/self/ns/mnt").ok();
    let first = |pid: i32| {
        let arguments = arguments(pid).unwrap_or_default();
        let found = arguments.split(|byte| *byte == 0).find_map(&found)?;
        let sees_the_same = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok() == ours;
        sees_the_same.then_some((pid, found))
    };
    all().into_iter().filter_map(first).collect()
}

/// As many as are of interest: another process may have millions.
fn arguments(pid: i32) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/cmdline"))?.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The inode in the target of a descriptor's link, as in `socket:[4711]`.
#[must_use]
pub fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The inodes of all sockets that a process holds. Refused with EACCES for a process that changed
/// its user, unless we have `CAP_SYS_PTRACE`.
pub fn socket_inodes(pid: i32) -> io::Result<HashSet<u64>> {
    let mut inodes = HashSet::new();
    each_socket(pid, |_, inode| {
        inodes.insert(inode);
    })?;
    Ok(inodes)
}

/// Looks at the descriptors of a process that are sockets, each with its inode. It may have a million.
pub fn each_socket(pid: i32, mut look: impl FnMut(i32, u64)) -> io::Result<()> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let target = match fs::read_link(entry.path()) {
            Ok(target) => target,
            // Root may list them, and yet not see what they are.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
            // Closed since the directory was read.
            Err(_) => continue,
        };
        let descriptor = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let inode = target.to_str().and_then(socket_inode);
        if let Some((descriptor, inode)) = descriptor.zip(inode) {
            look(descriptor, inode);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_parent() {
        assert_eq!(parent_in_stat("42 (odd) name) S 7 42 42 0 -1"), Some(7));
        assert_eq!(parent_in_stat("42 (haproxy"), None);
    }

    #[test]
    fn descendants_come_behind_their_parents_and_a_circle_ends() {
        let parents = BTreeMap::from([(2, 1), (3, 1), (4, 3), (5, 4), (6, 2), (9, 8)]);
        assert_eq!(descendants(&parents, 1), [2, 3, 6, 4, 5]);
        assert!(descendants(&parents, 5).is_empty());
        let circle = BTreeMap::from([(1, 3), (2, 1), (3, 2), (4, 3), (5, 5)]);
        assert_eq!(descendants(&circle, 1), [2, 3, 4]);
        assert!(descendants(&circle, 5).is_empty());
    }

    #[test]
    fn a_process_is_found_by_an_argument() {
        let mut child = Command::new("sh")
            .args(["-c", "echo; read end", "4711.25"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Before it has said something it may not be the shell yet.
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let pid = child.id().cast_signed();
        let found = with_argument(|word| (word == b"4711.25").then_some("it"));
        assert_eq!(found, [(pid, "it")]);
        assert_eq!(name(pid).unwrap(), "sh");
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn start_and_death_are_found_behind_the_name() {
        let stat = "10 (a b) c) S 1 0 0 0 -1 4194560 1467 0 0 0 5 3 0 0 20 0 2 0 100056 102400000";
        assert_eq!(start_in_stat(stat), Some(100_056));
        assert!(!is_dead_in_stat(stat) && is_dead_in_stat("10 (S) Z 1 0"));
    }

    #[test]
    fn the_inner_pid_is_the_last_one() {
        assert_eq!(inner_pid_in_status("Name:\thaproxy\nNSpid:\t4711\t8\n"), Some(8));
        assert_eq!(inner_pid_in_status("Name:\thaproxy\n"), None);
    }

    #[test]
    fn only_sockets_have_a_socket_inode() {
        assert_eq!(socket_inode("socket:[4711]"), Some(4711));
        assert_eq!(socket_inode("pipe:[4711]"), None);
    }
}
