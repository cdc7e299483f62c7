//! Removes what dead instances left behind.
//!
//! An instance is dead when its lease can be taken; we hold it while we clean, which keeps a second
//! sweeper away. Where a stranger has the name of a dead one we clean without. Its chain of diversion, or a table, carries the record of all the rest: it goes last, and
//! stays when something could not be removed: the next sweep then still knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::applied::{Failure, Kernel};
use super::instance::{ChainName, Instance, Purpose};
use super::lease::{self, Lease, Occupant, SetupLock, occupants};
use super::linux::Linux;
use super::nftables::{Change, Kind, Table};
use super::preflight::Facts;
use super::record::{Migration, Record};
use super::step::{Family, Place, Undo};
use super::survey::Survey;
use crate::problem::Problem;

const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    pub instances: Vec<Instance>,
    pub undone: Vec<Undo>,
    pub failures: Vec<Failure>,
    /// Of names that are taken by somebody who is no hapilot, or may be none.
    pub warnings: Vec<Problem>,
}

/// `us`: an instance that lives and has nothing in the kernel yet. Needs a tokio runtime.
pub async fn sweep(facts: &Facts, us: Option<Instance>) -> Result<Swept> {
    let lock = SetupLock::take(LOCK_LIMIT).await.context("sweep")?;
    let (mut kernel, survey) = look(facts)?;
    sweep_seen(&lock, &mut kernel, &survey, us).await
}

/// For one that lives, and serves meanwhile.
pub async fn sweep_by(until: Instant, facts: &Facts) -> Result<Swept> {
    let left = until.saturating_duration_since(Instant::now());
    let lock = SetupLock::take(left).await.context("sweep")?;
    let mut kernel = Linux::default();
    kernel.finish_by(until);
    let survey = look_with(&mut kernel, facts)?;
    sweep_seen(&lock, &mut kernel, &survey, None).await
}

/// The same, for one who holds the lock and has looked already.
pub(super) async fn sweep_seen(
    _lock: &SetupLock,
    kernel: &mut Linux,
    survey: &Survey,
    us: Option<Instance>,
) -> Result<Swept> {
    let mut swept = Swept::default();
    let mut found = Vec::new();
    for (instance, leftover) in leftovers(survey) {
        found.push((instance, leftover, Lease::of(instance)?));
    }
    let taken = found.iter().filter(|(_, _, held)| held.is_none()).map(|(instance, ..)| *instance);
    let occupants = occupants(&taken.collect()).await;
    swept.warnings.extend(occupants.iter().filter_map(|(instance, who)| about(*instance, who)));
    kernel.others.retain(|record| !is_stranger(&occupants, record.instance));
    for (instance, leftover, held) in &found {
        if held.is_some() || is_stranger(&occupants, *instance) {
            swept.instances.push(*instance);
            // It may have died since we looked: nobody who lives needs its sysctls then.
            kernel.others.retain(|other| other.instance != *instance);
            remove(kernel, leftover, &mut swept).await;
        }
    }
    for undo in unrecorded(kernel, survey, us).await? {
        attempt(kernel, undo, &mut swept).await;
    }
    Ok(swept)
}

/// What `sweep` would do, as undos whose text is the command. Changes nothing.
pub async fn dry_run(facts: &Facts, us: Option<Instance>) -> Result<Vec<Undo>> {
    let (kernel, survey) = look(facts)?;
    let mut undos = Vec::new();
    let leftovers = leftovers(&survey);
    let occupants = occupants(&leftovers.keys().copied().collect()).await;
    for (instance, leftover) in leftovers {
        if is_stranger(&occupants, instance) {
            undos.extend(leftover.undos());
            undos.extend(leftover.record_chains());
        }
    }
    undos.extend(unrecorded(&kernel, &survey, us).await?);
    Ok(undos)
}

fn is_stranger(occupants: &BTreeMap<Instance, Occupant>, instance: Instance) -> bool {
    matches!(occupants.get(&instance), Some(Occupant::Stranger(_)))
}

fn about(instance: Instance, occupant: &Occupant) -> Option<Problem> {
    const END: &str = "end that process (ss -xap shows it)";
    let name = instance.lease_name();
    match occupant {
        Occupant::Hapilot => None,
        Occupant::Stranger(who) => Some(Problem::new(
            format!(
                "{who} has the name @{name}, of a dead hapilot, whose rules are removed all the same"
            ),
            END,
        )),
        Occupant::Unknown(why) => Some(Problem::new(
            format!(
                "who has the name @{name} cannot be asked ({why}), and is taken for a hapilot that \
                 lives: its rules stay"
            ),
            format!("if it is none, {END} and sweep again"),
        )),
    }
}

pub(super) fn look(facts: &Facts) -> Result<(Linux, Survey)> {
    let mut kernel = Linux::default();
    let survey = look_with(&mut kernel, facts)?;
    Ok((kernel, survey))
}

fn look_with(kernel: &mut Linux, facts: &Facts) -> Result<Survey> {
    let survey = Survey::take(kernel, facts)?;
    kernel.others = survey.living_records(None)?;
    Ok(survey)
}

