//! Waits for what the kernel's table of sockets says. The kernel tells nobody when a queue is empty
//! or a listener closed, so for the length of a guard, and only then, it is asked again and again.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout_at;

use crate::fault::{self, Point};
use crate::listeners::socket_table::{HalfOpen, half_open, listening};
use crate::process::aside::aside;

const AGAIN: Duration = Duration::from_millis(2);
/// How long a look may take once the time is up.
const LAST_LOOK: Duration = Duration::from_millis(20);
/// The kernel asks again after one second, and after two more.
const MOST_RETRIES: u8 = 1;

/// Until nothing waits at the listeners `going` and no handshake is under way at `ports`, or no
/// more can be held (`full`). Whether it came to that.
pub async fn settled(
    going: &BTreeSet<u64>,
    ports: &BTreeSet<u16>,
    full: impl Fn() -> bool,
    until: Instant,
) -> bool {
    if going.is_empty() {
        return true;
    }
    let (going, ports) = (Arc::new(going.clone()), Arc::new(ports.clone()));
    let empty = move || {
        let Ok(all) = listening() else { return false };
        let queued = all.iter().any(|l| l.queued > 0 && going.contains(&l.inode));
        !queued && begun(&ports).is_some_and(|begun| begun.is_empty())
    };
    again_and_again(until, &full, empty).await && !full()
}

/// Until the listeners `going` are no more. Whether it came to that.
pub async fn gone(going: &BTreeSet<u64>, full: impl Fn() -> bool, until: Instant) -> bool {
    let going = Arc::new(going.clone());
    let gone = move || listening().is_ok_and(|all| all.iter().all(|l| !going.contains(&l.inode)));
    again_and_again(until, &full, gone).await && !full()
}

/// Until all of `gone` listen again. Whether it came to that.
pub async fn back(gone: &BTreeSet<u64>, until: Instant) -> bool {
    if gone.is_empty() {
        return true;
    }
    let gone = Arc::new(gone.clone());
    let back = move || {
        let all: BTreeSet<u64> = listening().into_iter().flatten().map(|l| l.inode).collect();
        gone.is_subset(&all)
    };
    again_and_again(until, &|| false, back).await
}

/// Until the handshakes that are under way now at `ports` are over: one of a listener that is gone
/// needs the guard until its last packet has come. Whether it came to that.
pub async fn handshakes_over(ports: &BTreeSet<u16>, until: Instant) -> bool {
    let ports = Arc::new(ports.clone());
    let now = {
        let ports = Arc::clone(&ports);
        move || begun(&ports)
    };
    let Some(Some(first)) = look(until, now).await else { return false };
    if first.is_empty() {
        return true;
    }
    let first = Arc::new(first);
    let over = move || begun(&ports).is_some_and(|now| first.is_disjoint(&now));
    again_and_again(until, &|| false, over).await
}

/// The clients of handshakes that are under way; `None` where the kernel does not say. One that did
/// not answer for some seconds does not count: every host that the world can reach has such, and
/// nothing waits for them.
fn begun(ports: &BTreeSet<u16>) -> Option<HashSet<(u16, SocketAddr)>> {
    let counts = |h: &HalfOpen| ports.contains(&h.local_port) && h.retries <= MOST_RETRIES;
    let all = half_open().ok()?.into_iter().filter(counts);
    Some(all.map(|h| (h.local_port, h.remote)).collect())
}

async fn again_and_again(
    until: Instant,
    full: &impl Fn() -> bool,
    done: impl Fn() -> bool + Clone + Send + 'static,
) -> bool {
    if fault::within(Point::Wait).await.is_err() {
        return false;
    }
    loop {
        let begin = Instant::now();
        if full() || look(until, done.clone()).await == Some(true) {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        // A table with a hundred thousand connections takes its time.
        tokio::time::sleep(AGAIN.max(begin.elapsed())).await;
    }
}

/// Beside the loop. `None`: it did not come to an end in time.
async fn look<T: Send + 'static>(
    until: Instant,
    at_table: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    // One more look is due when the time is up.
    let until = until.max(Instant::now()) + LAST_LOOK;
    timeout_at(until.into(), aside(at_table)).await.ok()?.ok()
}
