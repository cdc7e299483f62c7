//! Decides: whether this host's checks of the way back to a sender drop the packets that carry our
//! mark. The mark leads to a table in which every address is the host's own, and a sender with an
//! address of ours is a forgery to those checks.
//!
//! Measured: strict `rp_filter` alone does no harm, `src_valid_mark` does so with any `rp_filter`;
//! `rpfilter` of iptables stands before our mark, and forwarding is not needed at all.

use super::netlink::{Received, attributes, find, number};
use crate::problem::Problem;

/// `net.ipv4.conf.NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    pub name: String,
    pub rp_filter: u8,
    pub src_valid_mark: u8,
    pub accept_local: u8,
}

/// As the kernel puts `all` and an interface together (`IN_DEV_ORCONF`, `IN_DEV_MAXCONF`).
#[must_use]
pub fn by_sysctl(all: &Checks, each: &[Checks]) -> Option<Problem> {
    let drops = |one: &&Checks| {
        let marked = all.src_valid_mark | one.src_valid_mark != 0;
        let local = all.accept_local | one.accept_local != 0;
        marked && !(local && all.rp_filter.max(one.rp_filter) != STRICT)
    };
    let names: Vec<&str> = each.iter().filter(drops).map(|one| one.name.as_str()).collect();
    let first = names.first()?;
    let place = if all.src_valid_mark != 0 { "all" } else { first };
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(Problem::new(
        format!(
            "net.ipv4.conf.{place}.src_valid_mark=1 (wg-quick sets it) makes the kernel drop marked \
             packets on {shown}{more}: clients of transparent proxying time out over IPv4"
        ),
        format!(
            "on each interface towards servers, and towards clients for HAPROXY_INTERCEPT: sysctl -w \
             net.ipv4.conf.{first}.accept_local=1 net.ipv4.conf.{first}.rp_filter=2 (WireGuard goes on \
             working); or set src_valid_mark=0"
        ),
    ))
}

const STRICT: u8 = 1;
/// Names in one warning.
const SHOWN: usize = 3;

/// A chain of nftables as far as it matters where its rules are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub family: u8,
    pub table: String,
    pub name: String,
    /// Hook and priority, unless only other chains lead there.
    pub hook: Option<(u32, i32)>,
}

/// A rule that looks up the way to the sender by mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    pub family: u8,
    pub table: String,
    pub chain: String,
}

const IPV4: u8 = 2;
const INET: u8 = 1;
const IPV6: u8 = 10;
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
/// Where packets get our mark.
const MANGLE: i32 = -150;
/// `NFTA_FIB_F_SADDR` and `NFTA_FIB_F_MARK`.
const BY_SENDER_AND_MARK: u32 = 1 | 4;
/// `NFT_FIB_RESULT_OIF` and `NFT_FIB_RESULT_OIFNAME`.
const INTERFACE: [u32; 2] = [1, 2];

#[must_use]
pub fn chain(message: &Received<'_>) -> Option<Chain> {
    let hook = find(message.attributes(), 4).map(|hook| {
        let number =
            |kind| find(attributes(hook), kind).and_then(number).map_or(0, u32::from_be_bytes);
        (number(1), number(2).cast_signed())
    });
    let (family, table, name) = names(message, 3)?;
    Some(Chain { family, table, name, hook })
}

#[must_use]
pub fn lookup(message: &Received<'_>) -> Option<Lookup> {
    let expressions = find(message.attributes(), 4).unwrap_or_default();
    let looks_up = |expression: &[u8]| {
        let data = find(attributes(expression), 2).unwrap_or_default();
        let number =
            |kind| find(attributes(data), kind).and_then(number).map_or(0, u32::from_be_bytes);
        find(attributes(expression), 1) == Some(b"fib\0")
            && number(3) & BY_SENDER_AND_MARK == BY_SENDER_AND_MARK
            && INTERFACE.contains(&number(2))
    };
    attributes(expressions).any(|(_, expression)| looks_up(expression)).then_some(())?;
    let (family, table, chain) = names(message, 2)?;
    Some(Lookup { family, table, chain })
}

