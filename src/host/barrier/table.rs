//! Acts: a guard in our nftables table, which is gone when we are.
//!
//! The rules match a set of ports, of which each expires by itself: a hapilot that was stopped in
//! its tracks blocks nobody either. Opening empties the set and leaves the counters. The chain that
//! packets come by stays: taking a hook away would cost others the packets in their queues.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Fate, Site};
use crate::host::nftables::ruleset::{for_guard_alone, guard};
use crate::host::nftables::socket::Refused;
use crate::host::nftables::{Chain, Change, Kind, Nftables, Rule, Table};
use crate::host::record::Migration;
use crate::host::step::Undo;

#[derive(Clone, Debug)]
pub(super) struct InTable {
    nftables: Nftables,
    table: Table,
    fate: Option<Fate>,
    /// The table is there for the guard alone.
    alone: bool,
}

impl InTable {
    pub(super) fn raise(
        site: &Site,
        ports: &BTreeSet<u16>,
        fate: Fate,
        expiry: Duration,
    ) -> Result<Self> {
        let table = Table { instance: site.instance, kind: Kind::Rules };
        let mut raised =
            Self { nftables: site.nftables.clone(), table, fate: Some(fate), alone: false };
        let mut native = true;
        loop {
            let rule = match fate {
                Fate::Dropped => Rule::Drop,
                Fate::Held { queue } => Rule::Hold { queue, native },
            };
            let mut changes = guard(table, ports, rule, expiry, &site.families);
            if raised.alone {
                changes.splice(0..0, for_guard_alone(table, &site.families));
            }
            match raised.nftables.commit(&changes) {
                Ok(()) => return Ok(raised),
                Err(refused) if lacks_table(&refused) && !raised.alone => raised.alone = true,
                Err(refused) if lacks_expression(&refused) && native => native = false,
                Err(refused) => return Err(refused).context("make rules for a guard"),
            }
        }
    }

    pub(super) fn note(site: &Site, migration: Migration) -> Result<Self> {
        let table = Table { instance: site.instance, kind: Kind::Migration };
        let note = Self { nftables: site.nftables.clone(), table, fate: None, alone: true };
        site.debts.owe(&note.undos());
        site.nftables
            .commit(&[Change::AddNote(table, migration.to_string())])
            .inspect_err(|_| site.debts.paid(&note.undos()))?;
        Ok(note)
    }

    /// Rules go with us; a note does not.
    pub(super) fn undos(&self) -> Vec<Undo> {
        match self.table.kind {
            Kind::Rules => Vec::new(),
            Kind::Record | Kind::Migration => vec![Undo::Nftables(Change::DeleteTable(self.table))],
        }
    }

    pub(super) fn dropped(&self) -> Result<u64> {
        match self.fate {
            Some(Fate::Dropped) => self.nftables.counted(self.table, Chain::Guard),
            _ => Ok(0),
        }
    }

    pub(super) fn open(&self) -> Result<()> {
        Ok(self.nftables.commit(&[Change::FlushPorts(self.table)])?)
    }

    pub(super) fn lower(&self) -> Result<()> {
        let (table, chain) = (self.table, Chain::Guard);
        let changes = if self.alone {
            vec![Change::DeleteTable(table)]
        } else {
            vec![Change::FlushPorts(table), Change::FlushChain(table, chain)]
        };
        match self.nftables.commit(&changes) {
            Err(refused) if !refused.is_absent() => Err(refused).context("remove a guard's rules"),
            _ => Ok(()),
        }
    }
}

fn lacks_table(refused: &Refused) -> bool {
    refused.is_absent() && matches!(refused.change, Some(Change::FlushChain(..)))
}

fn lacks_expression(refused: &Refused) -> bool {
    refused.is_absent() && matches!(refused.change, Some(Change::AddRules { .. }))
}
