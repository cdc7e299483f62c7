//! Acts: finds those whom we are to relieve, makes them hold still, and borrows their listeners.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use tracing::{info, warn};

use super::choice::{Age, Choice, Seen, choose};
use super::hapilot::{Hapilot, Reserved};
use super::plain;
use super::predecessor::Predecessor;
use super::protocol::Caller;
use crate::host::instance::Instance;
use crate::host::lease;
use crate::listeners::fetch::Listener;
use crate::process::procfs;
use crate::settings::Predecessors;

/// For all that may be strangers together, and how many of them.
const DOUBT_LIMIT: Duration = Duration::from_secs(30);
const MOST_DOUBTFUL: usize = 4;

/// Those who are to be relieved, and what they listen on.
#[derive(Debug, Default)]
pub struct Found {
    pub predecessors: Vec<Predecessor>,
    pub listeners: Vec<Listener>,
    /// How many were meant, or might have been, and are not relieved. Each was told of.
    pub left_alone: usize,
    /// One that was meant died meanwhile.
    pub died: bool,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Asker {
    pub instance: Instance,
    pub caller: Caller,
    pub age: Age,
    /// Which line of the configuration needs transparent proxying that we do not set up.
    pub lacks: Option<String>,
}

/// Why we must not relieve the one that we were to relieve, and what to do.
#[derive(Debug)]
pub struct Hindered(pub String);

pub async fn find(wanted: &Predecessors, asker: &Asker) -> Result<Found, Hindered> {
    let mut died = false;
    loop {
        if let Some(found) = attempt(wanted, asker).await? {
            return Ok(Found { died, ..found });
        }
        // One ended while we waited for it: whoever is there now may be another one.
        died = true;
    }
}

async fn attempt(wanted: &Predecessors, asker: &Asker) -> Result<Option<Found>, Hindered> {
    let (mut met, deaf) = meet_all(asker).await;
    let seen: Vec<Seen> = met.iter().map(|(_, seen)| seen.clone()).collect();
    let Choice { chosen, notes, others } = choose(wanted, &asker.age, &seen);
    for note in &notes {
        warn!("{note}");
    }
    let is_doubtful = |at: usize| met[at].0.as_ref().is_some_and(|hapilot| hapilot.is_doubtful);
    let is_transparent = |at: &&usize| seen[**at].hello.transparent && !is_doubtful(**at);
    if let (Some(place), Some(at)) = (&asker.lacks, chosen.iter().find(is_transparent)) {
        return Err(Hindered(format!(
            "{place} needs transparent proxying, which hapilot {} sets up and this one does not: it \
             would end with that one; leave HAPROXY_TRANSPARENT=off away, or stop that one first",
            seen[*at].hello.name.instance
        )));
    }
    let mut found = Found { left_alone: deaf + notes.len(), ..Found::default() };
    let names: Vec<String> =
        chosen.iter().map(|at| seen[*at].hello.name.instance.clone()).collect();
    let (until, mut doubtful) = (Instant::now() + DOUBT_LIMIT, 0);
    for at in chosen {
        let Some(hapilot) = met[at].0.take() else { continue };
        doubtful += usize::from(hapilot.is_doubtful);
        if hapilot.is_doubtful && doubtful > MOST_DOUBTFUL {
            warn!("{} is left alone: {MOST_DOUBTFUL} like it were asked", hapilot.name());
            found.left_alone += 1;
            continue;
        }
        match reserve(hapilot, &names, until).await? {
            Step::Holds(predecessor) => found.predecessors.push(predecessor),
            Step::LeftAlone => found.left_alone += 1,
            Step::Again => return Ok(None),
        }
    }
    let wanted = match wanted {
        Predecessors::Pids(_) => Predecessors::Pids(others),
        other => other.clone(),
    };
    let hapilots = hapilots_here(asker.instance, &seen);
    let (plains, refused) = plain::find(&wanted, &hapilots);
    found.left_alone += refused.len();
    for problem in refused.into_iter().chain(plain::unseen(&wanted)) {
        warn!("{problem}");
    }
    found.predecessors.extend(plains.into_iter().map(|plain| Predecessor::Plain(Box::new(plain))));
    borrow(&mut found).await;
    Ok(Some(found))
}

enum Step {
    Holds(Predecessor),
    LeftAlone,
    Again,
}

async fn reserve(
    mut hapilot: Box<Hapilot>,
    chosen: &[String],
    until: Instant,
) -> Result<Step, Hindered> {
    let name = hapilot.name();
    info!(predecessor = name, state = hapilot.hello.state, "to be relieved");
    if hapilot.is_doubtful {
        warn!(
            "{name} has not shown CAP_NET_ADMIN over this network: its listeners are taken because it has \
             our user, what it says of servers and counters is not; with the same \
             HAPROXY_TAKEOVER_SECRET_FILE both would know each other"
        );
    }
    let doubt = until.saturating_duration_since(Instant::now());
    match hapilot.reserve(doubt).await {
        Ok(Reserved::Yes { paused }) => Ok(Step::Holds(Predecessor::Hapilot { hapilot, paused })),
        // A stranger may say so for ever.
        Ok(Reserved::Gone) if hapilot.is_doubtful => {
            warn!("{name} hung up, and is left alone");
            Ok(Step::LeftAlone)
        }
        Ok(Reserved::Gone) => {
            hapilot.dead().await;
            Ok(Step::Again)
        }
        Ok(Reserved::No { reason, by: Some(by) }) if chosen.contains(&by) => {
            info!("{name}: {reason}; we relieve that one");
            Ok(Step::LeftAlone)
        }
        Ok(Reserved::No { reason, by: Some(_) }) if !hapilot.is_doubtful => Err(Hindered(format!(
            "{name} cannot be relieved: {reason}; start this one again once that is over"
        ))),
        Ok(Reserved::No { reason, .. }) => {
            warn!("{name} cannot be relieved: {reason}");
            Ok(Step::LeftAlone)
        }
        Err(error) => {
            warn!("{name} cannot be relieved and serves on beside this one, stop it: {error:#}");
            Ok(Step::LeftAlone)
        }
    }
}

async fn borrow(found: &mut Found) {
    for predecessor in &mut found.predecessors {
        let name = predecessor.name();
        match predecessor.listeners().await {
            Ok(listeners) => {
                info!(
                    predecessor = name,
                    rung = %predecessor.rung(),
                    listeners = listeners.len(),
                    "listeners borrowed"
                );
                for note in predecessor.notes() {
                    warn!(predecessor = name, "{note}");
                }
                found.listeners.extend(listeners.into_iter().filter(reachable));
            }
            Err(error) => warn!("{name}: {error:#}; its sockets are not shared"),
        }
    }
}

/// A unix socket is of use where its file is; another container's files are not ours.
fn reachable(listener: &Listener) -> bool {
    !listener.address.starts_with('/') || std::path::Path::new(&listener.address).exists()
}

/// Everybody who lives here and says hello, and how many did not.
async fn meet_all(asker: &Asker) -> (Vec<(Option<Box<Hapilot>>, Seen)>, usize) {
    let living = lease::living().unwrap_or_else(|error| {
        warn!("other hapilots cannot be found: {error:#}");
        BTreeSet::default()
    });
    let others: Vec<_> =
        living.into_iter().filter(|instance| *instance != asker.instance).collect();
    let (mut all, mut deaf) = (Vec::new(), 0);
    for hapilot in Hapilot::meet_each(&others, &asker.caller).await {
        match hapilot {
            Ok(hapilot) => {
                let pids = hapilot.pid.map(family).unwrap_or_default();
                let seen = Seen { hello: hapilot.hello.clone(), pids };
                all.push((Some(Box::new(hapilot)), seen));
            }
            // It may have ended just now. If it is stuck, its HAProxy serves on beside ours.
            Err(error) => {
                warn!("a hapilot on this host is left alone: {error:#}");
                deaf += 1;
            }
        }
    }
    (all, deaf)
}

/// The processes of everybody who lives here and of all that descend from them: also of one that
/// hangs, is another user's, or came since. It would start its HAProxy again, were that told to go.
fn hapilots_here(own: Instance, seen: &[Seen]) -> Vec<i32> {
    let met = |instance: &Instance| {
        let instance = instance.to_string();
        seen.iter().any(|seen| seen.hello.name.instance == instance)
    };
    // Whoever cannot be listed was told of by `meet_all`.
    let others = lease::living().unwrap_or_default().into_iter();
    let others = others.filter(|instance| *instance != own && !met(instance));
    let held = others.filter_map(lease::holder).flat_map(family);
    seen.iter().flat_map(|seen| seen.pids.clone()).chain(held).collect()
}

/// A process and all that descend from it.
fn family(of: i32) -> Vec<i32> {
    let descendants = procfs::descendants(&procfs::parents(), of);
    std::iter::once(of).chain(descendants).collect()
}
