//! The real kernel: each step by the facility that it belongs to.

use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use tracing::{debug, warn};

use super::applied::Kernel;
use super::iptables::Iptables;
use super::mark::TableId;
use super::nftables::{Change, Nftables};
use super::record::{Numbers, Record};
use super::routing::{Added, Routing};
use super::step::{Family, PROTOCOL, Step, Undo};
use super::sysctl;
use super::tproxy::Rule;
use crate::fault::{self, Point};
use crate::process::panicked::{Panicked, caught, caught_within};
use crate::process::program::was_killed;
use crate::process::together::each;

#[derive(Debug, Default)]
pub struct Linux {
    pub iptables: Iptables,
    pub nftables: Nftables,
    pub routing: Routing,
    /// Of the other instances that live: what they still need is left to the last one out.
    pub others: Vec<Record>,
    /// Rules of ours that could not be removed. Their table is not yet to be emptied.
    stuck_rules: Vec<(Family, Numbers)>,
}

impl Linux {
    /// With that owner of our table.
    #[must_use]
    pub fn with(nftables: Nftables) -> Self {
        Self { nftables, ..Self::default() }
    }

    /// No call goes on after `until`.
    pub fn finish_by(&mut self, until: Instant) {
        self.iptables.finish_by(until);
        self.routing.finish_by(until);
    }

    fn table_is_shared(&self, table: TableId) -> bool {
        self.others.iter().any(|record| record.numbers.table == table)
    }

    fn set_nonlocal_bind(family: Family) -> Result<bool> {
        if sysctl::read(family)? == Some(1) {
            return Ok(true);
        }
        match sysctl::write(family, 1) {
            Ok(()) => Ok(true),
            Err(error) => {
                let name = family.nonlocal_bind();
                warn!(error = format!("{error:#}"), sysctl = name, "go on without a sysctl");
                Ok(false)
            }
        }
    }

    fn restore_nonlocal_bind(&self, family: Family, former: u8) -> Result<()> {
        if self.others.iter().any(|record| record.former.of(family).is_some()) {
            debug!(sysctl = family.nonlocal_bind(), "left to the other instance that needs it");
            return Ok(());
        }
        // Not 1 any more: somebody else has decided about it since.
        if sysctl::read(family)? != Some(1) {
            return Ok(());
        }
        sysctl::write(family, former)
    }

    async fn add_route(&self, family: Family, table: TableId) -> Result<bool> {
        let added = self.routing.add_route(family, table).await?;
        // A route of another hapilot is ours as well: the last one out removes it.
        Ok(added == Added::New || self.table_is_shared(table))
    }

    async fn remove_route(&self, family: Family, table: TableId) -> Result<()> {
        if self.stuck_rules.iter().any(|(of, numbers)| *of == family && numbers.table == table) {
            bail!("the rule that leads there is not gone");
        }
        // Our own rule is gone by now: another hapilot that still looks this table up needs it.
        let another = |rule: &Rule| rule.table == table.number() && rule.protocol == PROTOCOL;
        if self.routing.rules(family).await?.iter().any(another) {
            debug!(%table, "left to the other instance that needs it");
            return Ok(());
        }
        self.routing.delete_route(family, table).await
    }

    async fn add_rule(&self, family: Family, numbers: Numbers) -> Result<bool> {
        Ok(self.routing.add_rule(family, numbers).await? == Added::New)
    }

    /// Makes a way that packets take, unless it is there; whether it was not.
    pub async fn restore_way(&mut self, step: &Step) -> Result<bool> {
        let added = match step {
            Step::PolicyRule { family, numbers } => self.routing.add_rule(*family, *numbers).await,
            Step::LocalRoute { family, table } => self.routing.add_route(*family, *table).await,
            _ => return Ok(false),
        };
        Ok(added.with_context(|| step.to_string())? == Added::New)
    }

    /// Whether it is ours to take back.
    async fn try_apply(&mut self, step: &Step) -> Result<bool> {
        fault::at(Point::Apply)?;
        Ok(match step {
            Step::Chain { place, chain } => {
                self.iptables.new_chain(*place, *chain)?;
                true
            }
            Step::Entry { place, chain, rule } => {
                self.iptables.append(*place, &chain.to_string(), rule)?;
                true
            }
            Step::Jump { place, from, rule } => {
                self.iptables.append(*place, from, rule)?;
                true
            }
            Step::NonlocalBind { family, .. } => Self::set_nonlocal_bind(*family)?,
            Step::PolicyRule { family, numbers } => self.add_rule(*family, *numbers).await?,
            Step::LocalRoute { family, table } => self.add_route(*family, *table).await?,
            Step::Nftables(change) => {
                self.nftables
                    .commit(std::slice::from_ref(change))
                    .map_err(|refused| refused.error)?;
                true
            }
        })
    }

