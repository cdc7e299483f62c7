//! Decides: which processes are one HAProxy. Values only.
//!
//! In master-worker mode a master has one worker that serves and perhaps older ones that drain.
//! Signals are the master's business: it passes them on, and would take the end of a worker that it
//! did not ask for as a reason to end the others.

use std::collections::{BTreeMap, BTreeSet};

/// PIDs of one HAProxy; `members` contains the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    pub leader: i32,
    pub members: BTreeSet<i32>,
}

/// `parents` has every HAProxy, with its parent. Those of which no process was asked for are left
/// out.
#[must_use]
pub fn families(parents: &BTreeMap<i32, i32>, asked: impl Fn(i32) -> bool) -> Vec<Family> {
    let mut by_leader: BTreeMap<i32, BTreeSet<i32>> = BTreeMap::new();
    for pid in parents.keys() {
        by_leader.entry(leader(parents, *pid)).or_default().insert(*pid);
    }
    by_leader
        .into_iter()
        .map(|(leader, members)| Family { leader, members })
        .filter(|family| family.members.iter().any(|pid| asked(*pid)))
        .collect()
}

fn leader(parents: &BTreeMap<i32, i32>, mut pid: i32) -> i32 {
    // A PID that was given away while the table was read could close a circle.
    for _ in 0..parents.len() {
        match parents.get(&pid) {
            Some(parent) if parents.contains_key(parent) => pid = *parent,
            _ => break,
        }
    }
    pid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_followed_to_its_master_and_the_master_to_its_workers() {
        // 10 is a master of 11 and 12; 20 and 21 stand alone, though 21 has a shell as its parent.
        let parents = BTreeMap::from([(10, 1), (11, 10), (12, 10), (20, 1), (21, 19)]);
        let of = |asked: &[i32]| {
            let families = families(&parents, |pid| asked.contains(&pid));
            families.into_iter().map(|f| (f.leader, f.members.len())).collect::<Vec<_>>()
        };
        assert_eq!(of(&[12]), [(10, 3)]);
        assert_eq!(of(&[10, 11]), [(10, 3)]);
        assert_eq!(of(&[20, 21, 11]), [(10, 3), (20, 1), (21, 1)]);
        assert_eq!(of(&[5]), []);
    }

    #[test]
    fn a_circle_ends() {
        let parents = BTreeMap::from([(1, 2), (2, 1)]);
        assert!(!families(&parents, |_| true).is_empty());
    }
}
