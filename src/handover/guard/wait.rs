//! Waits for what the kernel's table of sockets says. The kernel tells nobody when a queue is empty
//! or a listener closed, so for the length of a guard, and only then, it is asked again and again.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::fault::{self, Point};
use crate::listeners::socket_table::{HalfOpen, half_open, listening};

const AGAIN: Duration = Duration::from_millis(2);
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
    let empty = || {
        let all = listening().ok()?;
        let queued = all.iter().any(|l| l.queued > 0 && going.contains(&l.inode));
        Some(!queued && begun(ports)?.is_empty())
    };
    again_and_again(until, || full() || empty() == Some(true)).await && !full()
}

/// Until the listeners `going` are no more. Whether it came to that.
pub async fn gone(going: &BTreeSet<u64>, full: impl Fn() -> bool, until: Instant) -> bool {
    let gone = || listening().is_ok_and(|all| all.iter().all(|l| !going.contains(&l.inode)));
    again_and_again(until, || full() || gone()).await && !full()
}

/// Until all of `gone` listen again. Whether it came to that.
pub async fn back(gone: &BTreeSet<u64>, until: Instant) -> bool {
    if gone.is_empty() {
        return true;
    }
    let back = || {
        let all: BTreeSet<u64> = listening().into_iter().flatten().map(|l| l.inode).collect();
        gone.is_subset(&all)
    };
    again_and_again(until, back).await
}

/// Until the handshakes that are under way now at `ports` are over: one of a listener that is gone
/// needs the guard until its last packet has come. Whether it came to that.
pub async fn handshakes_over(ports: &BTreeSet<u16>, until: Instant) -> bool {
    let Some(first) = begun(ports) else { return false };
    let over = || begun(ports).is_some_and(|now| first.is_disjoint(&now));
    first.is_empty() || again_and_again(until, over).await
}

/// The clients of handshakes that are under way; `None` where the kernel does not say. One that did
/// not answer for some seconds does not count: every host that the world can reach has such, and
/// nothing waits for them.
fn begun(ports: &BTreeSet<u16>) -> Option<HashSet<(u16, SocketAddr)>> {
    let counts = |h: &HalfOpen| ports.contains(&h.local_port) && h.retries <= MOST_RETRIES;
    let all = half_open().ok()?.into_iter().filter(counts);
    Some(all.map(|h| (h.local_port, h.remote)).collect())
}

async fn again_and_again(until: Instant, done: impl Fn() -> bool) -> bool {
    if fault::within(Point::Wait).await.is_err() {
        return false;
    }
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(AGAIN).await;
    }
}
