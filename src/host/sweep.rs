//! Removes what dead instances left behind.
//!
//! An instance is dead when its lease can be taken; we hold it while we clean, which keeps a second
//! sweeper away. Its chain of diversion carries the record of all the rest, so it goes last, and
//! stays when something could not be removed: the next sweep then still knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};

use super::applied::{Failure, Kernel};
use super::instance::{ChainName, Instance, Purpose};
use super::lease::{self, Lease, SetupLock};
use super::linux::Linux;
use super::preflight::Facts;
use super::record::{Migration, Record};
use super::saved::Saved;
use super::step::{Family, Place, Undo};
use super::survey::Survey;

const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    pub instances: Vec<Instance>,
    pub undone: Vec<Undo>,
    pub failures: Vec<Failure>,
}

/// `us`: an instance that lives and has nothing in the kernel yet. Needs a tokio runtime.
pub async fn sweep(facts: &Facts, us: Option<Instance>) -> Result<Swept> {
    let lock = SetupLock::take(LOCK_LIMIT).await.context("sweep")?;
    let (mut kernel, survey) = look(facts)?;
    sweep_seen(&lock, &mut kernel, &survey, us).await
}

/// The same, for one who holds the lock and has looked already.
pub(super) async fn sweep_seen(
    _lock: &SetupLock,
    kernel: &mut Linux,
    survey: &Survey,
    us: Option<Instance>,
) -> Result<Swept> {
    let mut swept = Swept::default();
    for (instance, leftover) in leftovers(&survey.places) {
        let Some(_held) = Lease::of(instance)? else {
            continue;
        };
        swept.instances.push(instance);
        remove(kernel, &leftover, &mut swept).await;
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
    for (instance, leftover) in leftovers(&survey.places) {
        if !lease::lives(instance)? {
            undos.extend(leftover.undos());
            undos.extend(leftover.record_chains());
        }
    }
    undos.extend(unrecorded(&kernel, &survey, us).await?);
    Ok(undos)
}

pub(super) fn look(facts: &Facts) -> Result<(Linux, Survey)> {
    let mut kernel = Linux::open()?;
    let survey = Survey::take(&kernel.iptables, &facts.programs, &facts.families)?;
    kernel.others = survey.living_records(None)?;
    Ok((kernel, survey))
}

/// Rules and routes of ours whose record is gone: somebody flushed the firewall, and then that
/// instance died. While one lives that has no record, they may be its own, and stay.
async fn unrecorded(kernel: &Linux, survey: &Survey, us: Option<Instance>) -> Result<Vec<Undo>> {
    let recorded = |instance: Instance| survey.records().any(|r| r.instance == instance);
    if lease::living()?.into_iter().any(|living| Some(living) != us && !recorded(living)) {
        return Ok(Vec::new());
    }
    let mut undos = Vec::new();
    for family in Family::BOTH {
        for numbers in kernel.routing.marked_as_ours(family).await? {
            if survey.records().all(|record| record.numbers != numbers) {
                undos.push(Undo::RemovePolicyRule { family, numbers });
                undos.push(Undo::RemoveLocalRoute { family, table: numbers.table });
            }
        }
    }
    Ok(undos)
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
    record: Option<Record>,
    migration: Option<Migration>,
}

fn leftovers(places: &[(Place, Saved)]) -> BTreeMap<Instance, Leftover> {
    let mut found: BTreeMap<Instance, Leftover> = BTreeMap::new();
    for (place, saved) in places {
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
        jumps
            .chain(recorded)
            .chain(migration)
            .chain(self.chains_for(Purpose::Interception))
            .collect()
    }

    fn record_chains(&self) -> Vec<Undo> {
        self.chains_for(Purpose::Guard).chain(self.chains_for(Purpose::Diversion)).collect()
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
