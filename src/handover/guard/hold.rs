//! SYNs wait in an NFQUEUE until the hand-over is done, and then go their way in order.
//!
//! The chain is opened first and the packets then repeat the hook: with an ACCEPT they would skip
//! the rest of the mangle table, our interception and other people's marks included. They are let
//! through no faster than the listeners' backlogs have room, or the kernel would drop them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

use super::SYN_LIMIT;
use super::queue::Queue;
use crate::fault::{self, Point};
use crate::host::barrier::{Barrier, Fate, Site};
use crate::listeners::socket_table::{half_open, listening};
use crate::process::aside::aside;

/// Then the guard is lowered, whatever it waits for.
const MOST_HELD: usize = 4096;
/// What the kernel holds for us beyond that; more passes.
const MOST_QUEUED: u32 = 16 * 1024;
/// How long what was held may be let through slowly. A SYN that the kernel drops is sent again by its
/// client after 1 s, so until then waiting for room costs the client less.
const RELEASE_LIMIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Hold {
    barrier: Barrier,
    held: Held,
}

/// Packets that wait. Dropped, they are all let through at once.
#[derive(Debug)]
pub(super) struct Held {
    queue: Rc<Queue>,
    packets: Rc<RefCell<Vec<u32>>>,
    reader: JoinHandle<()>,
}

impl Hold {
    pub(super) async fn raise(site: &Site, ports: &BTreeSet<u16>) -> Result<Self> {
        let queue = Queue::open(first_number(), MOST_QUEUED)?;
        let number = queue.number();
        let held = Held::read(queue);
        let fate = Fate::Held { queue: number };
        Ok(Self { barrier: Barrier::raise(site, ports, fate, SYN_LIMIT).await?, held })
    }

    pub(super) fn fullness(&self) -> Box<dyn Fn() -> bool> {
        let packets = Rc::clone(&self.held.packets);
        Box::new(move || packets.borrow().len() >= MOST_HELD)
    }

    pub(super) async fn open(mut self) -> (Result<()>, Barrier, Held) {
        (self.barrier.open().await, self.barrier, self.held)
    }
}

/// Others begin to count at 0.
fn first_number() -> u16 {
    let id = std::process::id() % 16_384;
    u16::try_from(id).unwrap_or_default() + 32_768
}

impl Held {
    fn read(queue: Queue) -> Self {
        let (queue, packets) = (Rc::new(queue), Rc::new(RefCell::new(Vec::new())));
        let (from, into) = (Rc::clone(&queue), Rc::clone(&packets));
        let reader = tokio::task::spawn_local(async move {
            while let Ok(more) = from.receive().await {
                into.borrow_mut().extend(more);
            }
        });
        Self { queue, packets, reader }
    }

    /// In order. How many they were.
    pub(super) async fn release(self, ports: &BTreeSet<u16>) -> Result<u64> {
        fault::within(Point::Release).await.context("let held packets through")?;
        let until = Instant::now() + RELEASE_LIMIT;
        let looks = Looks::start(ports.clone());
        let mut count = 0;
        loop {
            self.packets.borrow_mut().extend(self.queue.waiting());
            let left = self.packets.borrow().len();
            if left == 0 {
                return Ok(count);
            }
            let room = if Instant::now() < until {
                // A look that cannot be had, or not in time, holds nobody back.
                let room = timeout_at(until.into(), looks.room()).await;
                room.ok().flatten().unwrap_or(left)
            } else {
                left
            };
            let some: Vec<u32> = self.packets.borrow_mut().drain(..left.min(room)).collect();
            for packet in some {
                self.queue.repeat(packet).context("let a held packet through")?;
                count += 1;
            }
            // The last look finds what was on its way while the rule was removed.
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Looks at the backlogs beside the loop, as often as it is asked to. One thread for all looks: on a
/// busy machine a new one would wait for the processor each time, and the limit would be over first.
struct Looks(mpsc::Sender<oneshot::Sender<usize>>);

impl Looks {
    /// The thread ends when this is dropped.
    fn start(ports: BTreeSet<u16>) -> Self {
        let (ask, asked) = mpsc::channel::<oneshot::Sender<usize>>();
        tokio::task::spawn_local(aside(move || {
            for answer in asked {
                // Its reader may not wait for it any more.
                let _ = answer.send(room(&ports));
            }
        }));
        Self(ask)
    }

    async fn room(&self) -> Option<usize> {
        let (answer, answered) = oneshot::channel();
        self.0.send(answer).ok()?;
        answered.await.ok()
    }
}

/// How many handshakes can begin on each of these ports; where it cannot be told, as many as like.
fn room(ports: &BTreeSet<u16>) -> usize {
    let Ok((listening, half_open)) = listening().and_then(|l| Ok((l, half_open()?))) else {
        return usize::MAX;
    };
    let room_at = |port: u16| {
        let begun = half_open.iter().filter(|h| h.local_port == port).count();
        let smallest = listening
            .iter()
            .filter(|l| l.local_port == port)
            .map(|l| l.backlog.saturating_sub(l.queued))
            .min()?;
        // Each is a guess about who gets them, so half of it.
        Some((usize::try_from(smallest).unwrap_or(usize::MAX) / 2).saturating_sub(begun))
    };
    ports.iter().filter_map(|port| room_at(*port)).min().unwrap_or(usize::MAX)
}

impl Drop for Held {
    fn drop(&mut self) {
        self.reader.abort();
        let mut packets = self.packets.borrow_mut();
        packets.extend(self.queue.waiting());
        for packet in packets.drain(..) {
            // One that is lost is sent again by its client.
            let _ = self.queue.repeat(packet);
        }
    }
}
