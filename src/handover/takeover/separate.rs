//! Decides: which listening sockets go when the predecessors do. Values only.

use std::collections::BTreeSet;

use crate::listeners::compare::Seen;

/// TCP listeners that predecessors keep to themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Separate {
    pub known: Vec<Seen>,
    /// One did not let us look: these may be its, or anybody's.
    pub suspected: Vec<Seen>,
}

impl Separate {
    pub fn add(&mut self, other: Self) {
        self.known.extend(other.known);
        self.suspected.extend(other.suspected);
    }

    /// All that are known, with those suspects that are at one of these ports; nothing where none
    /// is at any of them.
    #[must_use]
    pub fn at(&self, ports: &BTreeSet<u16>) -> Vec<Seen> {
        let at = |seen: &&Seen| seen.port().is_some_and(|port| ports.contains(&port));
        let suspects = self.suspected.iter().filter(at);
        if self.known.iter().chain(suspects.clone()).any(|seen| at(&seen)) {
            self.known.iter().chain(suspects).cloned().collect()
        } else {
            Vec::new()
        }
    }

    /// With those suspects that stand where `ours` do: at the very same address; where there is none,
    /// at the same port.
    #[must_use]
    pub fn beside(&self, ours: &[Seen]) -> Vec<Seen> {
        let same = |seen: &Seen| ours.iter().any(|our| our.address == seen.address);
        let hit: Vec<_> = self.suspected.iter().filter(|s| same(s)).map(Seen::port).collect();
        let near = |seen: &Seen| {
            let port = seen.port();
            !hit.contains(&port) && ours.iter().any(|our| our.port() == port)
        };
        let suspects = self.suspected.iter().filter(|seen| same(seen) || near(seen));
        self.known.iter().chain(suspects).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(list: &[(&str, u64)]) -> Vec<Seen> {
        let seen =
            |(address, inode): &(&str, u64)| Seen { address: (*address).to_owned(), inode: *inode };
        list.iter().map(seen).collect()
    }

    #[test]
    fn a_suspect_stands_where_ours_do() {
        let separate = Separate {
            known: seen(&[("0.0.0.0:90", 1)]),
            suspected: seen(&[
                ("0.0.0.0:22", 2),
                ("0.0.0.0:80", 3),
                ("10.0.0.1:80", 4),
                ("10.0.0.1:443", 5),
            ]),
        };
        let ours = seen(&[("0.0.0.0:80", 11), ("0.0.0.0:443", 12)]);
        let inodes: Vec<_> = separate.beside(&ours).iter().map(|seen| seen.inode).collect();
        assert_eq!(inodes, [1, 3, 5]);
    }
}