/// Rules and routes of ours whose record is gone: somebody flushed the firewall, and then that
/// instance died. While one lives that has no record, they may be its own, and stay.
async fn unrecorded(kernel: &Linux, survey: &Survey, us: Option<Instance>) -> Result<Vec<Undo>> {
    let mut undos = Vec::new();
    for family in Family::BOTH {
        for numbers in kernel.routing.marked_as_ours(family).await? {
            if survey.records().all(|record| record.numbers != numbers) {
                undos.push(Undo::RemovePolicyRule { family, numbers });
                undos.push(Undo::RemoveLocalRoute { family, table: numbers.table });
            }
        }
    }
    if undos.is_empty() {
        return Ok(undos);
    }
    let recorded = |instance: Instance| survey.records().any(|r| r.instance == instance);
    let living: BTreeSet<_> = lease::living()?
        .into_iter()
        .filter(|living| Some(*living) != us && !recorded(*living))
        .collect();
    let occupants = occupants(&living).await;
    let all_are = living.iter().all(|living| is_stranger(&occupants, *living));
    Ok(if all_are { undos } else { Vec::new() })
}

async fn remove(kernel: &mut Linux, leftover: &Leftover, swept: &mut Swept) {
    let failures = swept.failures.len();
    for undo in leftover.undos() {
        attempt(kernel, undo, swept).await;
    }
    if swept.failures.len() == failures {
        for undo in leftover.record_chains() {
            attempt(kernel, undo, swept).await;
        }
    }
}

async fn attempt(kernel: &mut Linux, undo: Undo, swept: &mut Swept) {
    match kernel.undo(&undo).await {
        Ok(()) => swept.undone.push(undo),
        Err(error) => swept.failures.push(Failure { undo, error }),
    }
}

/// All that is seen of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Leftover {
    jumps: Vec<(Place, String, String, Purpose)>,
    chains: BTreeSet<(Place, ChainName)>,
    tables: BTreeSet<Table>,
    record: Option<Record>,
    migration: Option<Migration>,
}

fn leftovers(survey: &Survey) -> BTreeMap<Instance, Leftover> {
    let mut found: BTreeMap<Instance, Leftover> = BTreeMap::new();
    // One that is owned goes with its owner.
    for seen in survey.tables.iter().filter(|seen| !seen.owned) {
        let leftover = found.entry(seen.table.instance).or_default();
        leftover.tables.insert(seen.table);
        leftover.record = leftover.record.or(seen.record);
        leftover.migration = leftover.migration.or(seen.migration);
    }
    for (place, saved) in &survey.places {
        for chain in &saved.chains {
            found.entry(chain.instance).or_default().chains.insert((*place, *chain));
        }
        for jump in &saved.jumps {
            let jumps = &mut found.entry(jump.to.instance).or_default().jumps;
            jumps.push((*place, jump.from.clone(), jump.rule.clone(), jump.to.purpose));
        }
        for migration in &saved.migrations {
            found.entry(migration.instance).or_default().migration = Some(*migration);
        }
        for record in &saved.records {
            // One of the two protocols' records is enough: each names the whole.
            found.entry(record.instance).or_default().record = Some(*record);
        }
    }
    found
}

impl Leftover {
    /// What hurts first goes first: a guard, then an interception without a listener, which drops
    /// packets.
    fn undos(&self) -> Vec<Undo> {
        let mut jumps = self.jumps.clone();
        jumps.sort_by_key(|jump| std::cmp::Reverse(jump.3));
        let jumps =
            jumps.into_iter().map(|(place, from, rule, _)| Undo::RemoveJump { place, from, rule });
        let recorded = self.record.iter().flat_map(recorded);
        let migration = self.migration.map(|m| Undo::RestoreMigration { former: m.former });
        self.tables_for(Kind::Rules)
            .chain(jumps)
            .chain(recorded)
            .chain(migration)
            .chain(self.chains_for(Purpose::Interception))
            .collect()
    }

    fn record_chains(&self) -> Vec<Undo> {
        let notes = self.tables_for(Kind::Migration).chain(self.tables_for(Kind::Record));
        let chains = self.chains_for(Purpose::Guard).chain(self.chains_for(Purpose::Diversion));
        chains.chain(notes).collect()
    }

    fn tables_for(&self, kind: Kind) -> impl Iterator<Item = Undo> {
        let tables = self.tables.iter().filter(move |table| table.kind == kind);
        tables.map(|&table| Undo::Nftables(Change::DeleteTable(table)))
    }

    fn chains_for(&self, purpose: Purpose) -> impl Iterator<Item = Undo> {
        let chains = self.chains.iter().rev().filter(move |(_, chain)| chain.purpose == purpose);
        chains.map(|&(place, chain)| Undo::RemoveChain { place, chain })
    }
}

fn recorded(record: &Record) -> Vec<Undo> {
    let numbers = record.numbers;
    let rules = Family::BOTH.map(|family| Undo::RemovePolicyRule { family, numbers });
    let routes = Family::BOTH.map(|family| Undo::RemoveLocalRoute { family, table: numbers.table });
    let sysctls = Family::BOTH.into_iter().filter_map(|family| {
        let former = record.former.of(family)?;
        Some(Undo::RestoreNonlocalBind { family, former })
    });
    rules.into_iter().chain(routes).chain(sysctls).collect()
}
