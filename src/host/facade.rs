//! One instance's hold on the host: set up, switched, told about, taken down.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use tracing::warn;

use super::applied::{Applied, Failure, Kernel};
use super::backend::{Backend, Firewall};
use super::instance::Instance;
use super::iptables::installed;
use super::lease::{Lease, SetupLock};
use super::linux::Linux;
use super::mark::{FwMark, Intercept, TableId};
use super::mend::Mending;
use super::nftables::Nftables;
use super::plan::{Draft, Plan};
use super::preflight::Facts;
use super::record::{Former, Record};
use super::saved::{claimed, marks_in_ruleset};
use super::step::{Family, Step, Undo};
use super::survey::Survey;
use super::sweep::{Swept, look, sweep_seen};
use super::sysctl;
use super::tproxy::{self, Choice, Fixed, Picture};
use crate::problem::Problem;
use crate::process::panicked::{caught, caught_within};
use crate::process::program::was_killed;
use crate::process::together::each;

/// How long a start waits for another one's set-up: that takes some 50 ms.
const SET_UP_LOCK: Duration = Duration::from_secs(10);
/// How long a tear-down does: leaving our rules behind would be worse than a race.
const TEAR_DOWN_LOCK: Duration = Duration::from_secs(2);

/// Less time is not enough for a second attempt after a program hung.
const WORTH_IT: Duration = Duration::from_millis(500);

/// What the settings ask of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub firewall: Firewall,
    pub intercept: Vec<Intercept>,
    /// `None`: choose one that is free.
    pub mark: Option<FwMark>,
    /// `None`: choose one that is free.
    pub table: Option<TableId>,
}

/// Something of ours in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Owned {
    pub what: String,
    /// The command by which a person would remove it.
    pub undo: String,
}

impl From<&Undo> for Owned {
    fn from(undo: &Undo) -> Self {
        Self { what: undo.subject(), undo: undo.to_string() }
    }
}

/// What we hold. Dropped without `tear_down`, all of it stays until the next sweep.
#[derive(Debug)]
#[must_use = "what was set up stays in the kernel until it is torn down"]
pub struct Host {
    instance: Instance,
    plan: Plan,
    kernel: Linux,
    foundation: Applied,
    interception: Applied,
    facts: Facts,
    warnings: Vec<Problem>,
}

/// Everything that could not be taken back.
#[derive(Debug)]
pub struct TearDownError(pub Vec<Failure>);

