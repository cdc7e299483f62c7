//! Decides: one change to the tables of an instance, as the command that a person would type and
//! as the messages that the kernel takes.
//!
//! The table with the rules has the *owner* flag: the kernel removes it when our socket is closed,
//! however that comes about, and nobody else may change it. What outlives us (policy rule, route,
//! sysctl) is recorded in the comment of a second table, which has neither owner nor content.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::expression::{Expressions, Verdict};
use crate::host::instance::Instance;
use crate::host::mark::{FwMark, Intercept};
use crate::host::netlink::{
    ACKNOWLEDGE, APPEND, Attributes, CREATE, EXCLUSIVE, Header, REQUEST, message,
};
use crate::host::step::Family;

pub(super) const SUBSYSTEM: u16 = 10;
/// Tables for IPv4 and IPv6 together.
const INET: u8 = 1;
pub(super) const OWNER: u32 = 2;
/// Where a comment is kept: a kind, a length, the text.
const COMMENT: u8 = 0;

/// The set of ports that a guard is for.
const GUARDED: &str = "guarded";

/// Our tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Owned: all that does something.
    Rules,
    /// The record of what outlives us.
    Record,
    /// What a guard has changed besides.
    Migration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table {
    pub instance: Instance,
    pub kind: Kind,
}

/// The chains of a table of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chain {
    /// The one that packets come to.
    Prerouting,
    Interception,
    Guard,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// New connections see the guard first.
    ToGuard,
    /// Packets of transparent sockets stay on this host.
    Divert(FwMark),
    ToInterception,
    Intercept(Intercept, FwMark),
    Drop,
    Hold {
        queue: u16,
        native: bool,
    },
}

/// One change. Done together they all happen or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    AddTable(Table),
    /// A table that carries this comment and nothing else.
    AddNote(Table, String),
    DeleteTable(Table),
    AddChain(Table, Chain),
    AddRules {
        table: Table,
        chain: Chain,
        rules: Vec<Rule>,
        families: Vec<Family>,
    },
    /// Its rules go, it stays.
    FlushChain(Table, Chain),
    AddPortSet(Table),
    /// Each expires by itself.
    GuardPorts {
        table: Table,
        ports: BTreeSet<u16>,
        expiry: Duration,
    },
    FlushPorts(Table),
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = match self.kind {
            Kind::Rules => "",
            Kind::Record => "-RECORD",
            Kind::Migration => "-MIGRATE",
        };
        write!(f, "HAPILOT-{}{suffix}", self.instance)
    }
}

impl FromStr for Table {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text
            .strip_prefix("HAPILOT-")
            .ok_or_else(|| format!("{text:?} is not a table of hapilot"))?;
        let (instance, kind) = match rest.split_once('-') {
            Some((instance, "RECORD")) => (instance, Kind::Record),
            Some((instance, "MIGRATE")) => (instance, Kind::Migration),
            _ => (rest, Kind::Rules),
        };
        Ok(Self { instance: instance.parse()?, kind })
    }
}

impl Chain {
    #[must_use]
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Interception => "intercept",
            Self::Guard => "guard",
        }
    }
}

impl Rule {
    fn expressions(self, families: &[Family]) -> Expressions {
        let all = Expressions::default();
        let all = if families.contains(&Family::V6) { all } else { all.ipv4() };
        match self {
            Self::ToGuard => all.syn().jump(Chain::Guard.name()),
            Self::Divert(mark) => {
                let diverted = all.tcp().transparent_socket().counter().set_mark(mark);
                diverted.verdict(Verdict::Accept)
            }
            Self::ToInterception => all.outside().tcp().jump(Chain::Interception.name()),
            Self::Intercept(Intercept { from, to }, mark) => {
                let found = all.dport(from.number()).tproxy(to.number()).counter();
                found.set_mark(mark).verdict(Verdict::Accept)
            }
            Self::Drop => all.dports_in(GUARDED).counter().verdict(Verdict::Drop),
            Self::Hold { queue, native: true } => all.dports_in(GUARDED).counter().queue(queue),
            Self::Hold { queue, native: false } => all.dports_in(GUARDED).counter().xt_queue(queue),
        }
    }
}

