//! Decides: what became of the listeners when one generation followed another. Values only.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A listener by what identifies it: where, and which kernel socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub address: String,
    pub inode: u64,
}

impl Seen {
    /// The port of a TCP listener.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        port(&self.address)
    }
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

impl Changes {
    /// With the names that they have in a receipt.
    #[must_use]
    pub fn by_change(&self) -> [(&'static str, &[String]); 4] {
        [
            ("shared", &self.shared),
            ("not_shared", &self.not_shared),
            ("closed", &self.closed),
            ("opened", &self.opened),
        ]
    }

    /// What was closed and whose port nobody serves at any other address.
    #[must_use]
    pub fn given_up(&self) -> Vec<&str> {
        let still: HashSet<u16> = [&self.shared, &self.not_shared, &self.opened]
            .into_iter()
            .flatten()
            .filter_map(|address| port(address))
            .collect();
        let served = |address: &str| port(address).is_some_and(|port| still.contains(&port));
        self.closed.iter().map(String::as_str).filter(|address| !served(address)).collect()
    }
}

fn port(address: &str) -> Option<u16> {
    let address: SocketAddr = address.split(' ').next()?.parse().ok()?;
    Some(address.port())
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

/// What the next generation listens on where it did not say: a socket of its own is one that listens
/// now at the same port (`now`: ports and inodes) and did not at its launch; otherwise it has the
/// one that it was offered.
#[must_use]
pub fn guessed(before: &[Seen], at_launch: &BTreeSet<u64>, now: &[(u16, u64)]) -> Vec<Seen> {
    let own = |old: &Seen| {
        let fresh = |(port, inode): &&(u16, u64)| {
            old.port() == Some(*port) && !at_launch.contains(inode) && *inode != old.inode
        };
        now.iter().find(fresh).map(|(_, inode)| *inode)
    };
    let guess = |old: &Seen| Seen { inode: own(old).unwrap_or(old.inode), ..old.clone() };
    before.iter().map(guess).collect()
}

/// Listeners of others at addresses of ours: the kernel shares new connections out.
#[must_use]
pub fn others_beside(ours: &[Seen], all: &[Seen]) -> Vec<Seen> {
    let own: HashSet<_> = ours.iter().map(|own| own.inode).collect();
    let addresses: BTreeSet<_> = ours.iter().map(|own| &own.address).collect();
    let is_beside = |seen: &&Seen| addresses.contains(&seen.address) && !own.contains(&seen.inode);
    all.iter().filter(is_beside).cloned().collect()
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
    fn an_address_is_contested_if_somebody_else_listens_at_the_very_same() {
        let ours = seen(&[(":80", 1), (":80", 2), (":443", 3)]);
        let all =
            seen(&[(":80", 1), (":80", 2), (":443", 3), (":81", 4), (":443 interface lo", 5)]);
        assert!(others_beside(&ours, &all).is_empty());
        let others = seen(&[(":80", 6), (":80", 7)]);
        assert_eq!(others_beside(&ours, &[all, others.clone()].concat()), others);
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
    fn who_does_not_say_has_what_it_was_offered_unless_the_kernel_shows_another() {
        let before = seen(&[("0.0.0.0:80", 1), ("0.0.0.0:443", 2), ("/run/x.sock", 3)]);
        let at_launch = BTreeSet::from([1, 2, 7]);
        let now = [(80, 1), (443, 2), (80, 7), (443, 9)];
        let after = seen(&[("0.0.0.0:80", 1), ("0.0.0.0:443", 9), ("/run/x.sock", 3)]);
        assert_eq!(guessed(&before, &at_launch, &now), after);
    }

    #[test]
    fn a_port_that_moved_is_not_given_up() {
        let before = seen(&[("0.0.0.0:80", 1), ("0.0.0.0:81", 2), ("/run/x.sock", 3)]);
        let after = seen(&[("0.0.0.0:80 interface eth0", 4)]);
        assert_eq!(changes(&before, &after).given_up(), ["/run/x.sock", "0.0.0.0:81"]);
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
