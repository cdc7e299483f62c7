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
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_parent() {
        assert_eq!(parent_in_stat("42 (odd) name) S 7 42 42 0 -1"), Some(7));
        assert_eq!(parent_in_stat("42 (haproxy"), None);
    }

    #[test]
    fn only_sockets_have_a_socket_inode() {
        assert_eq!(socket_inode("socket:[4711]"), Some(4711));
        assert_eq!(socket_inode("pipe:[4711]"), None);
    }
}