struct Mark(FwMark);

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (keep, set) = (!self.0.mask(), self.0.value());
        write!(f, "meta mark set meta mark & {keep:#010x} | {set:#010x}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ToGuard => write!(f, "tcp flags & (fin | syn | rst | ack) == syn jump guard"),
            Self::Divert(mark) => write!(
                f,
                "meta l4proto tcp socket transparent 1 socket wildcard 0 counter {} accept",
                Mark(mark)
            ),
            Self::ToInterception => write!(f, "iif != \"lo\" meta l4proto tcp jump intercept"),
            Self::Intercept(Intercept { from, to }, mark) => {
                write!(f, "tcp dport {from} tproxy to :{to} counter {} accept", Mark(mark))
            }
            Self::Drop => write!(f, "tcp dport @{GUARDED} counter drop"),
            Self::Hold { queue, .. } => {
                write!(f, "tcp dport @{GUARDED} counter queue num {queue} bypass")
            }
        }
    }
}

impl Change {
    #[must_use]
    pub fn table(&self) -> Table {
        match self {
            Self::AddTable(table)
            | Self::AddNote(table, _)
            | Self::DeleteTable(table)
            | Self::AddChain(table, _)
            | Self::AddRules { table, .. }
            | Self::FlushChain(table, _)
            | Self::AddPortSet(table)
            | Self::GuardPorts { table, .. }
            | Self::FlushPorts(table) => *table,
        }
    }

    /// `None`: it goes with its table, or is itself a removal.
    #[must_use]
    pub fn undo(&self) -> Option<Self> {
        match self {
            Self::AddTable(table) | Self::AddNote(table, _) => Some(Self::DeleteTable(*table)),
            Self::AddRules { table, chain: Chain::Interception, .. } => {
                Some(Self::FlushChain(*table, Chain::Interception))
            }
            _ => None,
        }
    }

    /// What a removal removes, in a few words.
    #[must_use]
    pub fn subject(&self) -> String {
        let table = self.table();
        match (self, table.kind) {
            (Self::FlushChain(_, chain), _) => {
                format!("rules in chain {} (nft table inet {table})", chain.name())
            }
            (_, Kind::Rules) => format!("nft table inet {table}, which the kernel removes with us"),
            (_, Kind::Record | Kind::Migration) => {
                format!("nft table inet {table}: a record for the sweep, without rules")
            }
        }
    }

    /// What the kernel is sent, each message with the number that its answer will bear.
    pub(super) fn messages(&self, sequence: &mut impl FnMut() -> u32) -> Vec<Vec<u8>> {
        self.requests()
            .into_iter()
            .map(|(kind, flags, attributes)| {
                let header = Header {
                    kind: SUBSYSTEM << 8 | kind,
                    flags: REQUEST | ACKNOWLEDGE | flags,
                    sequence: sequence(),
                    family: INET,
                    resource: 0,
                };
                message(header, &attributes)
            })
            .collect()
    }

    fn requests(&self) -> Vec<(u16, u16, Attributes)> {
        const NEW: u16 = CREATE | EXCLUSIVE;
        let named = |kind: u16| Attributes::default().text(kind, &self.table().to_string());
        match self {
            Self::AddTable(_) => vec![(0, NEW, named(1).number(2, OWNER))],
            Self::AddNote(_, text) => vec![(0, NEW, named(1).with(6, &comment(text)))],
            Self::DeleteTable(_) => vec![(2, 0, named(1))],
            Self::AddChain(_, chain) => {
                vec![(3, NEW, hooked(named(1).text(3, chain.name()), *chain))]
            }
            Self::AddRules { chain, rules, families, .. } => {
                let to_chain = || named(1).text(2, chain.name());
                let expressions = |rule: &Rule| rule.expressions(families).into_attributes();
                let rules = rules.iter().map(|rule| to_chain().nest(4, &expressions(rule)));
                rules.map(|rule| (6, CREATE | APPEND, rule)).collect()
            }
            Self::FlushChain(_, chain) => vec![(8, 0, named(1).text(2, chain.name()))],
            Self::AddPortSet(_) => vec![(9, NEW, port_set(named(1)))],
            Self::GuardPorts { ports, expiry, .. } => {
                let milliseconds = u64::try_from(expiry.as_millis()).unwrap_or(u64::MAX);
                let element = |port: &u16| {
                    let key = Attributes::default().with(1, &port.to_be_bytes());
                    Attributes::default().nest(1, &key).with(4, &milliseconds.to_be_bytes())
                };
                let elements = ports
                    .iter()
                    .fold(Attributes::default(), |list, port| list.nest(1, &element(port)));
                vec![(12, CREATE, named(1).text(2, GUARDED).nest(3, &elements))]
            }
            Self::FlushPorts(_) => vec![(14, 0, named(1).text(2, GUARDED))],
        }
    }
}

