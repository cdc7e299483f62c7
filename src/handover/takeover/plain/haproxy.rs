//! Acts: one HAProxy, as many processes as it may be.

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use anyhow::Result;
use rustix::process::Signal;

use super::process::Process;
use crate::fault::{self, Point};
use crate::listeners::socket_table::established;
use crate::process::procfs::socket_inodes;

#[derive(Debug)]
pub struct Haproxy {
    /// Signals go to this one: the master, or the only process.
    pub leader: Process,
    pub workers: Vec<Process>,
    /// Somebody vouches for it. What others hand over is looked at.
    pub named: bool,
}

/// Whose the listening sockets are that it is to let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sockets {
    /// At least one is ours as well: SIGTTOU would take it from everybody.
    Shared,
    Separate,
}

impl Haproxy {
    pub fn members(&self) -> impl Iterator<Item = &Process> {
        self.workers.iter().chain([&self.leader])
    }

    /// No new connections; it ends when its sessions have.
    pub fn let_go(&self, sockets: Sockets) -> Result<()> {
        fault::at(Point::LetGo)?;
        if sockets == Sockets::Separate {
            self.leader.signal(Signal::TTOU)?;
        }
        self.leader.signal(Signal::USR1)
    }

    /// Comes back when all of it has ended.
    pub async fn gone(&self) -> std::io::Result<()> {
        for process in self.members() {
            process.gone().await?;
        }
        Ok(())
    }

    /// Connections of clients at these ports; `None` where we may not look.
    #[must_use]
    pub fn sessions(&self, ports: &BTreeSet<u16>) -> Option<u64> {
        let mut inodes = HashSet::new();
        for process in self.members().filter(|process| !process.has_ended()) {
            inodes.extend(socket_inodes(process.pid()).ok()?);
        }
        let table = established().ok()?;
        let held = table
            .iter()
            .filter(|connection| ports.contains(&connection.local_port))
            .filter(|connection| inodes.contains(&connection.inode));
        u64::try_from(held.count()).ok()
    }
}

impl fmt::Display for Haproxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HAProxy {}", self.leader.pid())?;
        if !self.workers.is_empty() {
            let pids: Vec<_> = self.workers.iter().map(|w| w.pid().to_string()).collect();
            write!(f, " (with {})", pids.join(", "))?;
        }
        Ok(())
    }
}
