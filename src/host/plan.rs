//! Decides: what one instance puts into the kernel, as steps, and in which order.

use std::fmt;

use super::backend::Backend;
use super::instance::{ChainName, Purpose};
use super::mark::{FwMark, Intercept};
use super::nftables::{Change, Kind, Ruleset, Table};
use super::record::Record;
use super::step::{Family, Place, Program, Step};

/// Everything that one instance puts into the kernel, in the order in which it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Before generation 1. Diverts nothing while no transparent socket exists.
    pub foundation: Vec<Step>,
    /// When generation 1 is ready: iptables' TPROXY drops what has no listener.
    pub interception: Vec<Step>,
}

/// What a plan is made from, once the numbers are chosen.
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    pub backend: Backend,
    pub families: &'a [Family],
    pub record: Record,
    pub intercept: &'a [Intercept],
}

impl Plan {
    /// At each step: killed here, does the sweep find all that is there? So the chain with the
    /// record is first, and the jump, without which nothing is diverted, is last.
    #[must_use]
    pub fn new(draft: &Draft<'_>) -> Self {
        let ((begin, end), interception) = match draft.backend {
            Backend::Iptables(program) => draft.iptables(program),
            Backend::Nftables => draft.nftables(),
        };
        let foundation = [begin, draft.routing(), end].concat();
        Self { foundation, interception }
    }

    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.foundation.iter().chain(&self.interception)
    }
}

/// What is before the routing and what behind, and the interception.
type Parts = ((Vec<Step>, Vec<Step>), Vec<Step>);

/// For `hapilot plan`: each step as a person would type it, and below what undoes it.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# before HAProxy starts")?;
        write_steps(f, &self.foundation)?;
        if !self.interception.is_empty() {
            writeln!(f, "# when HAProxy is ready")?;
            write_steps(f, &self.interception)?;
        }
        Ok(())
    }
}

fn write_steps(f: &mut fmt::Formatter<'_>, steps: &[Step]) -> fmt::Result {
    for step in steps {
        writeln!(f, "{step}")?;
        match step.undo() {
            Some(undo) => writeln!(f, "    # undo: {undo}")?,
            None => writeln!(f, "    # undo: goes with its {}", step.container())?,
        }
    }
    Ok(())
}

impl Draft<'_> {
    fn iptables(&self, program: Program) -> Parts {
        let places = || self.families.iter().map(|&family| Place { program, family });
        let jumps = |purpose| places().map(|place| self.jump(place, purpose)).collect();
        let mut chains = Vec::new();
        for place in places() {
            chains.extend(self.diversion_chain(place));
            if !self.intercept.is_empty() {
                chains.extend(self.interception_chain(place));
            }
        }
        let interception =
            if self.intercept.is_empty() { Vec::new() } else { jumps(Purpose::Interception) };
        ((chains, jumps(Purpose::Diversion)), interception)
    }

    /// The record alone comes first: it is all that is left after a kill.
    fn nftables(&self) -> Parts {
        let instance = self.record.instance;
        let note = Table { instance, kind: Kind::Record };
        let note = Change::AddNote(note, self.record.to_string());
        let rules = Ruleset {
            table: Table { instance, kind: Kind::Rules },
            families: self.families,
            mark: self.record.numbers.mark,
            intercept: self.intercept,
        };
        let steps = |changes: Vec<Change>| changes.into_iter().map(Step::Nftables).collect();
        ((vec![Step::Nftables(note)], steps(rules.foundation())), steps(rules.interception()))
    }

    fn routing(&self) -> Vec<Step> {
        let Record { numbers, former, .. } = self.record;
        let former = |&family: &Family| Some((family, former.of(family)?));
        let former = self.families.iter().filter_map(former);
        let sysctls = former.map(|(family, former)| Step::NonlocalBind { family, former });
        // The rule last, so it never points at an empty table.
        let ways = self.families.iter().flat_map(|&family| {
            let route = Step::LocalRoute { family, table: numbers.table };
            [route, Step::PolicyRule { family, numbers }]
        });
        sysctls.chain(ways).collect()
    }

    fn chain(&self, purpose: Purpose) -> ChainName {
        ChainName { instance: self.record.instance, purpose }
    }

    fn diversion_chain(&self, place: Place) -> [Step; 3] {
        let chain = self.chain(Purpose::Diversion);
        let (record, mark) = (self.record, self.record.numbers.mark);
        let mark_it = format!("-m comment --comment {record} -j MARK --set-xmark {mark}");
        [
            Step::Chain { place, chain },
            Step::Entry { place, chain, rule: mark_it },
            Step::Entry { place, chain, rule: "-j ACCEPT".into() },
        ]
    }

    fn interception_chain(&self, place: Place) -> Vec<Step> {
        let chain = self.chain(Purpose::Interception);
        let mark = self.record.numbers.mark;
        let entries =
            self.intercept.iter().map(|i| Step::Entry { place, chain, rule: tproxy(*i, mark) });
        std::iter::once(Step::Chain { place, chain }).chain(entries).collect()
    }

    fn jump(&self, place: Place, purpose: Purpose) -> Step {
        let rule = jump_to(self.chain(purpose));
        Step::Jump { place, from: "PREROUTING".into(), rule }
    }
}