    async fn try_undo(&mut self, undo: &Undo) -> Result<()> {
        fault::at(Point::Undo)?;
        match undo {
            Undo::RemoveChain { place, chain } => self.iptables.remove_chain(*place, *chain),
            Undo::RemoveJump { place, from, rule } => self.iptables.delete(*place, from, rule),
            Undo::RestoreNonlocalBind { family, former } => {
                self.restore_nonlocal_bind(*family, *former)
            }
            Undo::RestoreMigration { former } => match sysctl::value(sysctl::MIGRATE)? {
                Some(1) => sysctl::set(sysctl::MIGRATE, *former),
                _ => Ok(()),
            },
            Undo::RemovePolicyRule { family, numbers } => {
                self.routing.delete_rule(*family, *numbers).await
            }
            Undo::RemoveLocalRoute { family, table } => self.remove_route(*family, *table).await,
            Undo::Nftables(change) => match self.nftables.commit(std::slice::from_ref(change)) {
                Err(refused) if !refused.is_absent() => Err(refused.error.into()),
                _ => Ok(()),
            },
        }
    }

    fn try_undo_together(&self, undos: &[Undo]) -> Result<()> {
        fault::at(Point::Undo)?;
        let place = undos.first().and_then(Undo::empties).context("empty chains of one place")?;
        let mut lines = Vec::new();
        for undo in undos.iter().rev() {
            match undo {
                Undo::RemoveJump { from, rule, .. } => lines.push(format!("-D {from} {rule}")),
                Undo::RemoveChain { chain, .. } => {
                    lines.extend([format!("-F {chain}"), format!("-X {chain}")]);
                }
                other => bail!("{other} empties no chain"),
            }
        }
        self.iptables.transaction(place, &lines)
    }

    /// A program that was killed, or a thread that panicked, may have finished its work in the kernel.
    /// What it was about bears our name, so taking it back is right either way; what that comes to,
    /// the sweep will see.
    async fn take_back_if_unknown(&mut self, error: &anyhow::Error, steps: &[Step]) {
        if !was_killed(error) && !error.is::<Panicked>() {
            return;
        }
        for undo in steps.iter().rev().filter_map(Step::undo) {
            if let Err(error) = self.undo(&undo).await {
                warn!(error = format!("{error:#}"), command = %undo, "could not take back");
            }
        }
    }
}

impl Kernel for Linux {
    async fn apply(&mut self, step: &Step) -> Result<Option<Undo>> {
        match caught_within(self.try_apply(step)).await {
            Ok(ours) => Ok(if ours { step.undo() } else { None }),
            Err(error) => {
                self.take_back_if_unknown(&error, std::slice::from_ref(step)).await;
                Err(error)
            }
        }
    }

    async fn undo(&mut self, undo: &Undo) -> Result<()> {
        let answer = caught_within(self.try_undo(undo)).await;
        if let Undo::RemovePolicyRule { family, numbers } = undo {
            self.stuck_rules.retain(|stuck| *stuck != (*family, *numbers));
            if answer.is_err() {
                self.stuck_rules.push((*family, *numbers));
            }
        }
        answer
    }

    async fn apply_together(&mut self, groups: &[&[Step]]) -> Vec<Result<()>> {
        let (iptables, nftables) = (self.iptables, &self.nftables);
        let answers = each(groups, |steps| caught(|| transact(iptables, nftables, steps)));
        for (steps, answer) in groups.iter().zip(&answers) {
            if let Err(error) = answer {
                self.take_back_if_unknown(error, steps).await;
            }
        }
        answers
    }

    async fn undo_together(&mut self, undos: &[Undo]) -> Result<()> {
        caught(|| self.try_undo_together(undos))
    }
}

/// All of these, which are of one place, in one transaction.
fn transact(iptables: Iptables, nftables: &Nftables, steps: &[Step]) -> Result<()> {
    fault::at(Point::Apply)?;
    let lines = steps.iter().map(|step| match step {
        Step::Chain { chain, .. } => Ok(format!("-N {chain}")),
        Step::Entry { chain, rule, .. } => Ok(format!("-A {chain} {rule}")),
        other => Err(anyhow!("{other} fills no chain")),
    });
    match (steps, steps.first().and_then(Step::place)) {
        // A program for one command says better what is wrong.
        ([Step::Jump { place, from, rule }], _) => iptables.append(*place, from, rule),
        (_, Some(place)) => iptables.transaction(place, &lines.collect::<Result<Vec<_>>>()?),
        (_, None) => {
            let changes = steps.iter().filter_map(Step::nftables).cloned();
            Ok(nftables.commit(&changes.collect::<Vec<Change>>())?)
        }
    }
}