impl fmt::Display for TearDownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not undo ")?;
        for (at, failure) in self.0.iter().enumerate() {
            write!(f, "{}{failure}", if at == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for TearDownError {}

impl Host {
    /// Always, even where nothing is set up: the lease is a successor's door too.
    pub fn take_lease() -> Result<Lease> {
        Lease::take()
    }

    /// Sweeps and sets up under one lock and, if nothing was left by anybody, with one look.
    pub async fn begin(
        instance: Instance,
        wanted: &Wanted,
        facts: &Facts,
    ) -> Result<(Swept, Self)> {
        let lock = SetupLock::take(SET_UP_LOCK).await.context("sweep and set up the host")?;
        let (mut kernel, mut survey) = look(facts)?;
        let swept = sweep_seen(&lock, &mut kernel, &survey, Some(instance)).await?;
        if !swept.instances.is_empty() || !swept.undone.is_empty() {
            (kernel, survey) = look(facts)?;
        }
        Ok((swept, Self::set_up_seen(instance, wanted, facts, kernel, &survey).await?))
    }

    /// Without a sweep. Needs a tokio runtime.
    pub async fn set_up(instance: Instance, wanted: &Wanted, facts: &Facts) -> Result<Self> {
        let _lock = SetupLock::take(SET_UP_LOCK).await.context("set up the host")?;
        let (kernel, survey) = look(facts)?;
        Self::set_up_seen(instance, wanted, facts, kernel, &survey).await
    }

    async fn set_up_seen(
        instance: Instance,
        wanted: &Wanted,
        facts: &Facts,
        mut kernel: Linux,
        survey: &Survey,
    ) -> Result<Self> {
        let prepared = prepare(&mut kernel, survey, instance, wanted, facts).await?;
        let mut foundation = Applied::default();
        foundation.apply(&mut kernel, &prepared.plan.foundation).await?;
        Ok(Self {
            instance,
            plan: prepared.plan,
            kernel,
            foundation,
            interception: Applied::default(),
            facts: facts.clone(),
            warnings: prepared.warnings,
        })
    }

    /// What was found while numbers were chosen.
    #[must_use]
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// Not before generation 1 is ready. Already on is not an error.
    pub async fn intercept_on(&mut self, until: Instant) -> Result<()> {
        self.kernel.finish_by(until);
        if !self.interception.is_empty() {
            return Ok(());
        }
        self.interception.apply(&mut self.kernel, &self.plan.interception).await
    }

    /// Already off is not an error.
    pub async fn intercept_off(&mut self, until: Instant) -> Result<(), TearDownError> {
        self.kernel.finish_by(until);
        collected(self.interception.roll_back(&mut self.kernel).await)
    }

    #[must_use]
    pub fn instance(&self) -> Instance {
        self.instance
    }

    #[must_use]
    pub fn backend(&self) -> Option<Backend> {
        self.facts.backend
    }

    /// How the kernel calls the programs by which we put something back.
    #[must_use]
    pub fn echoes(&self) -> Vec<String> {
        const LONGEST: usize = 15;
        let Some(Backend::Iptables(program)) = self.facts.backend else { return Vec::new() };
        let families = self.facts.families.iter();
        families.map(|f| program.restore_command(*f).chars().take(LONGEST).collect()).collect()
    }

    /// Puts back what somebody removed meanwhile (a restart of firewalld or Docker flushes), and
    /// says what it was. Without the lock, since all of it bears our name or our numbers. Over by `until`; what is still missing then is the next call's.
    pub async fn put_back(&mut self, until: Instant) -> Result<Vec<String>> {
        self.kernel.finish_by(until);
        let mut steps: Vec<Step> = self.plan.foundation.clone();
        if !self.interception.is_empty() {
            steps.extend(self.plan.interception.iter().cloned());
        }
        let survey = Survey::of(&self.kernel, &steps)?;
        let mut gone = Vec::new();
        for note in survey.missing(&steps) {
            self.kernel.apply(note).await.with_context(|| note.to_string())?;
            gone.extend(note.undo().map(|undo| undo.subject()));
        }
        // First the chains, as in a start: killed here, does the sweep find all that is there?
        let places = survey.places.iter();
        let mendings: Vec<Mending> = places
            .filter_map(|(place, saved)| Mending::of(self.instance, *place, &steps, saved))
            .collect();
        let iptables = self.kernel.iptables;
        let mended = each(&mendings, |m| iptables.transaction(m.place, &m.lines));
        let failed = mended.iter().filter(|mended| mended.is_err()).count();
        let mut outcome: Result<()> = mended.into_iter().collect();
        // Either protocol's chain has the record. One failure is no reason to leave the rest as it
        // is, but what nothing records is not made.
        if outcome.is_err() && failed == survey.places.len() {
            return outcome.map(|()| gone);
        }
        gone.extend(mendings.into_iter().flat_map(|mending| mending.gone));
        for step in &steps {
            match self.kernel.restore_way(step).await {
                Ok(true) => gone.extend(step.undo().map(|undo| undo.subject())),
                Ok(false) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome.map(|()| gone)
    }

    /// For `hapilot status`.
    #[must_use]
    pub fn owned(&self) -> Vec<Owned> {
        self.undos().map(Owned::from).collect()
    }

    /// The owner of our table.
    #[must_use]
    pub fn nftables(&self) -> Nftables {
        self.kernel.nftables.clone()
    }

    /// What is in force, oldest first.
    pub fn undos(&self) -> impl Iterator<Item = &Undo> {
        self.foundation.undos().iter().chain(self.interception.undos())
    }

    /// Newest first, past failures, and over by `until`. What failed may be tried again.
    pub async fn tear_down(&mut self, until: Instant) -> Result<(), TearDownError> {
        self.kernel.finish_by(until);
        // Before anything that may have to wait: from here on nobody is diverted.
        let mut failures = self.interception.roll_back(&mut self.kernel).await;
        // Not even a panic of these may keep us from the rest.
        let lock = SetupLock::take(lock_limit(until.saturating_duration_since(Instant::now())));
        let _lock = caught_within(lock)
            .await
            .inspect_err(|error| warn!("tear down without the set-up lock: {error:#}"))
            .ok();
        if self.has_sysctls() {
            match caught(|| self.others()) {
                Ok(others) => self.kernel.others = others,
                Err(error) => warn!("tear down without a look at other instances: {error:#}"),
            }
        }
        self.foundation.put_urgent_first();
        failures.extend(self.foundation.roll_back(&mut self.kernel).await);
        // Something may have been in the way for a moment. A program that hung may hang again, and takes
        // half of what is left for it.
        let hung = failures.iter().any(|failure| was_killed(&failure.error));
        let left = until.saturating_duration_since(Instant::now());
        if !failures.is_empty() && (!hung || left >= WORTH_IT) {
            warn!("once more: {}", TearDownError(failures));
            failures = self.interception.roll_back(&mut self.kernel).await;
            failures.extend(self.foundation.roll_back(&mut self.kernel).await);
        }
        collected(failures)
    }

    /// What the others have recorded decides about the sysctls alone.
    fn has_sysctls(&self) -> bool {
        let sysctl = |undo: &Undo| matches!(undo, Undo::RestoreNonlocalBind { .. });
        self.foundation.undos().iter().any(sysctl)
    }

    fn others(&self) -> Result<Vec<Record>> {
        Survey::take(&self.kernel, &self.facts)?.living_records(Some(self.instance))
    }
}

/// Who has little time left to tear down needs half of it for that.
fn lock_limit(left: Duration) -> Duration {
    TEAR_DOWN_LOCK.min(left / 2)
}

fn collected(failures: Vec<Failure>) -> Result<(), TearDownError> {
    if failures.is_empty() { Ok(()) } else { Err(TearDownError(failures)) }
}

/// The plan that `set_up` would follow, for `hapilot plan`. Changes nothing, and claims nothing:
/// another start may take the same numbers first. Needs a tokio runtime.
pub async fn plan(instance: Instance, wanted: &Wanted, facts: &Facts) -> Result<Plan> {
    let (mut kernel, survey) = look(facts)?;
    Ok(prepare(&mut kernel, &survey, instance, wanted, facts).await?.plan)
}

struct Prepared {
    plan: Plan,
    warnings: Vec<Problem>,
}

async fn prepare(
    kernel: &mut Linux,
    survey: &Survey,
    instance: Instance,
    wanted: &Wanted,
    facts: &Facts,
) -> Result<Prepared> {
    let backend = facts.backend.ok_or_else(|| anyhow!("no firewall works here"))?;
    kernel.others = survey.living_records(Some(instance))?;
    let picture = picture(kernel, survey, wanted, &facts.families).await?;
    let fixed = Fixed { mark: wanted.mark, table: wanted.table };
    let Choice { numbers, warnings } =
        tproxy::choose(&picture, fixed).map_err(|problem| anyhow!("{problem}"))?;
    let former = former(kernel, &facts.families)?;
    let record = Record { instance, numbers, former };
    let (families, intercept) = (facts.families.as_slice(), wanted.intercept.as_slice());
    Ok(Prepared { plan: Plan::new(&Draft { backend, families, record, intercept }), warnings })
}

async fn picture(
    kernel: &Linux,
    survey: &Survey,
    wanted: &Wanted,
    families: &[Family],
) -> Result<Picture> {
    let mut picture = Picture::default();
    for &family in families {
        picture.rules.extend(kernel.routing.rules(family).await?);
    }
    look_at_tables(&mut picture, kernel, wanted, families).await?;
    let recorded = survey.records().map(|r| claimed(r.numbers.mark.value(), r.numbers.mark.mask()));
    let saved = survey.places.iter().map(|(_, saved)| saved.marks);
    picture.marks = saved.chain(recorded).fold(ruleset_marks(kernel), |bits, more| bits | more);
    Ok(picture)
}

/// Rules that iptables does not see. Without `nft` in the image there is no telling.
fn ruleset_marks(kernel: &Linux) -> u32 {
    if !installed("nft") {
        return 0;
    }
    match kernel.iptables.output("nft", &["list", "ruleset"]) {
        Ok(text) => marks_in_ruleset(&text),
        Err(error) => {
            warn!("choose a mark without a look at nftables: {error:#}");
            0
        }
    }
}

/// Those that matter: the one that is fixed, or up to the first that is free. A host may have a
/// million routes in the others.
async fn look_at_tables(
    picture: &mut Picture,
    kernel: &Linux,
    wanted: &Wanted,
    families: &[Family],
) -> Result<()> {
    let candidates = match wanted.table {
        Some(table) => table.number()..table.number().saturating_add(1),
        None => tproxy::FIRST_TABLE..tproxy::FIRST_TABLE + tproxy::TABLES,
    };
    for table in candidates {
        for &family in families {
            if kernel.routing.table_in_use(family, table).await? {
                picture.tables.insert(table);
            }
        }
        if !picture.table_in_use(table) {
            break;
        }
    }
    Ok(())
}

/// What is to be written down before a sysctl is written. One that is 1 because of another living
/// hapilot has that one's former value: the last one out restores it.
fn former(kernel: &Linux, families: &[Family]) -> Result<Former> {
    let mut former = Former::default();
    for &family in families {
        let value = match sysctl::read(family)? {
            Some(1) => kernel.others.iter().find_map(|record| record.former.of(family)),
            now => now.filter(|_| sysctl::writable(family)),
        };
        former.set(family, value);
    }
    Ok(former)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_the_set_up_lock_leaves_time_for_the_tear_down() {
        for left in [20, 4, 2, 1].map(Duration::from_secs) {
            assert!(lock_limit(left) <= TEAR_DOWN_LOCK);
            assert!(lock_limit(left) * 2 <= left, "{left:?}");
        }
    }
}
