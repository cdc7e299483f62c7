//! Decides: what `show peers` says (HAProxy management guide). Values only.

use std::collections::HashSet;

/// `PEERS_F_RESYNC_LOCAL_FINISHED` and `PEERS_F_RESYNC_REMOTE_FINISHED`.
const LEARNT: u32 = 0x3;

/// The `peers` sections that still wait to be taught, by name. A HAProxy that is told to stop in
/// that state teaches nobody: its successor would get no stick tables. On 2.6 it lasts 5 seconds
/// from the start, even where there is nobody to learn from.
#[must_use]
pub fn learning(show_peers: &str) -> Vec<&str> {
    show_peers
        .lines()
        .filter_map(section)
        .filter(|(_, flags)| flags & LEARNT != LEARNT)
        .map(|(name, _)| name)
        .collect()
}

/// The tables that others know as well, by name: what those teach is newer than what
/// was saved.
#[must_use]
pub fn known_to_others(show_peers: &str) -> HashSet<&str> {
    tables(show_peers.split("\n0x").filter(|section| section.contains("(remote,")))
}

/// The tables that HAProxy itself teaches to its successor, by name.
#[must_use]
pub fn taught(show_peers: &str) -> HashSet<&str> {
    tables(std::iter::once(show_peers))
}

fn tables<'a>(sections: impl Iterator<Item = &'a str>) -> HashSet<&'a str> {
    let lines = sections.flat_map(str::lines).filter(|line| line.trim().starts_with("table:0x"));
    lines.flat_map(str::split_whitespace).filter_map(|word| word.strip_prefix("id=")).collect()
}

/// A section's line begins with its address in memory; those of its peers are indented.
fn section(line: &str) -> Option<(&str, u32)> {
    if !line.starts_with("0x") {
        return None;
    }
    let value = |key| line.split_whitespace().find_map(|word| word.strip_prefix(key));
    let flags = u32::from_str_radix(value("flags=0x")?, 16).ok()?;
    (value("disabled=") != Some("1")).then_some((value("id=")?, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "\
0x55be: [21/Nov/2026:03:32:16] id=fresh disabled=0 flags=0x11 resync_timeout=5s task_calls=1
  0x55bf: id=me(local,inactive) addr=127.0.0.1:10000 flags=0x0
0x55c0: [21/Nov/2026:03:32:16] id=learnt disabled=0 flags=0x300003 resync_timeout=<PAST>
0x55c1: [21/Nov/2026:03:32:16] id=off disabled=1 flags=0x0 resync_timeout=<NEVER>

";

    #[test]
    fn a_table_is_taught_by_its_section_and_known_to_others_where_that_has_a_remote_peer() {
        const ANSWER: &str = "\
0x1: [21/Nov/2026:10:13:11] id=two disabled=0 flags=0x11
  0x2: id=other(remote,active) addr=127.0.0.1:10002
        shared tables:
          0x3 local_id=1 remote_id=0
              table:0x4 id=t2 update=0
  0x5: id=lab(local,inactive) addr=127.0.0.1:10001
              table:0x4 id=t2 update=0

0x6: [21/Nov/2026:10:13:11] id=one disabled=0 flags=0x11
  0x7: id=lab(local,inactive) addr=127.0.0.1:10000
              table:0x8 id=t1 update=0
";
        assert_eq!(known_to_others(ANSWER), HashSet::from(["t2"]));
        assert_eq!(known_to_others("\n"), HashSet::new());
        assert_eq!(taught(ANSWER), HashSet::from(["t1", "t2"]));
    }

    #[test]
    fn a_section_learns_until_both_flags_are_set() {
        assert_eq!(learning(ANSWER), ["fresh"]);
        assert_eq!(learning(""), Vec::<&str>::new());
        assert_eq!(learning("Unknown command: 'show peers'\n"), Vec::<&str>::new());
    }
}
