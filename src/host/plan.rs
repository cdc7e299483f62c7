//! Decides: what the kernel shall look like, as steps, and how each is taken back.
//!
//! A step's text is the command that a person would type. It is the log line, the line of
//! `hapilot plan`, the item of `hapilot status` and the context of an error.

use std::fmt;

use super::instance::{ChainName, Purpose};
use super::mark::{FwMark, Intercept, TableId};
use super::record::{Numbers, Record};

/// The protocol number of our rules and routes (`proto 122`): how the kernel tells them as ours.
pub const PROTOCOL: u8 = 122;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The sysctl that lets a process bind an address which is not the host's.
    #[must_use]
    pub fn nonlocal_bind(self) -> &'static str {
        match self {
            Self::V4 => "net.ipv4.ip_nonlocal_bind",
            Self::V6 => "net.ipv6.ip_nonlocal_bind",
        }
    }

    fn ip(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip -6",
        }
    }
}

/// Which iptables program is meant. Both speak of the same tables, but each sees only its own rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
    /// `iptables`, where no other name is there.
    Plain,
}

impl Program {
    #[must_use]
    pub fn command(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Nft, Family::V4) => "iptables-nft",
            (Self::Nft, Family::V6) => "ip6tables-nft",
            (Self::Legacy, Family::V4) => "iptables-legacy",
            (Self::Legacy, Family::V6) => "ip6tables-legacy",
            (Self::Plain, Family::V4) => "iptables",
            (Self::Plain, Family::V6) => "ip6tables",
        }
    }

    #[must_use]
    pub fn save_command(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Nft, Family::V4) => "iptables-nft-save",
            (Self::Nft, Family::V6) => "ip6tables-nft-save",
            (Self::Legacy, Family::V4) => "iptables-legacy-save",
            (Self::Legacy, Family::V6) => "ip6tables-legacy-save",
            (Self::Plain, Family::V4) => "iptables-save",
            (Self::Plain, Family::V6) => "ip6tables-save",
        }
    }
}

/// A program for one of the two protocols: where a chain or a rule lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub program: Program,
    pub family: Family,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -t mangle", self.program.command(self.family))
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new, empty chain of ours.
    Chain {
        place: Place,
        chain: ChainName,
    },
    /// A rule at the end of a chain of ours. It leaves with the chain.
    Entry {
        place: Place,
        chain: ChainName,
        rule: String,
    },
    /// A rule at the end of somebody else's chain.
    Jump {
        place: Place,
        from: String,
        rule: String,
    },
    /// `former` is what it was before the first hapilot wrote it.
    NonlocalBind {
        family: Family,
        former: u8,
    },
    PolicyRule {
        family: Family,
        numbers: Numbers,
    },
    LocalRoute {
        family: Family,
        table: TableId,
    },
}

/// What takes a step back. Doing it twice is not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undo {
    RemoveChain {
        place: Place,
        chain: ChainName,
    },
    RemoveJump {
        place: Place,
        from: String,
        rule: String,
    },
    RestoreNonlocalBind {
        family: Family,
        former: u8,
    },
    RemovePolicyRule {
        family: Family,
        numbers: Numbers,
    },
    RemoveLocalRoute {
        family: Family,
        table: TableId,
    },
}

impl Step {
    /// `None`: it goes when something else goes.
    #[must_use]
    pub fn undo(&self) -> Option<Undo> {
        Some(match self.clone() {
            Self::Chain { place, chain } => Undo::RemoveChain { place, chain },
            Self::Entry { .. } => return None,
            Self::Jump { place, from, rule } => Undo::RemoveJump { place, from, rule },
            Self::NonlocalBind { family, former } => Undo::RestoreNonlocalBind { family, former },
            Self::PolicyRule { family, numbers } => Undo::RemovePolicyRule { family, numbers },
            Self::LocalRoute { family, table } => Undo::RemoveLocalRoute { family, table },
        })
    }
}

impl Undo {
    /// What is there, in a few words, for `hapilot status`.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::RemoveChain { place, chain } => format!("chain {chain} ({place})"),
            Self::RemoveJump { place, from, rule } => format!("rule in {from} ({place}): {rule}"),
            Self::RestoreNonlocalBind { family, .. } => {
                format!("sysctl {}=1", family.nonlocal_bind())
            }
            Self::RemovePolicyRule { family, numbers } => format!(
                "{} rule {}: fwmark {} lookup {}",
                family.ip(),
                numbers.priority,
                numbers.mark,
                numbers.table
            ),
            Self::RemoveLocalRoute { family, table } => {
                format!(
                    "{} route in table {table}: local default dev lo",
                    family.ip()
                )
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain { place, chain } => write!(f, "{place} -N {chain}"),
            Self::Entry { place, chain, rule } => write!(f, "{place} -A {chain} {rule}"),
            Self::Jump { place, from, rule } => write!(f, "{place} -A {from} {rule}"),
            Self::NonlocalBind { family, .. } => {
                write!(f, "sysctl -w {}=1", family.nonlocal_bind())
            }
            Self::PolicyRule { family, numbers } => policy_rule(f, "add", *family, *numbers),
            Self::LocalRoute { family, table } => local_route(f, "add", *family, *table),
        }
    }
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveChain { place, chain } => {
                write!(f, "{place} -F {chain} && {place} -X {chain}")
            }
            Self::RemoveJump { place, from, rule } => write!(f, "{place} -D {from} {rule}"),
            Self::RestoreNonlocalBind { family, former } => {
                write!(f, "sysctl -w {}={former}", family.nonlocal_bind())
            }
            Self::RemovePolicyRule { family, numbers } => policy_rule(f, "del", *family, *numbers),
            Self::RemoveLocalRoute { family, table } => local_route(f, "del", *family, *table),
        }
    }
}

