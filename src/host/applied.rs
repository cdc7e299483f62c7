//! Applies steps in order and remembers how to take each one back, newest first.
//!
//! There is no `Drop` that touches the kernel: it could not report. Whoever holds an `Applied`
//! rolls it back on every way out; what a kill leaves behind is the sweep's.

use std::fmt;

use anyhow::{Result, anyhow, bail};

use super::step::{Step, Undo};

/// What applies a step to the kernel.
#[expect(async_fn_in_trait, reason = "one thread: nobody needs these futures to be Send")]
pub trait Kernel {
    /// `None`: it was so already, or goes with something else; there is nothing to take back.
    async fn apply(&mut self, step: &Step) -> Result<Option<Undo>>;

    /// Taking back what is gone already is not an error.
    async fn undo(&mut self, undo: &Undo) -> Result<()>;

    /// Groups of steps, each group of one place and in one transaction or not at all; the groups at
    /// the same time. Answers in their order. Of a group that failed each step is then applied by
    /// itself, which also tells what is wrong.
    async fn apply_together(&mut self, groups: &[&[Step]]) -> Vec<Result<()>> {
        groups.iter().map(|_| bail!("not here")).collect()
    }

    /// The same for undos, given newest last.
    async fn undo_together(&mut self, _undos: &[Undo]) -> Result<()> {
        bail!("not here")
    }
}

/// One thing that could not be taken back, and the command by which a person would.
#[derive(Debug)]
pub struct Failure {
    pub undo: Undo,
    pub error: anyhow::Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:#}", self.undo, self.error)
    }
}

/// The stack of what is in force.
#[derive(Debug, Default)]
#[must_use = "applied steps stay in the kernel until rolled back"]
pub struct Applied {
    undos: Vec<Undo>,
}

impl Applied {
    /// Applies all of `steps`, or none: on failure what this call did is rolled back, and the error
    /// names what could not be. `&mut self`: dropped half-way, it still knows what was done.
    pub async fn apply<K: Kernel>(&mut self, kernel: &mut K, steps: &[Step]) -> Result<()> {
        let before = self.undos.len();
        for stage in steps.chunk_by(|a, b| a.stage().is_some() && a.stage() == b.stage()) {
            if let Err((step, error)) = self.apply_stage(kernel, stage).await {
                let error = error.context(step.to_string());
                let failures = self.roll_back_to(kernel, before).await;
                return Err(with_failures(error, &failures));
            }
        }
        Ok(())
    }

    async fn apply_stage<'a, K: Kernel>(
        &mut self,
        kernel: &mut K,
        stage: &'a [Step],
    ) -> Result<(), (&'a Step, anyhow::Error)> {
        let (mut alone, mut outcome) = (Vec::new(), Ok(()));
        if stage.len() > 1 {
            let groups: Vec<_> = stage.chunk_by(|a, b| a.place() == b.place()).collect();
            let answers = kernel.apply_together(&groups).await;
            // All that is in force is remembered before anything fails.
            for (group, answer) in groups.into_iter().zip(answers) {
                match (group, answer) {
                    (_, Ok(())) => self.undos.extend(group.iter().filter_map(Step::undo)),
                    ([step], Err(error)) => outcome = outcome.and(Err((step, error))),
                    (_, Err(_)) => alone.extend(group),
                }
            }
        } else {
            alone.extend(stage);
        }
        outcome?;
        for step in alone {
            self.undos.extend(kernel.apply(step).await.map_err(|error| (step, error))?);
        }
        Ok(())
    }

    /// The most urgent are rolled back first, those that are alike newest first.
    pub fn put_urgent_first(&mut self) {
        self.undos.sort_by_key(Undo::urgency);
    }

    /// Goes on past failures; what failed stays on the stack, and so does the record of it all.
    pub async fn roll_back<K: Kernel>(&mut self, kernel: &mut K) -> Vec<Failure> {
        self.roll_back_to(kernel, 0).await
    }

    async fn roll_back_to<K: Kernel>(&mut self, kernel: &mut K, floor: usize) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut end = self.undos.len();
        // Indices instead of pop(): dropped half-way, nothing that is still in force is forgotten.
        while end > floor {
            let group = self.last_group(floor, end);
            let several = end - group > 1 && !stays(&self.undos[group], &failures);
            if several && kernel.undo_together(&self.undos[group..end]).await.is_ok() {
                self.undos.drain(group..end);
                end = group;
                continue;
            }
            for at in (group..end).rev() {
                let answer = if stays(&self.undos[at], &failures) {
                    Err(anyhow!("it stays as well, since it tells a sweep of the rest"))
                } else {
                    kernel.undo(&self.undos[at]).await
                };
                match answer {
                    Ok(()) => drop(self.undos.remove(at)),
                    Err(error) => failures.push(Failure { undo: self.undos[at].clone(), error }),
                }
            }
            end = group;
        }
        failures
    }

    /// Where the undos begin that may be done together with the one before `end`.
    fn last_group(&self, floor: usize, end: usize) -> usize {
        let place = self.undos[end - 1].empties();
        let alike = self.undos[floor..end - 1].iter().rev();
        let alike = alike.take_while(|undo| place.is_some() && undo.empties() == place);
        end - 1 - alike.count()
    }

    /// Oldest first.
    #[must_use]
    pub fn undos(&self) -> &[Undo] {
        &self.undos
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.undos.is_empty()
    }
}

