//! What a guard puts in the way of SYNs for a moment: rules in a chain of iptables (`chain`) or in
//! our table of nftables (`table`).
//!
//! Rules are opened first and removed a little later: what was held must not meet them again, and
//! what they counted is still to be read.

mod chain;
mod table;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use tracing::warn;

use self::chain::InChain;
use self::table::InTable;
use super::backend::Backend;
use super::debts::Debts;
use super::instance::Instance;
use super::nftables::Nftables;
use super::record::Migration;
use super::step::{Family, Undo};
use crate::fault::{self, Point};
use crate::process::aside::aside;

/// Where a guard may put its rules.
#[derive(Clone, Debug)]
pub struct Site {
    pub instance: Instance,
    /// `None`: no firewall works here.
    pub backend: Option<Backend>,
    pub families: Vec<Family>,
    /// The owner of our table, should there be one.
    pub nftables: Nftables,
    /// What is there now, or could not be removed.
    pub debts: Debts,
    /// How long a program may take, unless it hangs.
    pub limit: Duration,
}

/// What becomes of a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Dropped,
    /// It waits in this NFQUEUE; where nobody reads that one, it passes.
    Held {
        queue: u16,
    },
}

/// Rules in force. Dropped, they stay, as debts of the site.
#[derive(Debug)]
pub struct Barrier {
    means: Means,
    up: bool,
    debts: Debts,
}

#[derive(Clone, Debug)]
enum Means {
    Chain(InChain),
    Table(InTable),
}

impl Barrier {
    /// SYNs to these ports meet their fate from now on, and no longer than `expiry` even if nobody
    /// takes the rules away (iptables: a second more, and only those that are dropped).
    pub async fn raise(
        site: &Site,
        ports: &BTreeSet<u16>,
        fate: Fate,
        expiry: Duration,
    ) -> Result<Self> {
        match site.backend {
            Some(Backend::Iptables(program)) => {
                Self::make(site, InChain::new(site, program, ports, fate, expiry)).await
            }
            Some(Backend::Nftables) => {
                let (of, ports) = (site.clone(), ports.clone());
                let raise = move || {
                    fault::at(Point::RaiseBarrier)?;
                    InTable::raise(&of, &ports, fate, expiry)
                };
                Ok(Self::of(site, Means::Table(aside(raise).await.flatten()?)))
            }
            None => bail!("no firewall works here"),
        }
    }

    /// Only for the sweep to find; no packet comes here.
    pub async fn note(site: &Site, migration: Migration) -> Result<Self> {
        match site.backend {
            Some(Backend::Iptables(program)) => {
                Self::make(site, InChain::note(site, program, migration)).await
            }
            Some(Backend::Nftables) => {
                let of = site.clone();
                let note = move || {
                    fault::at(Point::RaiseBarrier)?;
                    InTable::note(&of, migration)
                };
                Ok(Self::of(site, Means::Table(aside(note).await.flatten()?)))
            }
            None => bail!("no firewall works here"),
        }
    }

    fn of(site: &Site, means: Means) -> Self {
        Self { means, up: true, debts: site.debts.clone() }
    }

    async fn make(site: &Site, chain: InChain) -> Result<Self> {
        let mut barrier = Self::of(site, Means::Chain(chain.clone()));
        barrier.debts.owe(&barrier.means.undos());
        let make = move || {
            fault::at(Point::RaiseBarrier)?;
            chain.make()
        };
        match aside(make).await.flatten() {
            Ok(()) => Ok(barrier),
            Err(error) => {
                if let Err(more) = barrier.lower().await {
                    warn!("{more:#}");
                }
                Err(error)
            }
        }
    }

    /// SYNs that were dropped.
    pub async fn dropped(&self) -> Result<u64> {
        let means = self.means.clone();
        aside(move || means.dropped()).await.flatten()
    }

    /// From here on no packet is stopped.
    pub async fn open(&mut self) -> Result<()> {
        let means = self.means.clone();
        let open = move || {
            fault::at(Point::OpenBarrier)?;
            means.open()
        };
        let opened = aside(open).await.flatten();
        if opened.is_ok() { Ok(()) } else { self.lower().await }
    }

    /// Afterwards nothing of it is there. Goes on past failures, after which it may be tried again.
    /// Twice is not an error.
    pub async fn lower(&mut self) -> Result<()> {
        if !self.up {
            return Ok(());
        }
        let means = self.means.clone();
        let lower = move || {
            fault::at(Point::LowerBarrier)?;
            means.lower()
        };
        aside(lower).await.flatten()?;
        self.up = false;
        self.debts.paid(&self.means.undos());
        Ok(())
    }
}

/// Their calls wait for programs, or for the kernel: it has one lock for all changes of nftables.
impl Means {
    fn dropped(&self) -> Result<u64> {
        match self {
            Self::Chain(chain) => chain.dropped(),
            Self::Table(table) => table.dropped(),
        }
    }

    fn open(&self) -> Result<()> {
        match self {
            Self::Chain(chain) => chain.open(),
            Self::Table(table) => table.open(),
        }
    }

    fn lower(&self) -> Result<()> {
        match self {
            Self::Chain(chain) => chain.lower(),
            Self::Table(table) => table.lower(),
        }
    }

    fn undos(&self) -> Vec<Undo> {
        match self {
            Self::Chain(chain) => chain.undos(),
            Self::Table(table) => table.undos(),
        }
    }
}
