//! The real kernel: each step by the facility that it belongs to.

use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use tracing::{debug, warn};

use super::applied::Kernel;
use super::bounded::Killed;
use super::iptables::Iptables;
use super::mark::TableId;
use super::record::{Numbers, Record};
use super::routing::{Added, Routing};
use super::step::{Family, PROTOCOL, Step, Undo};
use super::sysctl;
use super::tproxy::Rule;

#[derive(Debug)]
pub struct Linux {
    pub iptables: Iptables,
    pub routing: Routing,
    /// Of the other instances that live: what they still need is left to the last one out.
    pub others: Vec<Record>,
}

impl Linux {
    /// Needs a tokio runtime.
    pub fn open() -> Result<Self> {
        let iptables = Iptables::default();
        Ok(Self { iptables, routing: Routing::open()?, others: Vec::new() })
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

    /// Whether it is ours to take back.
    async fn try_apply(&mut self, step: &Step) -> Result<bool> {
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
        })
    }

    /// A program that was killed may have finished its work in the kernel. What it was about bears
    /// our name, so taking it back is right either way; what that comes to, the sweep will see.
    async fn take_back_if_killed(&mut self, error: &anyhow::Error, steps: &[Step]) {
        if !error.is::<Killed>() {
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
        match self.try_apply(step).await {
            Ok(ours) => Ok(if ours { step.undo() } else { None }),
            Err(error) => {
                self.take_back_if_killed(&error, std::slice::from_ref(step)).await;
                Err(error)
            }
        }
    }

    async fn undo(&mut self, undo: &Undo) -> Result<()> {
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
        }
    }

    async fn apply_together(&mut self, steps: &[Step]) -> Result<()> {
        let place = steps.first().and_then(Step::fills).context("fill chains of one place")?;
        let lines = steps.iter().map(|step| match step {
            Step::Chain { chain, .. } => Ok(format!("-N {chain}")),
            Step::Entry { chain, rule, .. } => Ok(format!("-A {chain} {rule}")),
            other => Err(anyhow!("{other} fills no chain")),
        });
        let lines: Vec<String> = lines.collect::<Result<_>>()?;
        let answer = self.iptables.transaction(place, &lines);
        if let Err(error) = &answer {
            self.take_back_if_killed(error, steps).await;
        }
        answer
    }

    async fn undo_together(&mut self, undos: &[Undo]) -> Result<()> {
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
}
