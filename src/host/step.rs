//! Decides: one change to the kernel, and how it is taken back.
//!
//! A step's text is the command that a person would type. It is the log line, the line of
//! `hapilot plan`, the item of `hapilot status` and the context of an error.

use std::fmt;

use super::instance::ChainName;
use super::mark::TableId;
use super::nftables::{Change, Kind};
use super::record::Numbers;
use super::sysctl::MIGRATE;

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

    /// Several changes in one transaction.
    #[must_use]
    pub fn restore_command(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Nft, Family::V4) => "iptables-nft-restore",
            (Self::Nft, Family::V6) => "ip6tables-nft-restore",
            (Self::Legacy, Family::V4) => "iptables-legacy-restore",
            (Self::Legacy, Family::V6) => "ip6tables-legacy-restore",
            (Self::Plain, Family::V4) => "iptables-restore",
            (Self::Plain, Family::V6) => "ip6tables-restore",
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
    Nftables(Change),
}

/// Neighbours of the same stage can be done at the same time, those of one place in one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Chains of ours are made and filled.
    Chains,
    /// What leads into them.
    Jumps,
    Nftables,
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
    /// What a guard of a dead instance had changed.
    RestoreMigration {
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
    Nftables(Change),
}

impl Step {
    /// Where it lives, for what lives in a firewall.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        match self {
            Self::Chain { place, .. } | Self::Entry { place, .. } | Self::Jump { place, .. } => {
                Some(*place)
            }
            _ => None,
        }
    }

    /// `None`: it is done by itself.
    #[must_use]
    pub fn stage(&self) -> Option<Stage> {
        match self {
            Self::Chain { .. } | Self::Entry { .. } => Some(Stage::Chains),
            Self::Jump { .. } => Some(Stage::Jumps),
            Self::Nftables(_) => Some(Stage::Nftables),
            _ => None,
        }
    }

    #[must_use]
    pub fn nftables(&self) -> Option<&Change> {
        if let Self::Nftables(change) = self { Some(change) } else { None }
    }

    /// What it is in, and goes with.
    #[must_use]
    pub fn container(&self) -> &'static str {
        if self.nftables().is_some() { "table" } else { "chain" }
    }

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
            Self::Nftables(change) => Undo::Nftables(change.undo()?),
        })
    }
}

impl Undo {
    /// Neighbours with the same place remove chains of ours and the jumps to them: one transaction
    /// can do them all.
    #[must_use]
    pub fn empties(&self) -> Option<Place> {
        match self {
            Self::RemoveChain { place, .. } | Self::RemoveJump { place, .. } => Some(*place),
            _ => None,
        }
    }

    /// How early in a tear-down, the greatest first. `nf_tables` waits for each transaction that
    /// removes something, so all of IPv6 goes in one; the record in the chain of IPv4 is enough for
    /// a sweep, and stays until there is nothing left to record.
    #[must_use]
    pub fn urgency(&self) -> u8 {
        match (self, self.empties().map(|place| place.family)) {
            (_, Some(Family::V6)) => 3,
            (Self::Nftables(change), _) if change.table().kind == Kind::Record => 0,
            (Self::RemoveJump { .. } | Self::Nftables(_), _) => 2,
            (Self::RemoveChain { .. }, _) => 0,
            _ => 1,
        }
    }

    /// It takes the record away, or is done together with what does.
    #[must_use]
    pub fn goes_with_record(&self) -> bool {
        self.urgency() == 0
    }

    /// What is there, in a few words, for `hapilot status`.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::RemoveChain { place, chain } => format!("chain {chain} ({place})"),
            Self::RemoveJump { place, from, rule } => format!("rule in {from} ({place}): {rule}"),
            Self::RestoreNonlocalBind { family, .. } => {
                format!("sysctl {}=1", family.nonlocal_bind())
            }
            Self::RestoreMigration { .. } => format!("sysctl {MIGRATE}=1"),
            Self::RemovePolicyRule { family, numbers } => format!(
                "{} rule {}: fwmark {} lookup {}",
                family.ip(),
                numbers.priority,
                numbers.mark,
                numbers.table
            ),
            Self::RemoveLocalRoute { family, table } => {
                format!("{} route in table {table}: local default dev lo", family.ip())
            }
            Self::Nftables(change) => change.subject(),
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
            Self::Nftables(change) => change.fmt(f),
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
            Self::RestoreMigration { former } => write!(f, "sysctl -w {MIGRATE}={former}"),
            Self::RemovePolicyRule { family, numbers } => policy_rule(f, "del", *family, *numbers),
            Self::RemoveLocalRoute { family, table } => local_route(f, "del", *family, *table),
            Self::Nftables(change) => change.fmt(f),
        }
    }
}

fn policy_rule(
    f: &mut fmt::Formatter<'_>,
    verb: &str,
    family: Family,
    numbers: Numbers,
) -> fmt::Result {
    let Numbers { mark, table, priority } = numbers;
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
    write!(f, "{ip} route {verb} local default dev lo table {table} proto {PROTOCOL}")
}
