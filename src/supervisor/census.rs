//! Acts: counts connections and sessions by generation, beside the loop: where there are a hundred
//! thousand of them, a look at the kernel's tables and at the processes' descriptors takes seconds.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;

use super::deadlines::Tally;
use super::generations::Running;
use super::run::Supervisor;
use crate::control::protocol::GenerationStatus;
use crate::haproxy::generation::GenerationId;
use crate::listeners::socket_table::{established, sessions};
use crate::process::aside::aside;
use crate::process::procfs::socket_inodes;

/// An answer is to come within a second. One that cannot wait for the count has the one before.
const PATIENCE: Duration = Duration::from_millis(500);

/// Connections of clients by generation, as they were at a moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Count {
    at: Option<Instant>,
    of: HashMap<u32, u64>,
}

/// Who counts. There is one count at a time, whoever asks.
#[derive(Debug, Default)]
pub(super) struct Census {
    last: Rc<RefCell<Count>>,
    /// It closes when the count that is under way is over.
    under_way: RefCell<Option<watch::Receiver<()>>>,
}

/// Sessions by generation; those that may not be looked into share what is nobody else's.
pub(super) type Tallies = Vec<(Vec<u32>, Tally)>;

impl Count {
    /// `asked_at`: what was counted before that has an age.
    pub(super) fn fill(&self, generations: &mut [GenerationStatus], asked_at: Instant) {
        let age = self.at.and_then(|at| asked_at.checked_duration_since(at));
        for generation in generations {
            generation.connections = self.of.get(&generation.id).copied();
            let is_old = generation.connections.is_some();
            generation.connections_age_s = age.filter(|_| is_old).map(|age| age.as_secs().max(1));
        }
    }

    /// Of these together, if each was counted.
    fn sum(&self, of: &[(GenerationId, i32)]) -> Option<u64> {
        of.iter().map(|(id, _)| self.of.get(&id.number())).sum()
    }
}

impl Supervisor {
    /// At `PATIENCE` at the latest.
    pub(super) fn count(&self) -> impl Future<Output = Count> + use<> {
        let last = Rc::clone(&self.census.last);
        let mut under_way = self.census.under_way.borrow_mut();
        let is_over = |count: &watch::Receiver<()>| count.has_changed().is_err();
        if under_way.as_ref().is_none_or(is_over) {
            let (over, watched) = watch::channel(());
            *under_way = Some(watched);
            let (pids, ports, last) = (self.serving_pids(), self.client_ports(), Rc::clone(&last));
            tokio::task::spawn_local(async move {
                let at = Some(Instant::now());
                match aside(move || connections(&pids, &ports)).await.flatten() {
                    Ok(of) => *last.borrow_mut() = Count { at, of },
                    Err(error) => warn!("connections are not counted: {error:#}"),
                }
                drop(over);
            });
        }
        let over = under_way.clone();
        async move {
            if let Some(mut over) = over {
                // Its end is an error.
                let _ = timeout(PATIENCE, over.changed()).await;
            }
            last.borrow().clone()
        }
    }

    /// Connections of clients, if all of them can be counted.
    pub(super) fn all_connections(&self) -> impl Future<Output = Option<u64>> + use<> {
        let (pids, count) = (self.serving_pids(), self.count());
        async move { count.await.sum(&pids) }
    }

    /// `None` where the kernel does not say, or not within `limit`.
    pub(super) fn tallies(
        &self,
        of: &[GenerationId],
        limit: Duration,
    ) -> impl Future<Output = Option<Tallies>> + use<> {
        let (ports, of) = (self.client_ports(), of.to_vec());
        let alive = self.serving_pids();
        async move {
            let tallies = aside(move || tallies(&alive, &ports, &of));
            let tallies = timeout(limit, tallies).await.ok()?.flatten();
            tallies.inspect_err(|error| warn!("not counted: {error:#}")).ok()
        }
    }

    fn serving_pids(&self) -> Vec<(GenerationId, i32)> {
        let pid = |id| self.generations.get(&id).and_then(Running::serving_pid);
        self.lifecycle.generations().filter_map(|(id, ..)| Some((id, pid(id)?))).collect()
    }
}

/// Without those that we may not look into: a process that changed its user, where `CAP_SYS_PTRACE`
/// is not ours.
fn connections(pids: &[(GenerationId, i32)], ports: &HashSet<u16>) -> Result<HashMap<u32, u64>> {
    let mut table = established()?;
    table.retain(|connection| ports.contains(&connection.local_port));
    let count = |(id, pid): &(GenerationId, i32)| {
        let inodes = socket_inodes(*pid).ok()?;
        let held = table.iter().filter(|connection| inodes.contains(&connection.inode)).count();
        Some((id.number(), u64::try_from(held).ok()?))
    };
    Ok(pids.iter().filter_map(count).collect())
}

fn tallies(
    alive: &[(GenerationId, i32)],
    ports: &HashSet<u16>,
    of: &[GenerationId],
) -> Result<Tallies> {
    let mut table = sessions()?;
    table.retain(|session| ports.contains(&session.local_port));
    let (mut known, mut closed) = (Vec::new(), Vec::new());
    for (id, pid) in alive {
        let Ok(inodes) = socket_inodes(*pid) else {
            closed.push(*id);
            continue;
        };
        let mut tally = Tally::default();
        table.retain(|session| {
            let its = inodes.contains(&session.inode);
            if its {
                tally.add(session.silent);
            }
            !its
        });
        known.push((vec![*id], tally));
    }
    if !closed.is_empty() {
        let mut tally = Tally::default();
        for session in &table {
            tally.add(session.silent);
        }
        known.push((closed, tally));
    }
    known.retain(|(ids, _)| ids.iter().any(|id| of.contains(id)));
    let numbers = |ids: Vec<GenerationId>| ids.into_iter().map(GenerationId::number).collect();
    Ok(known.into_iter().map(|(ids, tally)| (numbers(ids), tally)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_before_it_was_asked_for_has_an_age() {
        let asked_at = Instant::now();
        let generation = |id| GenerationStatus {
            id,
            pid: None,
            state: "serving".to_owned(),
            since: String::new(),
            connections: None,
            connections_age_s: None,
            deadline: None,
        };
        let told = |at, id| {
            let mut all = [generation(id)];
            Count { at, of: HashMap::from([(7, 3)]) }.fill(&mut all, asked_at);
            (all[0].connections, all[0].connections_age_s)
        };
        let earlier = asked_at.checked_sub(Duration::from_secs(4));
        assert_eq!(told(Some(asked_at + Duration::from_millis(1)), 7), (Some(3), None));
        assert_eq!(told(earlier, 7), (Some(3), Some(4)));
        assert_eq!(told(earlier, 8), (None, None));
        assert_eq!(told(None, 8), (None, None));
    }
}
