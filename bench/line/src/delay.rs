//! Holds every packet of one NFQUEUE for the same time: this kernel may have no `netem`.

use std::collections::VecDeque;
use std::io::{Write, stdin, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::queue::Queue;

/// Until its standard input is closed, so that it never outlives whoever started it.
pub(crate) fn run(number: u16, delay: Duration) -> Result<()> {
    let queue = Queue::open(number).with_context(|| format!("open NFQUEUE {number}"))?;
    writeln!(stdout(), "ready")?;
    let mut held: VecDeque<(Instant, u32)> = VecDeque::new();
    loop {
        let mut last = None;
        while let Some((due, packet)) = held.front().copied() {
            if due > Instant::now() {
                break;
            }
            last = Some(packet);
            held.pop_front();
        }
        if let Some(packet) = last {
            queue.accept_up_to(packet).context("release packets")?;
        }
        let rest = held.front().map(|(due, _)| due.saturating_duration_since(Instant::now()));
        if !wait(&queue, rest)? {
            return Ok(());
        }
        // All of a burst came at once: they leave at once too.
        if let Some(packet) = queue.last_of_those_that_came().context("read packets")? {
            held.push_back((Instant::now() + delay, packet));
        }
    }
}

/// For packets or the time; false when nobody wants the line any more.
fn wait(queue: &Queue, limit: Option<Duration>) -> Result<bool> {
    let input = stdin();
    let mut sources =
        [PollFd::new(queue, PollFlags::IN), PollFd::new(&input, PollFlags::IN | PollFlags::HUP)];
    let limit = limit.map(Timespec::try_from).transpose()?;
    poll(&mut sources, limit.as_ref()).context("wait for packets")?;
    Ok(sources[1].revents().is_empty())
}