/// The rule that leads into one of our chains.
pub(super) fn jump_to(chain: ChainName) -> String {
    let matches = match chain.purpose {
        // Without --transparent the packets of every socket of the host would be marked.
        Purpose::Diversion => "-p tcp -m socket --transparent",
        // HAProxy's own connections to servers on this host come in by lo: they would loop.
        Purpose::Interception => "! -i lo -p tcp",
        Purpose::Guard => "-p tcp --syn",
    };
    format!("{matches} -j {chain}")
}

fn tproxy(intercept: Intercept, mark: FwMark) -> String {
    let Intercept { from, to } = intercept;
    format!("-p tcp --dport {from} -j TPROXY --on-port {to} --tproxy-mark {mark}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::instance::Instance;
    use crate::host::mark::{Port, TableId};
    use crate::host::record::{Former, Numbers};

    const GOLDEN: &str = "\
# before HAProxy starts
iptables-legacy -t mangle -N HAPILOT-00c0ffee
    # undo: iptables-legacy -t mangle -F HAPILOT-00c0ffee && iptables-legacy -t mangle -X HAPILOT-00c0ffee
iptables-legacy -t mangle -A HAPILOT-00c0ffee -m comment --comment hapilot:00c0ffee:0x10000000/0x10000000:29000:170:0:- -j MARK --set-xmark 0x10000000/0x10000000
    # undo: goes with its chain
iptables-legacy -t mangle -A HAPILOT-00c0ffee -j ACCEPT
    # undo: goes with its chain
iptables-legacy -t mangle -N HAPILOT-00c0ffee-TPROXY
    # undo: iptables-legacy -t mangle -F HAPILOT-00c0ffee-TPROXY && iptables-legacy -t mangle -X HAPILOT-00c0ffee-TPROXY
iptables-legacy -t mangle -A HAPILOT-00c0ffee-TPROXY -p tcp --dport 80 -j TPROXY --on-port 8080 --tproxy-mark 0x10000000/0x10000000
    # undo: goes with its chain
sysctl -w net.ipv4.ip_nonlocal_bind=1
    # undo: sysctl -w net.ipv4.ip_nonlocal_bind=0
ip route add local default dev lo table 29000 proto 122
    # undo: ip route del local default dev lo table 29000 proto 122
ip rule add fwmark 0x10000000/0x10000000 lookup 29000 priority 170 protocol 122
    # undo: ip rule del fwmark 0x10000000/0x10000000 lookup 29000 priority 170 protocol 122
iptables-legacy -t mangle -A PREROUTING -p tcp -m socket --transparent -j HAPILOT-00c0ffee
    # undo: iptables-legacy -t mangle -D PREROUTING -p tcp -m socket --transparent -j HAPILOT-00c0ffee
# when HAProxy is ready
iptables-legacy -t mangle -A PREROUTING ! -i lo -p tcp -j HAPILOT-00c0ffee-TPROXY
    # undo: iptables-legacy -t mangle -D PREROUTING ! -i lo -p tcp -j HAPILOT-00c0ffee-TPROXY
";

    fn draft<'a>(families: &'a [Family], intercept: &'a [Intercept]) -> Draft<'a> {
        let record = Record {
            instance: Instance::new(0x00c0_ffee),
            numbers: Numbers {
                mark: FwMark::new(1 << 28, 1 << 28).unwrap(),
                table: TableId::new(29_000).unwrap(),
                priority: 170,
            },
            former: Former { v4: Some(0), v6: None },
        };
        Draft { backend: Backend::Iptables(Program::Legacy), families, record, intercept }
    }

    fn intercept() -> [Intercept; 1] {
        let port = |number| Port::new(number).unwrap();
        [Intercept { from: port(80), to: port(8080) }]
    }

    #[test]
    fn the_plan_reads_as_a_person_would_type_it() {
        let plan = Plan::new(&draft(&[Family::V4], &intercept()));
        assert_eq!(plan.to_string(), GOLDEN);
    }

    #[test]
    fn with_nftables_the_record_is_first_and_the_rules_are_last() {
        let intercept = intercept();
        let draft = Draft { backend: Backend::Nftables, ..draft(&Family::BOTH, &intercept) };
        let plan = Plan::new(&draft);
        let text: Vec<String> = plan.foundation.iter().map(ToString::to_string).collect();
        assert_eq!(
            text[0],
            "nft add table inet HAPILOT-00c0ffee-RECORD \
             '{ comment \"hapilot:00c0ffee:0x10000000/0x10000000:29000:170:0:-\"; }'"
        );
        let table = text.iter().position(|line| line.contains("HAPILOT-00c0ffee #")).unwrap();
        assert!(text[1..table].iter().all(|line| !line.starts_with("nft")), "{text:#?}");
        assert!(text[table..].iter().all(|line| line.starts_with("nft")), "{text:#?}");
        let [intercept] = &plan.interception[..] else { unreachable!() };
        assert_eq!(
            intercept.to_string(),
            "nft 'add rule inet HAPILOT-00c0ffee intercept tcp dport 80 tproxy to :8080 counter \
             meta mark set meta mark & 0xefffffff | 0x10000000 accept'"
        );
        let undo = intercept.undo().unwrap().to_string();
        assert_eq!(undo, "nft flush chain inet HAPILOT-00c0ffee intercept");
    }

    #[test]
    fn ipv6_has_the_same_steps_in_its_own_words() {
        let plan = Plan::new(&draft(&Family::BOTH, &intercept()));
        let text: Vec<String> = plan.steps().map(ToString::to_string).collect();
        for line in [
            "ip6tables-legacy -t mangle -N HAPILOT-00c0ffee",
            "ip -6 route add local default dev lo table 29000 proto 122",
            "ip -6 rule add fwmark 0x10000000/0x10000000 lookup 29000 priority 170 protocol 122",
        ] {
            assert!(text.iter().any(|step| step == line), "{line} in {text:#?}");
        }
        // Its former value is not known, so it is not ours to write.
        assert!(!text.iter().any(|step| step.contains("net.ipv6")));
    }

    #[test]
    fn the_record_is_first_the_jump_is_last_and_nothing_is_diverted_before() {
        let plan = Plan::new(&draft(&Family::BOTH, &intercept()));
        assert!(matches!(plan.foundation[0], Step::Chain { .. }));
        assert!(plan.foundation[1].to_string().contains("--comment hapilot:00c0ffee:"));
        let jumps = plan.foundation.iter().map(|s| matches!(s, Step::Jump { .. }));
        let first_jump = jumps.clone().position(|is_jump| is_jump).unwrap();
        assert!(jumps.skip(first_jump).all(|is_jump| is_jump));
        assert!(plan.interception.iter().all(|s| matches!(s, Step::Jump { .. })));
    }

    #[test]
    fn without_intercepts_there_is_no_chain_for_them() {
        let plan = Plan::new(&draft(&Family::BOTH, &[]));
        assert_eq!(plan.interception, []);
        assert!(!plan.to_string().contains("TPROXY"));
    }
}
