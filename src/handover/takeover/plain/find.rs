//! Acts: looks for every HAProxy that is to be relieved.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::family::{Family, families};
use super::haproxy::Haproxy;
use super::identity::{Refusal, Sight, is_haproxy, stranger};
use super::process::{Process, our_sight};
use super::view::{View, trusted};
use crate::problem::Problem;
use crate::process::procfs;
use crate::settings::Predecessors;

/// `hapilots` are the PIDs of the hapilots of this network namespace and of all that descend from
/// them: a HAProxy of one of them is not relieved without it.
pub(super) fn haproxys(asked: &Predecessors, hapilots: &[i32]) -> (Vec<Haproxy>, Vec<Problem>) {
    let pids = match asked {
        Predecessors::None => return (Vec::new(), Vec::new()),
        Predecessors::Auto => None,
        Predecessors::Pids(pids) => Some(pids.as_slice()),
    };
    let (mut processes, mut problems) = (all(), Vec::new());
    for &pid in pids.into_iter().flatten() {
        if let Entry::Vacant(place) = processes.entry(pid) {
            match Process::open(pid) {
                Ok(process) => drop(place.insert(process)),
                Err(refusal) => problems.push(refusal.problem(pid)),
            }
        }
    }
    let parents: BTreeMap<_, _> =
        processes.iter().map(|(pid, process)| (*pid, process.look.parent)).collect();
    let wanted = |pid| pids.is_none_or(|pids| pids.contains(&pid));
    let mut found = Vec::new();
    for Family { leader, members } in families(&parents, wanted) {
        let mut of_it = members.iter().filter_map(|pid| processes.remove(pid)).collect::<Vec<_>>();
        let Some(at) = of_it.iter().position(|process| process.pid() == leader) else { continue };
        let haproxy = Haproxy { leader: of_it.remove(at), workers: of_it, named: pids.is_some() };
        match refuse(&haproxy, hapilots) {
            None => found.push(haproxy),
            Some(refusal @ Refusal::OfUser(_)) => problems.push(refusal.problem(leader)),
            Some(refusal) => {
                let named = pids.into_iter().flatten().filter(|pid| members.contains(*pid));
                problems.extend(named.map(|pid| refusal.problem(*pid)));
            }
        }
    }
    found.sort_by_key(|haproxy| haproxy.leader.look.started);
    (found, problems)
}

/// That there may be some whom we cannot see.
#[must_use]
pub fn unseen(asked: &Predecessors) -> Option<Problem> {
    let blind = *asked == Predecessors::Auto && our_sight() == Sight::Container;
    blind.then(|| {
        Problem::new(
            "HAPROXY_PIDS=auto: without --pid=host only hapilots are found, no other HAProxy",
            "run this container with --pid=host to relieve one",
        )
    })
}

fn refuse(haproxy: &Haproxy, hapilots: &[i32]) -> Option<Refusal> {
    let of = |process: &Process| hapilots.contains(&process.pid());
    if haproxy.members().any(of) {
        return Some(Refusal::OfHapilot);
    }
    let view = View::take(haproxy);
    if !haproxy.named {
        let users: Vec<_> = haproxy.members().map(|process| process.look.user).collect();
        if let Some(user) = stranger(&users, &view.owned(), &trusted()) {
            return Some(Refusal::OfUser(user));
        }
    }
    (view.sees && !view.listens()).then_some(Refusal::Draining)
}

/// Every HAProxy that could be relieved. Those of other network namespaces are nobody's concern,
/// unless they were asked for.
fn all() -> BTreeMap<i32, Process> {
    procfs::all()
        .into_iter()
        .filter(|pid| procfs::name(*pid).is_ok_and(|name| is_haproxy(&name)))
        .filter_map(|pid| Some((pid, Process::open(pid).ok()?)))
        .collect()
}
