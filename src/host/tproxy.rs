//! Decides: which mark, table and priority we take on this host, given what others use.

use std::collections::BTreeSet;

use super::mark::{FwMark, TableId};
use super::record::Numbers;
use super::saved::claimed;
use crate::problem::Problem;

/// Where we begin to look for a table. Numbers, not names: nobody's file has to change.
pub const FIRST_TABLE: u32 = 29_000;
/// How many tables we look at.
pub const TABLES: u32 = 100;

/// Ahead of the policy rules of VPNs (`wg-quick` 32764, Tailscale 5210) and the kernel's own VRF
/// rule (1000): whoever is first gets our packets.
const PRIORITIES: std::ops::Range<u32> = 170..1000;

/// A policy rule as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    pub priority: u32,
    pub mark: u32,
    pub mask: u32,
    pub table: u32,
    pub protocol: u8,
}

/// What is there already, of both protocols.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    pub rules: Vec<Rule>,
    /// Tables that hold a route.
    pub tables: BTreeSet<u32>,
    /// Bits of the mark that firewall rules use; hapilots' records included.
    pub marks: u32,
}

/// What the operator fixed (`HAPROXY_MARK`, `HAPROXY_TABLE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    pub mark: Option<FwMark>,
    pub table: Option<TableId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub numbers: Numbers,
    /// Where a fixed number is somebody else's too.
    pub warnings: Vec<Problem>,
}

impl Picture {
    fn marks_in_use(&self) -> u32 {
        self.rules.iter().fold(self.marks, |bits, rule| bits | claimed(rule.mark, rule.mask))
    }

    /// By a route or by a rule.
    #[must_use]
    pub fn table_in_use(&self, table: u32) -> bool {
        self.tables.contains(&table) || self.rules.iter().any(|rule| rule.table == table)
    }
}

/// What the operator fixed wins, with a warning; the rest is chosen free.
pub fn choose(picture: &Picture, fixed: Fixed) -> Result<Choice, Problem> {
    let numbers = Numbers {
        mark: fixed.mark.map_or_else(|| free_mark(picture), Ok)?,
        table: fixed.table.map_or_else(|| free_table(picture), Ok)?,
        priority: free_priority(picture)?,
    };
    let mark = fixed.mark.and_then(|mark| mark_warning(picture, mark));
    let table = fixed.table.and_then(|table| table_warning(picture, table));
    Ok(Choice { numbers, warnings: mark.into_iter().chain(table).collect() })
}

/// One bit. From 28 up first: Kubernetes, Docker and VPN tools begin at the other end, and those
/// that take high bits take them by a mask that is seen here.
fn free_mark(picture: &Picture) -> Result<FwMark, Problem> {
    let used = picture.marks_in_use();
    (28..32)
        .chain((0..28).rev())
        .map(|bit| 1 << bit)
        .find(|bit| used & bit == 0)
        .and_then(|bit| FwMark::new(bit, bit))
        .ok_or_else(|| {
            Problem::new(
                "every bit of the firewall mark is in use on this host",
                "set HAPROXY_MARK=VALUE/MASK to bits that you can spare",
            )
        })
}

fn free_table(picture: &Picture) -> Result<TableId, Problem> {
    (FIRST_TABLE..FIRST_TABLE + TABLES)
        .find(|table| !picture.table_in_use(*table))
        .and_then(TableId::new)
        .ok_or_else(|| {
            Problem::new(
                format!(
                    "the routing tables {FIRST_TABLE} to {} are all in use",
                    FIRST_TABLE + TABLES - 1
                ),
                "set HAPROXY_TABLE to one that is free",
            )
        })
}

fn free_priority(picture: &Picture) -> Result<u32, Problem> {
    PRIORITIES.clone().find(|p| picture.rules.iter().all(|rule| rule.priority != *p)).ok_or_else(
        || {
            Problem::new(
                format!(
                    "no priority from {} to {} is free for a policy rule",
                    PRIORITIES.start,
                    PRIORITIES.end - 1
                ),
                "remove rules that nobody needs ('ip rule', 'ip -6 rule')",
            )
        },
    )
}

