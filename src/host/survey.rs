//! Looks at what is in force in every place where a hapilot may have written.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use super::instance::Instance;
use super::lease;
use super::linux::Linux;
use super::nftables::{Change, Nftables, Seen};
use super::preflight::Facts;
use super::record::Record;
use super::saved::Saved;
use super::step::{Place, Program, Step};
use crate::fault::{self, Point};
use crate::process::together::each;

/// What `iptables-nft` had at a moment. Nobody has to read it anew as long as nobody changed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    generation: u32,
    places: Vec<(Place, Saved)>,
}

impl Snapshot {
    /// `generation`: from before the places were read, so a change since then is not missed.
    #[must_use]
    pub fn new(generation: u32, places: Vec<(Place, Saved)>) -> Self {
        Self { generation, places }
    }

    fn holds(&self, nftables: &Nftables) -> bool {
        nftables.generation().is_ok_and(|now| now == self.generation)
    }

    fn of(&self, place: Place) -> Option<&Saved> {
        self.places.iter().find(|(other, _)| *other == place).map(|(_, saved)| saved)
    }
}

#[derive(Clone, Debug, Default)]
pub struct Survey {
    pub places: Vec<(Place, Saved)>,
    /// Of nftables.
    pub tables: Vec<Seen>,
}

impl Survey {
    pub fn take(kernel: &Linux, facts: &Facts) -> Result<Self> {
        fault::at(Point::Survey).context("look at the rules that are there")?;
        let Facts { programs, families, nftables, .. } = facts;
        let of = |&program: &Program| families.iter().map(move |&family| Place { program, family });
        let places: Vec<Place> = programs.iter().flat_map(of).collect();
        let tables = if *nftables { kernel.nftables.tables()? } else { Vec::new() };
        let iptables = kernel.iptables;
        let snapshot = facts.snapshot.as_ref().filter(|snapshot| snapshot.holds(&kernel.nftables));
        let saved = each(&places, |&place| {
            if let Some(saved) = snapshot.and_then(|snapshot| snapshot.of(place)) {
                return Ok((place, saved.clone()));
            }
            let saved = iptables.saved(place);
            Ok((place, saved.with_context(|| format!("read the rules of {place}"))?))
        });
        Ok(Self { places: saved.into_iter().collect::<Result<_>>()?, tables })
    }

    /// Only what these steps are in: all of a large firewall takes long to read.
    pub fn of(kernel: &Linux, steps: &[Step]) -> Result<Self> {
        let places: BTreeSet<Place> = steps.iter().filter_map(Step::place).collect();
        let in_tables = steps.iter().any(|step| step.nftables().is_some());
        let tables = if in_tables { kernel.nftables.tables()? } else { Vec::new() };
        let iptables = kernel.iptables;
        let saved = each(&Vec::from_iter(places), |&place| {
            let saved = iptables.mangle(place);
            Ok((place, saved.with_context(|| format!("read the rules of {place}"))?))
        });
        Ok(Self { places: saved.into_iter().collect::<Result<_>>()?, tables })
    }

    pub fn records(&self) -> impl Iterator<Item = &Record> {
        let in_tables = self.tables.iter().filter_map(|seen| seen.record.as_ref());
        self.places.iter().flat_map(|(_, saved)| &saved.records).chain(in_tables)
    }

    /// Of every instance that lives, but for `us`.
    pub fn living_records(&self, us: Option<Instance>) -> Result<Vec<Record>> {
        let mut living = Vec::new();
        for record in self.records() {
            let other = Some(record.instance) != us && !living.contains(record);
            if other && lease::keeps(record.instance)? {
                living.push(*record);
            }
        }
        Ok(living)
    }

    /// Tables of these steps that are not there any more. Of the one with the rules we are the
    /// owner, so nobody can have taken it.
    pub fn missing<'a>(&self, steps: &'a [Step]) -> impl Iterator<Item = &'a Step> {
        let notes =
            steps.iter().filter(|step| matches!(step.nftables(), Some(Change::AddNote(..))));
        let there = |step: &&Step| {
            step.nftables()
                .is_some_and(|change| self.tables.iter().any(|s| s.table == change.table()))
        };
        notes.filter(move |step| !there(step)).collect::<Vec<_>>().into_iter()
    }

    /// Rules of others that this program sees.
    #[must_use]
    pub fn foreign_rules(&self, program: Program) -> usize {
        let seen = self.places.iter().filter(|(place, _)| place.program == program);
        seen.map(|(_, saved)| saved.foreign_rules).sum()
    }
}
