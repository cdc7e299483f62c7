//! Decides: which ports are guarded while one generation follows another, and by what. Values only.
//!
//! A socket that both generations share needs no guard: its queue and its half-open connections
//! live on. One that goes away while its port is served by another takes them with it.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::host::mark::Intercept;
use crate::listeners::compare::Seen;
use crate::settings::ReloadGuard;

/// How what is not shared is guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The kernel moves half-open and queued connections to the other socket of that address.
    Migrate,
    /// SYNs are held here until the hand-over is done.
    Hold,
    /// SYNs are dropped; clients send them again after a second.
    Drop,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Migrate => "migrate",
            Self::Hold => "hold",
            Self::Drop => "drop",
        })
    }
}

/// What this host allows, as far as it can be told without trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `net.ipv4.tcp_migrate_req` is 1 or can be made so.
    pub migrates: bool,
    /// An iptables program works here.
    pub firewall: bool,
}

/// What is to be done about the listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// To be tried in this order.
    pub guards: Vec<Kind>,
    /// The destination ports of what is guarded, as they are on the wire.
    pub ports: BTreeSet<u16>,
    /// The old sockets that go away while their port stays.
    pub going: BTreeSet<u64>,
    /// Their addresses: without a guard their connections are lost.
    pub exposed: Vec<String>,
    /// What no guard can help: not shared, and no TCP.
    pub unguarded: Vec<String>,
}

impl Strategy {
    #[must_use]
    pub fn is_needed(&self) -> bool {
        !self.guards.is_empty() && !self.ports.is_empty()
    }
}

/// What a strategy is made from.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    pub setting: ReloadGuard,
    pub facts: Facts,
    /// What the old generation listens on, and the new one.
    pub before: &'a [Seen],
    pub after: &'a [Seen],
    /// `HAPROXY_PORTS`.
    pub ports: &'a [u16],
    pub intercept: &'a [Intercept],
}

#[must_use]
pub fn strategy(question: &Question<'_>) -> Strategy {
    let Question { setting, facts, before, after, ports: fixed, intercept } = question;
    let served: BTreeSet<u16> = after.iter().filter_map(tcp_port).collect();
    let going: Vec<&Seen> = before
        .iter()
        .filter(|old| after.iter().all(|new| new.inode != old.inode))
        .filter(|old| tcp_port(old).is_some_and(|port| served.contains(&port)))
        .collect();
    let mut ports: BTreeSet<u16> = going.iter().copied().filter_map(tcp_port).collect();
    // The kernel looks for another socket of the same address and interface only.
    let alike = going.iter().all(|old| after.iter().any(|new| new.address == old.address));
    let allowed = |kind: &Kind| match kind {
        Kind::Migrate => facts.migrates && alike,
        Kind::Hold | Kind::Drop => facts.firewall,
    };
    let wanted: &[Kind] = match setting {
        ReloadGuard::Auto if going.is_empty() => &[],
        ReloadGuard::Auto => &[Kind::Migrate, Kind::Hold, Kind::Drop],
        ReloadGuard::Hold => &[Kind::Hold],
        ReloadGuard::Drop => &[Kind::Drop],
        ReloadGuard::None => &[],
    };
    if matches!(setting, ReloadGuard::Hold | ReloadGuard::Drop) {
        ports.extend(served);
        ports.extend(*fixed);
    }
    let diverted = intercept.iter().filter(|i| ports.contains(&i.to.number()));
    let diverted: Vec<u16> = diverted.map(|i| i.from.number()).collect();
    ports.extend(diverted);
    Strategy {
        guards: wanted.iter().copied().filter(allowed).collect(),
        ports,
        going: going.iter().map(|seen| seen.inode).collect(),
        exposed: going.iter().map(|seen| seen.address.clone()).collect(),
        unguarded: before
            .iter()
            .filter(|old| unguardable(old, after))
            .map(|s| s.address.clone())
            .collect(),
    }
}

fn unguardable(old: &Seen, after: &[Seen]) -> bool {
    tcp_port(old).is_none()
        && after.iter().all(|new| new.inode != old.inode)
        && after.iter().any(|new| new.address == old.address)
}

