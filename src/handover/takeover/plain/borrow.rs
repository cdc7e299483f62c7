//! Acts: gets duplicates of what a HAProxy listens on, by the best way that is to be had. It serves
//! on meanwhile and learns nothing of it.

use std::collections::{BTreeMap, BTreeSet};

use super::super::predecessor::Rung;
use super::super::separate::Separate;
use super::descriptors::{Taken, take};
use super::haproxy::Haproxy;
use super::ladder::{Tried, rung, why_not_better};
use super::reach::{Door, Root, doors};
use super::runtime::{Runtime, Stats, roots, stats_sockets};
use super::tables::UnixName;
use super::view::View;
use crate::listeners::compare::Seen;
use crate::listeners::fetch::Listener;

#[derive(Debug)]
pub struct Borrowed {
    pub rung: Rung,
    /// Why no better one, and what could not be found out; for people.
    pub notes: Vec<String>,
    pub listeners: Vec<Listener>,
    pub separate: Separate,
    /// Some of what it listens on is ours as well.
    pub shares: bool,
    stats_socket: Option<Runtime>,
}

impl Borrowed {
    /// Connections that it has, by its own words; `None` once it was told to let go.
    pub async fn sessions(&self) -> Option<u64> {
        self.stats_socket.as_ref()?.sessions().await
    }
}

impl Haproxy {
    pub async fn borrow(&self) -> Borrowed {
        let view = View::take(self);
        let roots = roots(self, view.sees);
        let Stats { sockets, silent } = stats_sockets(self, &view, &roots).await;
        let mut tried = Tried { sees: view.sees, silent, ..Tried::default() };
        let mut got = BTreeMap::new();
        for stats in &sockets {
            let shown = &stats.door.shown;
            match stats.listeners().await {
                Ok(listeners) if listeners.is_empty() => tried.keep_theirs.push(shown.clone()),
                Ok(mut listeners) => {
                    listeners.retain(|listener| view.is_of_this_network(listener));
                    if listeners.is_empty() {
                        let what = "nothing that it hands over listens in this network";
                        tried.silent.push(format!("{shown}: {what}"));
                        continue;
                    }
                    tried.handed_over = Some(shown.clone());
                    got.extend(listeners.into_iter().map(|listener| (listener.inode, listener)));
                }
                Err(error) => tried.silent.push(format!("{shown}: {error:#}")),
            }
        }
        let useless = useless_files(&view, &roots, &sockets);
        got.retain(|inode, _| !useless.contains(inode));
        let wanted = wanted(&view, &useless);
        self.take_missing(&wanted, &mut got, &mut tried);
        let all = got.len();
        // It may have opened them, or got them from a friend, since it was found.
        got.retain(|inode, _| self.named || view.is_trusted(*inode));
        let strange = all - got.len();
        let separate = separate(&view, &got, &tried);
        let listeners = got.into_values().collect();
        let stats_socket = sockets.into_iter().next();
        let mut notes = why_not_better(&tried);
        notes.extend(view.failures);
        if strange > 0 {
            notes.push(format!(
                "{strange} listeners that neither root nor our user opened are left to it: name its PID \
                 in place of auto to share them"
            ));
        }
        Borrowed { rung: rung(&tried), notes, listeners, separate, shares: false, stats_socket }
    }

    fn take_missing(
        &self,
        wanted: &BTreeMap<u64, (i32, i32)>,
        got: &mut BTreeMap<u64, Listener>,
        tried: &mut Tried,
    ) {
        let missing: Vec<_> =
            wanted.iter().filter(|(inode, _)| !got.contains_key(*inode)).collect();
        for (inode, (pid, descriptor)) in missing {
            let Some(process) = self.members().find(|member| member.pid() == *pid) else {
                continue;
            };
            match take(process, *descriptor, *inode) {
                Ok(Taken::Listener(listener)) => {
                    got.insert(*inode, listener);
                    tried.taken += 1;
                }
                Ok(Taken::Other) => {}
                Err(denied) => {
                    tried.refused = Some(denied.to_string());
                    return;
                }
            }
        }
    }
}

/// Its stats sockets, and sockets with a file that is not in our file system under that name: with
/// one of those ours would listen, and nobody here would find it.
fn useless_files(view: &View, roots: &[Root], stats: &[Runtime]) -> BTreeSet<u64> {
    let useless = |(inode, name): &(u64, &UnixName)| match name {
        UnixName::Abstract(_) => false,
        UnixName::Path(_) => {
            stats.iter().any(|stats| stats.inode == *inode)
                || !doors(name, roots).iter().any(Door::is_ours_too)
        }
    };
    view.candidates().filter(useless).map(|(inode, _)| inode).collect()
}

/// What it holds and ours could use, with the process and the descriptor.
fn wanted(view: &View, useless: &BTreeSet<u64>) -> BTreeMap<u64, (i32, i32)> {
    let tcp = view.own_tcp().map(|seen| seen.inode);
    let unix = view.unix.keys().copied().filter(|inode| !useless.contains(inode));
    let udp = view.udp.keys().copied();
    tcp.chain(unix).chain(udp).filter_map(|i| Some((i, *view.held.get(&i)?))).collect()
}

fn separate(view: &View, got: &BTreeMap<u64, Listener>, tried: &Tried) -> Separate {
    let not_got = |seen: &&Seen| !got.contains_key(&seen.inode);
    let mut separate = Separate::default();
    if view.sees {
        separate.known = view.own_tcp().filter(not_got).cloned().collect();
    } else if tried.handed_over.is_none() {
        separate.suspected = view.tcp.iter().filter(not_got).cloned().collect();
    }
    separate
}