fn mark_warning(picture: &Picture, mark: FwMark) -> Option<Problem> {
    let shared = picture.marks_in_use() & claimed(mark.value(), mark.mask());
    (shared != 0).then(|| {
        Problem::new(
            format!("HAPROXY_MARK={mark}: the bits {shared:#x} are used by other rules too"),
            "leave HAPROXY_MARK away and a free bit is chosen",
        )
    })
}

fn table_warning(picture: &Picture, table: TableId) -> Option<Problem> {
    picture.table_in_use(table.number()).then(|| {
        Problem::new(
            format!("HAPROXY_TABLE={table}: that table is used by others too"),
            "leave HAPROXY_TABLE away and a free one is chosen",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(priority: u32, mark: u32, bits: u32, table: u32) -> Rule {
        Rule { priority, mark, mask: bits, table, protocol: 0 }
    }

    fn kernels_own() -> Vec<Rule> {
        vec![rule(0, 0, 0, 255), rule(32766, 0, 0, 254), rule(32767, 0, 0, 253)]
    }

    fn numbers(picture: &Picture) -> Numbers {
        choose(picture, Fixed::default()).unwrap().numbers
    }

    #[test]
    fn on_an_empty_host_the_first_of_each_is_taken() {
        let picture = Picture { rules: kernels_own(), ..Picture::default() };
        let Numbers { mark, table, priority } = numbers(&picture);
        assert_eq!((mark.value(), mark.mask()), (1 << 28, 1 << 28));
        assert_eq!((table.number(), priority), (29_000, 170));
    }

    #[test]
    fn bits_of_kubernetes_tailscale_and_a_mark_without_a_mask_are_left_alone() {
        let mut rules = kernels_own();
        rules.push(rule(5210, 0x8_0000, 0x00ff_0000, 52));
        rules.push(rule(100, 1, u32::MAX, 100));
        let taken = 0xf000_0000 | 0x4000 | 0x8000;
        let picture = Picture { rules, marks: taken, ..Picture::default() };
        assert_eq!(numbers(&picture).mark.value(), 1 << 27);
        // Everything but what they leave: only a bit that is nobody's may come out.
        let crowded = Picture { marks: !(0x00ff_0000 | 0x1 | 0x20), ..picture };
        assert_eq!(numbers(&crowded).mark.value(), 0x20);
    }

    #[test]
    fn busy_tables_and_priorities_are_passed_over() {
        let mut rules = kernels_own();
        rules.push(rule(170, 0, 0, 29_000));
        rules.push(rule(171, 0, 0, 254));
        let picture = Picture { rules, tables: BTreeSet::from([29_001]), marks: 0 };
        let Numbers { table, priority, .. } = numbers(&picture);
        assert_eq!((table.number(), priority), (29_002, 172));
    }

    #[test]
    fn what_the_operator_fixed_wins_and_a_collision_is_told() {
        let picture = Picture {
            rules: vec![rule(100, 1, u32::MAX, 100)],
            tables: BTreeSet::from([100]),
            marks: 0,
        };
        let fixed = Fixed { mark: FwMark::new(1, 1), table: TableId::new(100) };
        let choice = choose(&picture, fixed).unwrap();
        assert_eq!(choice.numbers.mark.to_string(), "0x1/0x1");
        assert_eq!(choice.numbers.table.number(), 100);
        assert_eq!(choice.warnings.len(), 2);
        let free = Fixed { mark: FwMark::new(2, 2), table: TableId::new(101) };
        assert_eq!(choose(&picture, free).unwrap().warnings, []);
    }

    #[test]
    fn a_host_without_a_free_bit_is_a_problem_that_names_the_variable() {
        let picture = Picture { marks: u32::MAX, ..Picture::default() };
        let problem = choose(&picture, Fixed::default()).unwrap_err();
        assert!(problem.mend.contains("HAPROXY_MARK"), "{problem}");
    }
}
