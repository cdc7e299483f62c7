//! What `/proc` says of a process. The parsing is pure; the reading is one line each.

use std::collections::HashSet;
use std::fs;
use std::io;

/// The parent's PID from the text of `/proc/PID/stat` (proc(5)). The second field is the name in
/// parentheses and may itself hold blanks and parentheses, so the last one counts.
#[must_use]
pub fn parent_in_stat(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(1)?.parse().ok()
}

pub fn parent(pid: i32) -> io::Result<Option<i32>> {
    Ok(parent_in_stat(&fs::read_to_string(format!("/proc/{pid}/stat"))?))
}

/// The name of a process, as `ps` shows it.
pub fn name(pid: i32) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/comm")).map(|name| name.trim_end().to_owned())
}

/// Processes that see the same files as we do and have an argument for which `matches` holds.
#[must_use]
pub fn with_argument(matches: impl Fn(&[u8]) -> bool) -> Vec<i32> {
    let ours = fs::read_link("/proc/self/ns/mnt").ok();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|byte| *byte == 0).any(&matches)
                && fs::read_link(format!("/proc/{pid}/ns/mnt")).ok() == ours
        })
        .collect()
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
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // A descriptor that was closed since the directory was read is simply not counted.
        let Ok(target) = fs::read_link(entry?.path()) else {
            continue;
        };
        inodes.extend(target.to_str().and_then(socket_inode));
    }
    Ok(inodes)
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
        assert_eq!(with_argument(|word| word == b"4711.25"), [pid]);
        assert_eq!(name(pid).unwrap(), "sh");
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn only_sockets_have_a_socket_inode() {
        assert_eq!(socket_inode("socket:[4711]"), Some(4711));
        assert_eq!(socket_inode("pipe:[4711]"), None);
    }
}