/// Without its record nobody would look for what is left.
fn stays(undo: &Undo, failures: &[Failure]) -> bool {
    undo.goes_with_record() && !failures.is_empty()
}

fn with_failures(error: anyhow::Error, failures: &[Failure]) -> anyhow::Error {
    failures
        .iter()
        .fold(error, |error, failure| anyhow::anyhow!("{error:#}; and could not undo: {failure}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::future::pending;
    use std::time::Duration;

    use anyhow::Context;

    use super::*;
    use crate::host::backend::Backend;
    use crate::host::instance::Instance;
    use crate::host::mark::{FwMark, Intercept, Port, TableId};
    use crate::host::plan::{Draft, Plan};
    use crate::host::record::{Former, Numbers, Record};
    use crate::host::step::{Family, Program, Stage};

    const IPTABLES: Backend = Backend::Iptables(Program::Nft);

    /// Holds what is in force, by the command that removes it. It refuses to take a chain away
    /// that is still jumped to, as the real one does.
    #[derive(Debug, Default)]
    struct Pretend {
        held: BTreeSet<String>,
        calls: usize,
        refuses_call: Option<usize>,
        stuck_at_call: Option<usize>,
        refuses_undo: Option<String>,
        /// How often it did several at once.
        together: usize,
        knows_together: bool,
        refuses_together: Option<usize>,
    }

    impl Pretend {
        fn hold(&mut self, step: &Step) -> Result<Option<Undo>> {
            self.calls += 1;
            if self.refuses_call == Some(self.calls) {
                bail!("operation not permitted");
            }
            let Some(undo) = step.undo() else {
                return Ok(None);
            };
            Ok(self.held.insert(undo.to_string()).then_some(undo))
        }

        fn hold_together(&mut self, steps: &[Step]) -> Result<()> {
            if let [step] = steps {
                return self.hold(step).map(drop);
            }
            anyhow::ensure!(self.knows_together);
            self.together += 1;
            anyhow::ensure!(self.refuses_together != Some(self.together));
            self.held.extend(steps.iter().filter_map(Step::undo).map(|undo| undo.to_string()));
            Ok(())
        }
    }

    impl Kernel for Pretend {
        async fn apply(&mut self, step: &Step) -> Result<Option<Undo>> {
            if self.stuck_at_call == Some(self.calls + 1) {
                pending::<()>().await;
            }
            self.hold(step)
        }

        async fn undo(&mut self, undo: &Undo) -> Result<()> {
            if self.refuses_undo.as_ref() == Some(&undo.to_string()) {
                bail!("device or resource busy");
            }
            if let Undo::RemoveChain { place, chain } = undo {
                let (place, jump) = (place.to_string(), format!("-j {chain}"));
                if self.held.iter().any(|u| u.starts_with(&place) && u.ends_with(&jump)) {
                    bail!("the chain is in use");
                }
            }
            self.held.remove(&undo.to_string()).then_some(()).context("it is not there")
        }

        async fn apply_together(&mut self, groups: &[&[Step]]) -> Vec<Result<()>> {
            groups.iter().map(|steps| self.hold_together(steps)).collect()
        }

        async fn undo_together(&mut self, undos: &[Undo]) -> Result<()> {
            anyhow::ensure!(self.knows_together);
            self.together += 1;
            let refused = |undo: &Undo| self.refuses_undo.as_ref() == Some(&undo.to_string());
            anyhow::ensure!(!undos.iter().any(refused));
            self.held.retain(|held| undos.iter().all(|undo| undo.to_string() != *held));
            Ok(())
        }
    }

    fn plan(backend: Backend) -> Plan {
        let port = |number| Port::new(number).unwrap();
        let record = Record {
            instance: Instance::new(1),
            numbers: Numbers {
                mark: FwMark::new(2, 2).unwrap(),
                table: TableId::new(29_000).unwrap(),
                priority: 170,
            },
            former: Former { v4: Some(0), v6: Some(0) },
        };
        Plan::new(&Draft {
            backend,
            families: &Family::BOTH,
            record,
            intercept: &[Intercept { from: port(80), to: port(8080) }],
        })
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().build().unwrap().block_on(future)
    }

    fn all() -> Vec<Step> {
        plan(IPTABLES).steps().cloned().collect()
    }

    #[test]
    fn whichever_step_fails_everything_is_as_before() {
        let steps = all();
        for failing in 1..=steps.len() {
            let mut kernel = Pretend { refuses_call: Some(failing), ..Pretend::default() };
            let mut applied = Applied::default();
            let error = run(applied.apply(&mut kernel, &steps)).unwrap_err();
            // Jumps are tried all at once.
            let jumps = steps[failing..].iter().filter(|step| step.stage() == Some(Stage::Jumps));
            let besides =
                if steps[failing - 1].stage() == Some(Stage::Jumps) { jumps.count() } else { 0 };
            assert_eq!(kernel.calls, failing + besides);
            assert_eq!(kernel.held, BTreeSet::new(), "step {failing}");
            assert!(applied.is_empty());
            let told = format!("{}: operation not permitted", steps[failing - 1]);
            assert_eq!(format!("{error:#}"), told);
        }
    }

    #[test]
    fn a_failure_in_the_second_part_leaves_the_first_in_force() {
        let plan = plan(IPTABLES);
        let mut kernel = Pretend::default();
        let mut applied = Applied::default();
        run(applied.apply(&mut kernel, &plan.foundation)).unwrap();
        let before = (kernel.held.clone(), applied.undos().len());
        kernel.refuses_call = Some(kernel.calls + 2);
        run(applied.apply(&mut kernel, &plan.interception)).unwrap_err();
        assert_eq!((kernel.held, applied.undos.len()), before);
    }

    #[test]
    fn both_errors_are_told_when_the_roll_back_fails_too() {
        let steps = all();
        let refused = steps[0].undo().unwrap().to_string();
        let mut kernel = Pretend {
            refuses_call: Some(4),
            refuses_undo: Some(refused.clone()),
            ..Pretend::default()
        };
        let mut applied = Applied::default();
        let error = format!("{:#}", run(applied.apply(&mut kernel, &steps)).unwrap_err());
        assert!(error.contains("operation not permitted; and could not undo"), "{error}");
        assert!(error.contains(&format!("{refused}: device or resource busy")), "{error}");
    }

    #[test]
    fn a_tear_down_goes_on_past_failures_and_keeps_what_failed() {
        let steps = all();
        let refused = steps.last().and_then(Step::undo).unwrap();
        let mut kernel = Pretend { refuses_undo: Some(refused.to_string()), ..Pretend::default() };
        let mut applied = Applied::default();
        run(applied.apply(&mut kernel, &steps)).unwrap();
        let failures = run(applied.roll_back(&mut kernel));
        // The jump, the chain that it holds, and IPv4's chains, of which one is the record.
        assert_eq!(failures.len(), 4, "{failures:?}");
        assert_eq!(failures[0].undo, refused);
        assert_eq!(applied.undos().len(), 4);
        kernel.refuses_undo = None;
        assert!(run(applied.roll_back(&mut kernel)).is_empty());
        assert_eq!(kernel.held, BTreeSet::new());
    }

    #[test]
    fn as_long_as_anything_is_left_so_is_its_record_and_both_are_told() {
        for (backend, knows_together) in
            [(IPTABLES, true), (IPTABLES, false), (Backend::Nftables, true)]
        {
            let steps: Vec<Step> = plan(backend).foundation;
            let record = steps[0].undo().unwrap().to_string();
            for refused in steps.iter().filter_map(Step::undo).map(|undo| undo.to_string()) {
                let mut kernel = Pretend { knows_together, ..Pretend::default() };
                let mut applied = Applied::default();
                run(applied.apply(&mut kernel, &steps)).unwrap();
                applied.put_urgent_first();
                kernel.refuses_undo = Some(refused.clone());
                let failures = run(applied.roll_back(&mut kernel));
                let told: BTreeSet<_> = failures.iter().map(|f| f.undo.to_string()).collect();
                assert_eq!(told, kernel.held, "{refused}");
                assert!(told.contains(&refused) && told.contains(&record), "{told:?}");
                kernel.refuses_undo = None;
                assert!(run(applied.roll_back(&mut kernel)).is_empty());
                assert_eq!(kernel.held, BTreeSet::new(), "{refused}");
            }
        }
    }

    #[test]
    fn applying_that_gets_stuck_and_is_given_up_can_still_be_rolled_back() {
        let steps = all();
        let last_alone = steps.iter().rposition(|step| step.stage().is_none()).unwrap() + 1;
        let mut kernel = Pretend { stuck_at_call: Some(last_alone), ..Pretend::default() };
        let mut applied = Applied::default();
        run(async {
            let stuck = applied.apply(&mut kernel, &steps);
            tokio::time::timeout(Duration::from_millis(5), stuck).await.unwrap_err();
        });
        assert!(!kernel.held.is_empty());
        assert!(run(applied.roll_back(&mut kernel)).is_empty());
        assert_eq!(kernel.held, BTreeSet::new());
    }

    #[test]
    fn what_was_so_already_is_not_taken_back() {
        let steps = all();
        let sysctl = steps.iter().find(|s| matches!(s, Step::NonlocalBind { .. })).unwrap();
        let theirs = BTreeSet::from([sysctl.undo().unwrap().to_string()]);
        let mut kernel = Pretend { held: theirs.clone(), ..Pretend::default() };
        let mut applied = Applied::default();
        run(applied.apply(&mut kernel, &steps)).unwrap();
        assert!(run(applied.roll_back(&mut kernel)).is_empty());
        assert_eq!(kernel.held, theirs);
    }

    #[test]
    fn the_chains_of_one_place_are_made_and_removed_together() {
        let mut kernel = Pretend { knows_together: true, ..Pretend::default() };
        let mut applied = Applied::default();
        run(applied.apply(&mut kernel, &all())).unwrap();
        assert_eq!((kernel.together, applied.undos().len()), (2, kernel.held.len()));
        assert!(run(applied.roll_back(&mut kernel)).is_empty());
        assert_eq!((kernel.together, kernel.held), (4, BTreeSet::new()));
        assert!(applied.is_empty());
    }

    #[test]
    fn of_a_group_that_fails_each_step_is_done_by_itself_and_all_is_taken_back() {
        let steps = all();
        for failing in 1..=2 {
            let mut kernel = Pretend {
                knows_together: true,
                refuses_together: Some(failing),
                ..Pretend::default()
            };
            let mut applied = Applied::default();
            run(applied.apply(&mut kernel, &steps)).unwrap();
            assert_eq!(applied.undos().len(), kernel.held.len(), "group {failing}");
            assert!(run(applied.roll_back(&mut kernel)).is_empty());
            assert_eq!(kernel.held, BTreeSet::new(), "group {failing}");
        }
    }
}
