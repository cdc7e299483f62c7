//! Decides: what an instance writes down about itself, in the comment of its chain's first rule.
//!
//! The record is in the kernel before anything that it names, so a sweep after `kill -9` finds all
//! of it. It is one word without quotes or blanks: the `iptables` package splits there.

use std::fmt;
use std::str::FromStr;

use super::instance::Instance;
use super::mark::{FwMark, TableId};
use super::step::Family;

/// The numbers of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    pub mark: FwMark,
    pub table: TableId,
    /// Of the policy rule, the same for IPv4 and IPv6.
    pub priority: u32,
}

/// What `ip_nonlocal_bind` was before the first hapilot wrote it; `None` where none of us did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Former {
    pub v4: Option<u8>,
    pub v6: Option<u8>,
}

impl Former {
    #[must_use]
    pub fn of(self, family: Family) -> Option<u8> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    pub fn set(&mut self, family: Family, value: Option<u8>) {
        match family {
            Family::V4 => self.v4 = value,
            Family::V6 => self.v6 = value,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub instance: Instance,
    pub numbers: Numbers,
    pub former: Former,
}

/// What a guard writes down before it writes `net.ipv4.tcp_migrate_req`, in its own chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    pub instance: Instance,
    pub former: u8,
}

impl fmt::Display for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MIGRATION}:{}:{}", self.instance, self.former)
    }
}

impl FromStr for Migration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (instance, former) =
                text.strip_prefix(MIGRATION)?.strip_prefix(':')?.split_once(':')?;
            Some(Self { instance: instance.parse().ok()?, former: former.parse().ok()? })
        };
        parse().ok_or_else(|| format!("{text:?} is not a guard's record"))
    }
}

const MIGRATION: &str = "hapilot-migrate";
const PREFIX: &str = "hapilot";
const UNTOUCHED: &str = "-";

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Numbers { mark, table, priority } = self.numbers;
        let former = |value: Option<u8>| value.map_or(UNTOUCHED.into(), |v| v.to_string());
        let (v4, v6) = (former(self.former.v4), former(self.former.v6));
        write!(f, "{PREFIX}:{}:{mark}:{table}:{priority}:{v4}:{v6}", self.instance)
    }
}

impl FromStr for Record {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| format!("{text:?} is not a record of hapilot"))
    }
}

fn parse(text: &str) -> Option<Record> {
    let parts: Vec<&str> = text.split(':').collect();
    let [PREFIX, instance, mark, table, priority, v4, v6] = parts[..] else {
        return None;
    };
    let (value, bits) = mark.split_once('/')?;
    Some(Record {
        instance: instance.parse().ok()?,
        numbers: Numbers {
            mark: FwMark::new(hex(value)?, hex(bits)?)?,
            table: TableId::new(table.parse().ok()?)?,
            priority: priority.parse().ok()?,
        },
        former: Former { v4: former(v4)?, v6: former(v6)? },
    })
}

fn hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The outer option is the parser's, the inner one the record's.
#[expect(clippy::option_option, reason = "absent in the record is not the same as unreadable")]
fn former(text: &str) -> Option<Option<u8>> {
    if text == UNTOUCHED { Some(None) } else { text.parse().ok().map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_word_and_is_read_back() {
        let record = Record {
            instance: Instance::new(0xdead_beef),
            numbers: Numbers {
                mark: FwMark::new(0x1000_0000, 0x1000_0000).unwrap(),
                table: TableId::new(29_000).unwrap(),
                priority: 170,
            },
            former: Former { v4: Some(0), v6: None },
        };
        let text = record.to_string();
        assert_eq!(text, "hapilot:deadbeef:0x10000000/0x10000000:29000:170:0:-");
        assert_eq!(text.parse(), Ok(record));
    }

    #[test]
    fn a_guards_record_is_read_back_and_is_no_instances_record() {
        let migration = Migration { instance: Instance::new(0xdead_beef), former: 0 };
        let text = migration.to_string();
        assert_eq!(text, "hapilot-migrate:deadbeef:0");
        assert_eq!(text.parse(), Ok(migration));
        assert!(text.parse::<Record>().is_err());
        assert!("hapilot-migrate:deadbeef".parse::<Migration>().is_err());
    }

    #[test]
    fn what_is_not_a_record_is_refused() {
        for text in
            ["", "hapilot", "hapilot:deadbeef:0x1/0x1:0:170:0:-", "x:deadbeef:0x1/0x1:9:1:0:-"]
        {
            assert!(text.parse::<Record>().is_err(), "{text}");
        }
    }
}
