//! Acts: looks for other processes that listen at our addresses on sockets of their own
//! (`SO_REUSEPORT`): the kernel gives each its share of the clients, without a word.
//!
//! The kernel tells of no listener that comes. So hapilot looks at moments when one may have come: when
//! the first generation is ready, after each reload, at each `status`, and after a take-over, also a
//! while after each predecessor is gone, since its own supervisor may start it again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tracing::warn;

use super::generations::Running;
use super::run::{Message, Supervisor};
use crate::control::protocol::OtherListener;
use crate::listeners::compare::{Seen, others_beside};
use crate::listeners::socket_table::{listening, seen};
use crate::process::procfs::{self, socket_inodes};

/// A supervisor that restarts what has ended takes from some ms to several seconds.
const LOOKS: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
];
/// For the search through the descriptors of all processes.
const SEARCH_LIMIT: Duration = Duration::from_millis(100);

/// By inode; what is known is not searched for again.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    known: RefCell<BTreeMap<u64, OtherListener>>,
    told: BTreeSet<u64>,
}

impl Supervisor {
    /// Those that are there now. While one generation follows another, those that were.
    pub(super) fn others_listening(&self) -> Vec<OtherListener> {
        let mut known = self.neighbours.known.borrow_mut();
        let says =
            |id| self.generations.get(&id).is_some_and(|running| !running.listens.is_empty());
        if !self.is_exchanging()
            && self.lifecycle.serving().is_some_and(says)
            && !self.has_predecessors()
        {
            let others = others_beside(&self.listens_anywhere(), &seen().unwrap_or_default());
            known.retain(|inode, _| others.iter().any(|other| other.inode == *inode));
            let new: Vec<_> =
                others.into_iter().filter(|other| !known.contains_key(&other.inode)).collect();
            let own: BTreeSet<_> = self.generations.values().filter_map(Running::pid).collect();
            let strange = |other: &OtherListener| other.pid.is_none_or(|pid| !own.contains(&pid));
            let new = identified(new).into_iter().filter(strange);
            known.extend(new.map(|other| (other.inode, other)));
        }
        known.values().cloned().collect()
    }

    /// Also what generations that drain have not closed yet.
    fn listens_anywhere(&self) -> Vec<Seen> {
        let generations = self.generations.values().flat_map(|running| running.listens.clone());
        generations.chain(self.keeper.seen()).collect()
    }

    /// One warning for each.
    pub(super) fn warn_of_others_beside(&mut self) {
        let others = self.others_listening();
        let told = std::mem::take(&mut self.neighbours.told);
        let new = || others.iter().filter(|other| !told.contains(&other.inode));
        let addresses: BTreeSet<_> = new().map(|other| other.address.clone()).collect();
        let each: Vec<_> = new().map(ToString::to_string).collect();
        self.neighbours.told = others.into_iter().map(|other| other.inode).collect();
        if !each.is_empty() {
            warn!(
                "another process listens at {} as well, and new connections go to either: end it and \
                 whatever starts it again, or start this one again with HAPROXY_PIDS=auto if it is to be \
                 relieved ({})",
                Vec::from_iter(addresses).join(", "),
                each.join("; ")
            );
        }
    }

    /// Once a predecessor is gone, which may be started again.
    pub(super) fn look_for_others_later(&self) {
        let messages = self.messages.clone();
        tokio::task::spawn_local(async move {
            let begun = Instant::now();
            for look in LOOKS {
                tokio::time::sleep_until((begun + look).into()).await;
                let _ = messages.send(Message::LookBeside);
            }
        });
    }
}

fn identified(others: Vec<Seen>) -> Vec<OtherListener> {
    if others.is_empty() {
        return Vec::new();
    }
    let users: BTreeMap<u64, u32> =
        listening().unwrap_or_default().into_iter().map(|l| (l.inode, l.user)).collect();
    let mut holders = holders(&others);
    let identified = |Seen { address, inode }: Seen| {
        let (pid, name) = holders.remove(&inode).unzip();
        OtherListener { address, pid, name, user: users.get(&inode).copied(), inode }
    };
    others.into_iter().map(identified).collect()
}

/// With its name, as far as such a process can be seen, and is found in time.
fn holders(of: &[Seen]) -> BTreeMap<u64, (i32, String)> {
    let (mut found, begun) = (BTreeMap::new(), Instant::now());
    for pid in procfs::all() {
        if found.len() == of.len() || begun.elapsed() > SEARCH_LIMIT {
            break;
        }
        let Ok(inodes) = socket_inodes(pid) else { continue };
        for seen in of.iter().filter(|seen| inodes.contains(&seen.inode)) {
            let name = procfs::name(pid).unwrap_or_default();
            found.entry(seen.inode).or_insert((pid, name));
        }
    }
    found
}
