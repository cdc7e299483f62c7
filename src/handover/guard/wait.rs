//! Waits for what the kernel's table of sockets says. The kernel tells nobody when a queue is empty
//! or a listener closed, so for the length of a guard, and only then, it is asked again and again.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use crate::listeners::socket_table::{HalfOpen, half_open, listening};

const AGAIN: Duration = Duration::from_millis(2);

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
    again_and_again(until, || {
        let queued = listening()
            .is_ok_and(|all| all.iter().any(|l| l.queued > 0 && going.contains(&l.inode)));
        let begun =
            || half_open().is_ok_and(|all| all.iter().any(|h| ports.contains(&h.local_port)));
        full() || !(queued || begun())
    })
    .await
        && !full()
}

/// Until the listeners `going` are no more. Whether it came to that.
pub async fn gone(going: &BTreeSet<u64>, full: impl Fn() -> bool, until: Instant) -> bool {
    let gone = || listening().is_ok_and(|all| all.iter().all(|l| !going.contains(&l.inode)));
    again_and_again(until, || full() || gone()).await && !full()
}

/// Until the handshakes that are under way now at `ports` are over: one of a listener that is gone
/// needs the guard until its last packet has come. Whether it came to that.
pub async fn handshakes_over(ports: &BTreeSet<u16>, until: Instant) -> bool {
    let begun = || -> HashSet<HalfOpen> {
        let all = half_open().unwrap_or_default();
        all.into_iter().filter(|h| ports.contains(&h.local_port)).collect()
    };
    let first = begun();
    first.is_empty() || again_and_again(until, || first.is_disjoint(&begun())).await
}

async fn again_and_again(until: Instant, done: impl Fn() -> bool) -> bool {
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