fn names(message: &Received<'_>, of_chain: u16) -> Option<(u8, String, String)> {
    let family = *message.body().first()?;
    let text = |kind| {
        let bytes = find(message.attributes(), kind)?;
        Some(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
    };
    [INET, IPV4, IPV6].contains(&family).then_some(())?;
    Some((family, text(1)?, text(of_chain)?))
}

/// Those that are asked after our mark is set.
#[must_use]
pub fn by_rules(chains: &[Chain], lookups: &[Lookup]) -> Vec<Problem> {
    let after_us = |lookup: &&Lookup| {
        let own = chains.iter().find(|chain| {
            (chain.family, &chain.table, &chain.name)
                == (lookup.family, &lookup.table, &lookup.chain)
        });
        match own.and_then(|chain| chain.hook) {
            Some((PREROUTING, priority)) => priority > MANGLE,
            Some((hook, _)) => hook == INPUT,
            // Which chains lead there is not followed.
            None => true,
        }
    };
    let mut seen: Vec<&Lookup> = Vec::new();
    for lookup in lookups.iter().filter(after_us) {
        if !seen.contains(&lookup) {
            seen.push(lookup);
        }
    }
    seen.into_iter().map(problem).collect()
}

fn problem(lookup: &Lookup) -> Problem {
    let Lookup { family, table, chain } = lookup;
    let family = match *family {
        IPV4 => "ip",
        IPV6 => "ip6",
        _ => "inet",
    };
    let which = format!("nftables chain {family} {table} {chain}");
    if table == "firewalld" {
        return Problem::new(
            format!("{which} looks up senders by mark and drops packets of transparent proxying"),
            "set IPv6_rpfilter=no in /etc/firewalld/firewalld.conf, then firewall-cmd --reload",
        );
    }
    Problem::new(
        format!(
            "{which} looks up senders by mark (fib saddr . mark) and may drop packets of \
                 transparent proxying"
        ),
        format!(
            "write that rule without mark (fib saddr . iif), or in a chain with a priority below \
                 {MANGLE}: nft -a list chain {family} {table} {chain}"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(name: &str, rp_filter: u8, src_valid_mark: u8, accept_local: u8) -> Checks {
        Checks { name: name.into(), rp_filter, src_valid_mark, accept_local }
    }

    /// Each row was tried with real packets.
    #[test]
    fn marks_that_count_for_senders_are_a_problem_unless_local_senders_are_accepted() {
        let drops = |all: (u8, u8, u8), one: (u8, u8, u8)| {
            let each = [checks("eth0", one.0, one.1, one.2)];
            by_sysctl(&checks("all", all.0, all.1, all.2), &each).is_some()
        };
        for (all, one, expected) in [
            ((0, 0, 0), (0, 0, 0), false),
            ((1, 0, 0), (1, 0, 0), false),
            ((1, 1, 0), (1, 0, 0), true),
            ((1, 1, 0), (2, 0, 0), true),
            ((1, 1, 0), (2, 0, 1), false),
            ((1, 1, 0), (1, 0, 1), true),
            ((0, 1, 0), (0, 0, 0), true),
            ((0, 1, 0), (0, 0, 1), false),
            ((0, 0, 0), (0, 1, 0), true),
            ((0, 0, 0), (0, 1, 1), false),
            ((0, 1, 1), (0, 0, 0), false),
        ] {
            assert_eq!(drops(all, one), expected, "{all:?} {one:?}");
        }
    }

    #[test]
    fn the_first_interfaces_are_named_with_the_command() {
        let each: Vec<_> = ["a", "b", "c", "d"].map(|name| checks(name, 0, 0, 0)).into();
        let told = by_sysctl(&checks("all", 1, 1, 0), &each).unwrap().to_string();
        for words in ["conf.all.src_valid_mark=1", "a, b, c and 1 more", "conf.a.accept_local=1"] {
            assert!(told.contains(words), "{words}: {told}");
        }
        assert_eq!(by_sysctl(&checks("all", 1, 1, 0), &[]), None);
    }

    #[test]
    fn a_lookup_counts_where_it_comes_after_the_mark() {
        let told = |hook: Option<(u32, i32)>| {
            let (table, name) = ("x".to_owned(), "p".to_owned());
            let lookup = Lookup { family: INET, table: table.clone(), chain: name.clone() };
            by_rules(&[Chain { family: INET, table, name, hook }], &[lookup.clone(), lookup]).len()
        };
        for (hook, expected) in [
            (Some((PREROUTING, -300)), 0),
            (Some((PREROUTING, MANGLE)), 0),
            (Some((PREROUTING, -140)), 1),
            (Some((PREROUTING, 10)), 1),
            (Some((INPUT, -300)), 1),
            (Some((2, 0)), 0),
            (None, 1),
        ] {
            assert_eq!(told(hook), expected, "{hook:?}");
        }
        let firewalld = Lookup { family: INET, table: "firewalld".into(), chain: "p".into() };
        assert!(by_rules(&[], &[firewalld])[0].mend.contains("IPv6_rpfilter=no"));
    }
}
