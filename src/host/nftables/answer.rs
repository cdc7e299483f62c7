//! Decides: what the kernel's answers say of tables and rules (`linux/netfilter/nf_tables.h`).

use std::io;

use super::change::{OWNER, Table, commented};
use crate::host::netlink::{Received, attributes, find, messages, number};
use crate::host::record::{Migration, Record};

/// A table of some hapilot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub table: Table,
    /// Whoever owns it lives; nobody else can remove it.
    pub owned: bool,
    pub record: Option<Record>,
    pub migration: Option<Migration>,
}

/// Each with the number of the message that it answers.
pub fn answers(datagram: &[u8]) -> impl Iterator<Item = (u32, io::Result<()>)> {
    messages(datagram).filter_map(|message| Some((message.sequence, message.answer()?)))
}

/// `None` for a table that is no hapilot's.
#[must_use]
pub fn table(message: &Received<'_>) -> Option<Seen> {
    let text = std::str::from_utf8(find(message.attributes(), 1)?).ok()?;
    let table: Table = text.trim_end_matches('\0').parse().ok()?;
    let flags = find(message.attributes(), 2).and_then(number).map_or(0, u32::from_be_bytes);
    let comment = find(message.attributes(), 6).and_then(commented).unwrap_or_default();
    // A record counts only where that instance itself would write it.
    let record = comment.parse::<Record>().ok().filter(|r| r.instance == table.instance);
    let migration = comment.parse::<Migration>().ok().filter(|m| m.instance == table.instance);
    Some(Seen { table, owned: flags & OWNER != 0, record, migration })
}

/// What the counters of a rule say.
#[must_use]
pub fn packets(rule: &Received<'_>) -> u64 {
    let expressions = find(rule.attributes(), 4).unwrap_or_default();
    attributes(expressions)
        .filter(|(_, expression)| find(attributes(expression), 1) == Some(b"counter\0"))
        .filter_map(|(_, expression)| find(attributes(expression), 2))
        .filter_map(|counter| find(attributes(counter), 2).and_then(number))
        .map(u64::from_be_bytes)
        .fold(0, u64::saturating_add)
}