/// In front of everything else in the `mangle` place: there, marks decide about the way.
fn hooked(chain: Attributes, which: Chain) -> Attributes {
    const PREROUTING: u32 = 0;
    const MANGLE: i32 = -150;
    const ACCEPT: u32 = 1;
    if which != Chain::Prerouting {
        return chain;
    }
    let hook = Attributes::default().number(1, PREROUTING).with(2, &MANGLE.to_be_bytes());
    chain.nest(4, &hook).number(5, ACCEPT).text(7, "filter")
}

fn port_set(set: Attributes) -> Attributes {
    const EXPIRES: u32 = 0x10;
    /// `inet_service`, for `nft list`.
    const PORT: u32 = 13;
    set.text(2, GUARDED).number(3, EXPIRES).number(4, PORT).number(5, 2).number(10, 1)
}

fn comment(text: &str) -> Vec<u8> {
    let text = [text.as_bytes(), b"\0"].concat();
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[COMMENT, length][..], &text].concat()
}

/// The text of a comment in what the kernel keeps for us.
#[must_use]
pub(super) fn commented(mut data: &[u8]) -> Option<String> {
    loop {
        let (&kind, &length) = (data.first()?, data.get(1)?);
        let value = data.get(2..2 + usize::from(length))?;
        if kind == COMMENT {
            let text = value.split(|byte| *byte == 0).next()?;
            return String::from_utf8(text.to_vec()).ok();
        }
        data = &data[2 + usize::from(length)..];
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable(table) => {
                write!(f, "nft add table inet {table} # ours is gone when hapilot is: flags owner")
            }
            Self::AddNote(table, text) => {
                write!(f, "nft add table inet {table} '{{ comment \"{text}\"; }}'")
            }
            Self::DeleteTable(table) if table.kind == Kind::Rules => {
                write!(f, "nft delete table inet {table} # only hapilot itself may, or its end")
            }
            Self::DeleteTable(table) => write!(f, "nft delete table inet {table}"),
            Self::AddChain(table, chain @ Chain::Prerouting) => write!(
                f,
                "nft add chain inet {table} {} '{{ type filter hook prerouting priority mangle; }}'",
                chain.name()
            ),
            Self::AddChain(table, chain) => {
                write!(f, "nft add chain inet {table} {}", chain.name())
            }
            Self::AddRules { table, chain, rules, families } => {
                let only = if families.contains(&Family::V6) { "" } else { "meta nfproto ipv4 " };
                let chain = chain.name();
                let rule = |r: &Rule| format!("add rule inet {table} {chain} {only}{r}");
                let rules: Vec<String> = rules.iter().map(rule).collect();
                write!(f, "nft '{}'", rules.join("; "))
            }
            Self::FlushChain(table, chain) => {
                write!(f, "nft flush chain inet {table} {}", chain.name())
            }
            Self::AddPortSet(table) => write!(
                f,
                "nft add set inet {table} {GUARDED} '{{ type inet_service; flags timeout; }}'"
            ),
            Self::GuardPorts { table, ports, expiry } => {
                let expiry = expiry.as_millis();
                let port = |port: &u16| format!("{port} timeout {expiry}ms");
                let ports: Vec<String> = ports.iter().map(port).collect();
                write!(f, "nft add element inet {table} {GUARDED} '{{ {} }}'", ports.join(", "))
            }
            Self::FlushPorts(table) => write!(f, "nft flush set inet {table} {GUARDED}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(kind: Kind) -> Table {
        Table { instance: Instance::new(0x00c0_ffee), kind }
    }

    fn bytes(change: &Change) -> Vec<Vec<u8>> {
        let mut sequence = 0;
        change.messages(&mut || {
            sequence += 1;
            sequence
        })
    }

    /// What is behind both headers.
    fn attributes_of(change: &Change) -> Vec<u8> {
        bytes(change).concat()[20..].to_vec()
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn tables_are_read_back_and_those_of_others_are_not_ours() {
        for kind in [Kind::Rules, Kind::Record, Kind::Migration] {
            assert_eq!(table(kind).to_string().parse(), Ok(table(kind)));
        }
        for other in ["filter", "HAPILOT-", "HAPILOT-00c0ffee-GUARD", "HAPILOT-00C0FFEE"] {
            assert!(other.parse::<Table>().is_err(), "{other}");
        }
    }

    #[test]
    fn the_table_with_the_rules_has_an_owner_and_the_one_with_the_record_has_none() {
        let name = |text: &[u8]| attribute(1, text);
        let owned = [name(b"HAPILOT-00c0ffee\0"), attribute(2, &[0, 0, 0, 2])].concat();
        let add = Change::AddTable(table(Kind::Rules));
        assert_eq!(attributes_of(&add), owned);
        let message = &bytes(&add)[0];
        assert_eq!(message[4..6], 0x0a00_u16.to_ne_bytes());
        assert_eq!(message[6..8], 0x0605_u16.to_ne_bytes(), "request, answer, create, exclusive");
        assert_eq!(message[16..20], [1, 0, 0, 0]);
        let note = Change::AddNote(table(Kind::Record), "abc".into());
        let noted = [name(b"HAPILOT-00c0ffee-RECORD\0"), attribute(6, b"\0\x04abc\0")].concat();
        assert_eq!(attributes_of(&note), noted);
    }

    #[test]
    fn a_comment_is_read_back_whatever_else_is_kept_with_it() {
        assert_eq!(commented(&comment("abc")), Some("abc".into()));
        let others = [&[7, 2, 1, 1][..], &comment("abc")].concat();
        assert_eq!(commented(&others), Some("abc".into()));
        for end in 0..others.len() {
            assert_eq!(commented(&others[..end]), None);
        }
    }

    #[test]
    fn each_guarded_port_has_its_expiry() {
        let (table, expiry) = (table(Kind::Rules), Duration::from_millis(800));
        let change = Change::GuardPorts { table, ports: [80].into(), expiry };
        let key = attribute(0x8001, &attribute(1, &[0, 80]));
        let element = [key, attribute(4, &800_u64.to_be_bytes())].concat();
        let list = attribute(0x8003, &attribute(0x8001, &element));
        let head = [attribute(1, b"HAPILOT-00c0ffee\0"), attribute(2, b"guarded\0")].concat();
        assert_eq!(attributes_of(&change), [head, list].concat());
        let text = "nft add element inet HAPILOT-00c0ffee guarded '{ 80 timeout 800ms }'";
        assert_eq!(change.to_string(), text);
    }

    #[test]
    fn where_there_is_no_ipv6_rules_are_for_ipv4_alone() {
        let rules = |families: &[Family]| Change::AddRules {
            table: table(Kind::Rules),
            chain: Chain::Prerouting,
            rules: vec![Rule::ToGuard],
            families: families.to_vec(),
        };
        let (both, one) = (rules(&Family::BOTH), rules(&[Family::V4]));
        assert!(one.to_string().contains("prerouting meta nfproto ipv4 tcp flags"), "{one}");
        assert!(!both.to_string().contains("nfproto"), "{both}");
        assert!(bytes(&one)[0].len() > bytes(&both)[0].len());
    }
}
