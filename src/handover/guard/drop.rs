//! SYNs are dropped, by rules that expire by themselves whatever happens to us.

use std::collections::BTreeSet;

use anyhow::Result;

use super::SYN_LIMIT;
use crate::host::barrier::{Barrier, Fate, Site};

#[derive(Debug)]
pub(super) struct Dropping {
    barrier: Barrier,
}

impl Dropping {
    pub(super) async fn raise(site: &Site, ports: &BTreeSet<u16>) -> Result<Self> {
        let barrier = Barrier::raise(site, ports, Fate::Dropped, SYN_LIMIT).await?;
        Ok(Self { barrier })
    }

    /// Its counters say how many SYNs were dropped.
    pub(super) async fn open(mut self) -> (Result<()>, Barrier) {
        (self.barrier.open().await, self.barrier)
    }
}
