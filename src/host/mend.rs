//! Decides: what is missing in a place of iptables, and the transaction that makes it whole.
//!
//! Chains are filled anew and jumps are put in their order by one transaction, so that what was
//! still there is in force all the time.

use super::instance::{ChainName, Instance, Purpose};
use super::saved::{Jump, Saved};
use super::step::{Place, Step};

/// How one place is made whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mending {
    pub place: Place,
    /// What is not there as it should be.
    pub gone: Vec<String>,
    /// As the program's `-restore` takes them.
    pub lines: Vec<String>,
}

impl Mending {
    /// `None`: nothing is missing. `steps` is what should be in force; of other places, too.
    #[must_use]
    pub fn of(us: Instance, place: Place, steps: &[Step], saved: &Saved) -> Option<Self> {
        let here: Vec<&Step> = steps.iter().filter(|step| step.place() == Some(place)).collect();
        // A guard comes and goes by itself.
        let ours = |chain: &ChainName| chain.instance == us && chain.purpose != Purpose::Guard;
        let jumps: Vec<&Jump> = saved.jumps.iter().filter(|jump| ours(&jump.to)).collect();
        let gone = gone(place, &here, &jumps, saved);
        if gone.is_empty() {
            return None;
        }
        // A chain that is named so is made, or emptied.
        let chains = here.iter().filter_map(|step| match step {
            Step::Chain { chain, .. } => Some(format!(":{chain} - [0:0]")),
            _ => None,
        });
        let entries = here.iter().filter_map(|step| match step {
            Step::Entry { chain, rule, .. } => Some(format!("-A {chain} {rule}")),
            _ => None,
        });
        let removed = jumps.iter().map(|jump| format!("-D {} {}", jump.from, jump.rule));
        let added = here.iter().filter_map(|step| match step {
            Step::Jump { from, rule, .. } => Some(format!("-A {from} {rule}")),
            _ => None,
        });
        let lines = chains.chain(entries).chain(removed).chain(added).collect();
        Some(Self { place, gone, lines })
    }
}

fn gone(place: Place, here: &[&Step], jumps: &[&Jump], saved: &Saved) -> Vec<String> {
    let mut gone = Vec::new();
    let mut expected = 0;
    for step in here {
        match step {
            Step::Chain { chain, .. } if !saved.chains.contains(chain) => {
                gone.push(format!("chain {chain} ({place})"));
            }
            Step::Chain { chain, .. } => {
                let rules = |s: &&&Step| matches!(s, Step::Entry { chain: c, .. } if c == chain);
                let rules = here.iter().filter(rules).count();
                if saved.entries.get(chain).copied().unwrap_or_default() != rules {
                    gone.push(format!("rules in chain {chain} ({place})"));
                }
            }
            Step::Jump { from, rule, .. } => {
                expected += 1;
                let leads = |jump: &&&Jump| rule.ends_with(&format!("-j {}", jump.to));
                if jumps.iter().filter(leads).count() != 1 {
                    gone.push(format!("rule in {from} ({place}): {rule}"));
                }
            }
            _ => {}
        }
    }
    if gone.is_empty() && jumps.len() != expected {
        gone.push(format!("the order of rules ({place})"));
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::backend::Backend;
    use crate::host::mark::{FwMark, Intercept, Port, TableId};
    use crate::host::plan::{Draft, Plan};
    use crate::host::record::{Former, Numbers, Record};
    use crate::host::step::{Family, Program};

    const US: Instance = Instance::new(0x00c0_ffee);
    const PLACE: Place = Place { program: Program::Nft, family: Family::V4 };

    fn steps() -> Vec<Step> {
        let port = |number| Port::new(number).unwrap();
        let numbers = Numbers {
            mark: FwMark::new(2, 2).unwrap(),
            table: TableId::new(29_000).unwrap(),
            priority: 170,
        };
        let plan = Plan::new(&Draft {
            backend: Backend::Iptables(Program::Nft),
            families: &Family::BOTH,
            record: Record { instance: US, numbers, former: Former::default() },
            intercept: &[Intercept { from: port(80), to: port(8080) }],
        });
        plan.steps().cloned().collect()
    }

    /// What the program would print of it.
    fn whole() -> Vec<String> {
        steps()
            .iter()
            .filter(|step| step.place() == Some(PLACE))
            .map(|step| match step {
                Step::Chain { chain, .. } => format!(":{chain} - [0:0]"),
                Step::Entry { chain, rule, .. } => format!("-A {chain} {rule}"),
                Step::Jump { from, rule, .. } => format!("-A {from} {rule}"),
                other => panic!("{other} is in no place"),
            })
            .collect()
    }

    fn mending(lines: &[String]) -> Option<Mending> {
        let text = format!("*mangle\n{}\nCOMMIT\n", lines.join("\n"));
        Mending::of(US, PLACE, &steps(), &Saved::parse(&text))
    }

    #[test]
    fn what_is_whole_needs_nothing_and_a_guard_or_other_people_change_nothing() {
        assert_eq!(mending(&whole()), None);
        let others = [
            ":HAPILOT-00c0ffee-GUARD - [0:0]",
            "-A PREROUTING -p tcp --syn -j HAPILOT-00c0ffee-GUARD",
            "-A HAPILOT-00c0ffee-GUARD -j RETURN",
            "-A PREROUTING -p tcp -m socket --transparent -j HAPILOT-deadbeef",
            "-A PREROUTING -j DOCKER",
        ];
        let more = others.map(ToOwned::to_owned);
        assert_eq!(mending(&[whole(), more.to_vec()].concat()), None);
    }

    #[test]
    fn whichever_line_goes_it_is_named_and_made_in_order() {
        for at in 0..whole().len() {
            let mut lines = whole();
            let line = lines.remove(at);
            let Mending { gone, lines, .. } = mending(&lines).unwrap();
            let name = line.trim_start_matches("-A ").trim_start_matches(':');
            let name = name.split(' ').next().unwrap();
            assert!(gone.iter().all(|gone| gone.contains(name)), "{line}: {gone:?}");
            let removed: Vec<_> = lines.iter().filter(|line| line.starts_with("-D ")).collect();
            let jumps = if line.contains("PREROUTING") { 1 } else { 2 };
            assert_eq!(removed.len(), jumps, "{lines:?}");
            let kept = |line: &&String| !line.starts_with("-D ");
            let made: Vec<_> = lines.iter().filter(kept).cloned().collect();
            let rank = |line: &String| (!line.starts_with(':'), line.contains("-A PREROUTING"));
            let mut expected = whole();
            expected.sort_by_key(rank);
            assert_eq!(made, expected);
        }
    }

    #[test]
    fn what_somebody_doubled_is_single_again() {
        let twice = [whole(), whole()[whole().len() - 1..].to_vec()].concat();
        let mending = mending(&twice).unwrap();
        assert_eq!(mending.lines.iter().filter(|line| line.starts_with("-D ")).count(), 3);
    }
}