fn policy_rule(
    f: &mut fmt::Formatter<'_>,
    verb: &str,
    family: Family,
    numbers: Numbers,
) -> fmt::Result {
    let Numbers {
        mark,
        table,
        priority,
    } = numbers;
    write!(
        f,
        "{} rule {verb} fwmark {mark} lookup {table} priority {priority} protocol {PROTOCOL}",
        family.ip()
    )
}

fn local_route(
    f: &mut fmt::Formatter<'_>,
    verb: &str,
    family: Family,
    table: TableId,
) -> fmt::Result {
    let ip = family.ip();
    write!(
        f,
        "{ip} route {verb} local default dev lo table {table} proto {PROTOCOL}"
    )
}

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
    pub program: Program,
    pub families: &'a [Family],
    pub record: Record,
    pub intercept: &'a [Intercept],
}

impl Plan {
    /// At each step: killed here, does the sweep find all that is there? So the chain with the
    /// record is first, and the jump, without which nothing is diverted, is last.
    #[must_use]
    pub fn new(draft: &Draft<'_>) -> Self {
        let Draft {
            families,
            record,
            intercept,
            ..
        } = draft;
        let mut foundation = Vec::new();
        for &family in *families {
            foundation.extend(draft.diversion_chain(family));
        }
        if !intercept.is_empty() {
            for &family in *families {
                foundation.extend(draft.interception_chain(family));
            }
        }
        for &family in *families {
            if let Some(former) = record.former.of(family) {
                foundation.push(Step::NonlocalBind { family, former });
            }
        }
        for &family in *families {
            let numbers = record.numbers;
            // The rule last, so it never points at an empty table.
            foundation.push(Step::LocalRoute {
                family,
                table: numbers.table,
            });
            foundation.push(Step::PolicyRule { family, numbers });
        }
        foundation.extend(families.iter().map(|&f| draft.jump(f, Purpose::Diversion)));
        let interception = if intercept.is_empty() {
            Vec::new()
        } else {
            families
                .iter()
                .map(|&f| draft.jump(f, Purpose::Interception))
                .collect()
        };
        Self {
            foundation,
            interception,
        }
    }

    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.foundation.iter().chain(&self.interception)
    }
}

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
            None => writeln!(f, "    # undo: goes with its chain")?,
        }
    }
    Ok(())
}

impl Draft<'_> {
    fn place(&self, family: Family) -> Place {
        Place {
            program: self.program,
            family,
        }
    }

    fn chain(&self, purpose: Purpose) -> ChainName {
        ChainName {
            instance: self.record.instance,
            purpose,
        }
    }

    fn diversion_chain(&self, family: Family) -> [Step; 3] {
        let (place, chain) = (self.place(family), self.chain(Purpose::Diversion));
        let (record, mark) = (self.record, self.record.numbers.mark);
        let mark_it = format!("-m comment --comment {record} -j MARK --set-xmark {mark}");
        [
            Step::Chain { place, chain },
            Step::Entry {
                place,
                chain,
                rule: mark_it,
            },
            Step::Entry {
                place,
                chain,
                rule: "-j ACCEPT".into(),
            },
        ]
    }

    fn interception_chain(&self, family: Family) -> Vec<Step> {
        let (place, chain) = (self.place(family), self.chain(Purpose::Interception));
        let mark = self.record.numbers.mark;
        let entries = self.intercept.iter().map(|i| Step::Entry {
            place,
            chain,
            rule: tproxy(*i, mark),
        });
        std::iter::once(Step::Chain { place, chain })
            .chain(entries)
            .collect()
    }

    fn jump(&self, family: Family, purpose: Purpose) -> Step {
        let matches = match purpose {
            // Without --transparent the packets of every socket of the host would be marked.
            Purpose::Diversion => "-p tcp -m socket --transparent",
            // HAProxy's own connections to servers on this host come in by lo: they would loop.
            Purpose::Interception => "! -i lo -p tcp",
        };
        let rule = format!("{matches} -j {}", self.chain(purpose));
        Step::Jump {
            place: self.place(family),
            from: "PREROUTING".into(),
            rule,
        }
    }
}

fn tproxy(intercept: Intercept, mark: FwMark) -> String {
    let Intercept { from, to } = intercept;
    format!("-p tcp --dport {from} -j TPROXY --on-port {to} --tproxy-mark {mark}")
}
