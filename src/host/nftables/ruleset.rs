//! Decides: what is in the table of one instance.

use std::collections::BTreeSet;
use std::time::Duration;

use super::change::{Chain, Change, Rule, Table};
use crate::host::mark::{FwMark, Intercept};
use crate::host::step::Family;

/// Everything, as far as transparent proxying goes.
#[derive(Clone, Copy, Debug)]
pub struct Ruleset<'a> {
    pub table: Table,
    pub families: &'a [Family],
    pub mark: FwMark,
    pub intercept: &'a [Intercept],
}

impl Ruleset<'_> {
    /// Diverts nothing while no transparent socket exists.
    #[must_use]
    pub fn foundation(&self) -> Vec<Change> {
        let mut changes = skeleton(self.table);
        let mut rules = vec![Rule::ToGuard, Rule::Divert(self.mark)];
        if !self.intercept.is_empty() {
            changes.push(Change::AddChain(self.table, Chain::Interception));
            rules.push(Rule::ToInterception);
        }
        changes.push(self.rules(Chain::Prerouting, rules));
        changes
    }

    /// In a chain that is led to already: it is emptied when it is to end.
    #[must_use]
    pub fn interception(&self) -> Vec<Change> {
        let rules: Vec<Rule> =
            self.intercept.iter().map(|i| Rule::Intercept(*i, self.mark)).collect();
        if rules.is_empty() { Vec::new() } else { vec![self.rules(Chain::Interception, rules)] }
    }

    fn rules(&self, chain: Chain, rules: Vec<Rule>) -> Change {
        let families = self.families.to_vec();
        Change::AddRules { table: self.table, chain, rules, families }
    }
}

/// A table in which a guard can do its work.
fn skeleton(table: Table) -> Vec<Change> {
    vec![
        Change::AddTable(table),
        Change::AddChain(table, Chain::Prerouting),
        Change::AddChain(table, Chain::Guard),
        Change::AddPortSet(table),
    ]
}

/// The same alone, where there is no transparent proxying.
#[must_use]
pub fn for_guard_alone(table: Table, families: &[Family]) -> Vec<Change> {
    let (chain, families) = (Chain::Prerouting, families.to_vec());
    let to_guard = Change::AddRules { table, chain, rules: vec![Rule::ToGuard], families };
    skeleton(table).into_iter().chain([to_guard]).collect()
}

/// New connections to these ports meet `rule`. It is over after `expiry`, whatever happens to us.
#[must_use]
pub fn guard(
    table: Table,
    ports: &BTreeSet<u16>,
    rule: Rule,
    expiry: Duration,
    families: &[Family],
) -> Vec<Change> {
    let (chain, families) = (Chain::Guard, families.to_vec());
    vec![
        Change::FlushChain(table, chain),
        Change::FlushPorts(table),
        Change::GuardPorts { table, ports: ports.clone(), expiry },
        Change::AddRules { table, chain, rules: vec![rule], families },
    ]
}

/// What the rules of transparent proxying need of the kernel. Without a hook: nothing would pass by
/// even if it were done.
#[must_use]
pub fn trial(ruleset: &Ruleset<'_>) -> Vec<Change> {
    let table = ruleset.table;
    let rules = std::iter::once(Rule::Divert(ruleset.mark))
        .chain(ruleset.intercept.iter().map(|i| Rule::Intercept(*i, ruleset.mark)))
        .collect();
    vec![
        Change::AddTable(table),
        Change::AddChain(table, Chain::Interception),
        Change::AddPortSet(table),
        ruleset.rules(Chain::Interception, rules),
    ]
}
