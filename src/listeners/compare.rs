//! Decides: what became of the listeners when one generation followed another. Values only.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A listener by what identifies it: where, and which kernel socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub address: String,
    pub inode: u64,
}

/// Addresses, each listed once for every socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// The very same kernel socket: its queue and half-open connections live on.
    pub shared: Vec<String>,
    /// The same address on a socket of its own; the old socket's half-open connections die.
    pub not_shared: Vec<String>,
    pub closed: Vec<String>,
    pub opened: Vec<String>,
}

#[must_use]
pub fn changes(before: &[Seen], after: &[Seen]) -> Changes {
    let mut changes = Changes::default();
    // An address may have several sockets (`shards`), so they are matched one by one.
    let mut unmatched: BTreeMap<&str, usize> = BTreeMap::new();
    for old in before {
        if after.iter().any(|new| new.inode == old.inode) {
            changes.shared.push(old.address.clone());
        } else {
            *unmatched.entry(&old.address).or_default() += 1;
        }
    }
    for new in after {
        if before.iter().any(|old| old.inode == new.inode) {
            continue;
        }
        match unmatched.get_mut(new.address.as_str()) {
            Some(left) if *left > 0 => {
                *left -= 1;
                changes.not_shared.push(new.address.clone());
            }
            _ => changes.opened.push(new.address.clone()),
        }
    }
    for (address, left) in unmatched {
        changes.closed.extend(std::iter::repeat_n(address.to_owned(), left));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(list: &[(&str, u64)]) -> Vec<Seen> {
        list.iter()
            .map(|(address, inode)| Seen { address: (*address).to_owned(), inode: *inode })
            .collect()
    }

    #[test]
    fn each_listener_is_in_exactly_one_list() {
        let before = seen(&[(":80", 1), (":443", 2), (":8080", 3)]);
        let after = seen(&[(":80", 1), (":443", 9), (":8443", 10)]);
        let got = changes(&before, &after);
        assert_eq!(got.shared, [":80"]);
        assert_eq!(got.not_shared, [":443"]);
        assert_eq!(got.closed, [":8080"]);
        assert_eq!(got.opened, [":8443"]);
    }

    #[test]
    fn sockets_of_one_address_are_matched_one_by_one() {
        let before = seen(&[(":80", 1), (":80", 2), (":80", 3)]);
        let after = seen(&[(":80", 1), (":80", 7)]);
        let got = changes(&before, &after);
        assert_eq!((got.shared.len(), got.not_shared.len(), got.closed.len()), (1, 1, 1));
        assert!(got.opened.is_empty());
    }
}