/// `None` for what is no TCP listener of our own network namespace.
fn tcp_port(seen: &Seen) -> Option<u16> {
    let elsewhere = seen.address.split(' ').any(|word| word == "namespace");
    seen.port().filter(|_| !elsewhere)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::mark::Port;

    const ALL: Facts = Facts { migrates: true, firewall: true };

    fn seen(list: &[(&str, u64)]) -> Vec<Seen> {
        let seen =
            |(address, inode): &(&str, u64)| Seen { address: (*address).to_owned(), inode: *inode };
        list.iter().map(seen).collect()
    }

    /// Connections would be lost, and nothing here can keep them.
    fn lacks_a_guard(strategy: &Strategy) -> bool {
        strategy.guards.is_empty() && !strategy.going.is_empty()
    }

    fn ask(
        setting: ReloadGuard,
        facts: Facts,
        before: &[(&str, u64)],
        after: &[(&str, u64)],
    ) -> Strategy {
        let (before, after) = (seen(before), seen(after));
        let (before, after) = (&before[..], &after[..]);
        strategy(&Question { setting, facts, before, after, ports: &[80, 443], intercept: &[] })
    }

    #[test]
    fn what_is_shared_is_not_guarded_unless_a_guard_was_asked_for() {
        use ReloadGuard::{Auto, Drop, Hold, None};
        let same = [("0.0.0.0:8080", 1), ("[::]:8443", 2), ("/run/x.sock", 3)];
        for (setting, guards, ports) in [
            (Auto, vec![], vec![]),
            (None, vec![], vec![]),
            (Hold, vec![Kind::Hold], vec![80, 443, 8080, 8443]),
            (Drop, vec![Kind::Drop], vec![80, 443, 8080, 8443]),
        ] {
            let got = ask(setting, ALL, &same, &same);
            assert_eq!(got.guards, guards, "{setting:?}");
            assert_eq!(got.ports.iter().copied().collect::<Vec<_>>(), ports, "{setting:?}");
            assert!(got.going.is_empty() && !lacks_a_guard(&got));
        }
    }

    #[test]
    fn auto_takes_what_the_host_allows_in_order_and_none_is_a_lack() {
        use Kind::{Drop, Hold, Migrate};
        let (before, after) = ([("0.0.0.0:80", 1)], [("0.0.0.0:80", 2)]);
        for (migrates, firewall, guards) in [
            (true, true, vec![Migrate, Hold, Drop]),
            (false, true, vec![Hold, Drop]),
            (true, false, vec![Migrate]),
            (false, false, vec![]),
        ] {
            let got = ask(ReloadGuard::Auto, Facts { migrates, firewall }, &before, &after);
            assert_eq!(lacks_a_guard(&got), guards.is_empty());
            assert_eq!(got.guards, guards);
            assert_eq!(got.going, BTreeSet::from([1]));
            assert_eq!(got.ports, BTreeSet::from([80]));
        }
        assert!(lacks_a_guard(&ask(ReloadGuard::None, ALL, &before, &after)));
        let forced = Facts { migrates: true, firewall: false };
        assert!(lacks_a_guard(&ask(ReloadGuard::Hold, forced, &before, &after)));
    }

    #[test]
    fn a_listener_that_moved_within_its_port_cannot_migrate() {
        for (before, after) in [
            ("0.0.0.0:80", "0.0.0.0:80 interface eth0"),
            ("0.0.0.0:80", "10.0.0.1:80"),
            ("[::]:80", "0.0.0.0:80"),
            // One that takes IPv4 as well is in another group.
            ("[::]:80 v6only", "[::]:80"),
            ("[::]:80", "[::]:80 v6only"),
        ] {
            let got = ask(ReloadGuard::Auto, ALL, &[(before, 1)], &[(after, 2)]);
            assert_eq!(got.guards, [Kind::Hold, Kind::Drop], "{before} to {after}");
        }
    }

    #[test]
    fn only_tcp_ports_that_are_still_served_are_guarded() {
        let before = [
            ("0.0.0.0:80", 1),
            ("udp@0.0.0.0:443", 2),
            ("abns@x", 3),
            ("0.0.0.0:90", 4),
            ("0.0.0.0:70 namespace red", 5),
        ];
        let after = [
            ("0.0.0.0:81", 11),
            ("udp@0.0.0.0:443", 12),
            ("abns@x", 13),
            ("0.0.0.0:90", 14),
            ("0.0.0.0:70 namespace red", 15),
        ];
        let got = ask(ReloadGuard::Auto, ALL, &before, &after);
        assert_eq!((got.ports, got.going), (BTreeSet::from([90]), BTreeSet::from([4])));
        assert_eq!(got.exposed, ["0.0.0.0:90"]);
        assert_eq!(got.unguarded, ["udp@0.0.0.0:443", "abns@x", "0.0.0.0:70 namespace red"]);
    }

    #[test]
    fn an_intercepted_port_is_guarded_where_clients_address_it() {
        let port = |number| Port::new(number).unwrap();
        let question = Question {
            setting: ReloadGuard::Auto,
            facts: ALL,
            before: &seen(&[("0.0.0.0:8080", 1)]),
            after: &seen(&[("0.0.0.0:8080", 2)]),
            ports: &[],
            intercept: &[Intercept { from: port(80), to: port(8080) }],
        };
        assert_eq!(strategy(&question).ports, BTreeSet::from([80, 8080]));
    }
}
