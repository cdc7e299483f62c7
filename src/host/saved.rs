//! Decides: what a text from `iptables-save` says. The same form from `nf_tables` and legacy.

use std::collections::BTreeMap;

use super::instance::ChainName;
use super::record::{Migration, Record};

/// What is in force in one place, as far as it matters to us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Our kind of chain, of any instance, in the mangle table.
    pub chains: Vec<ChainName>,
    pub records: Vec<Record>,
    pub jumps: Vec<Jump>,
    /// Guards that wrote `net.ipv4.tcp_migrate_req`, and what it was before.
    pub migrations: Vec<Migration>,
    /// How many rules each of our chains has.
    pub entries: BTreeMap<ChainName, usize>,
    /// Rules that are no hapilot's, in every table.
    pub foreign_rules: usize,
    /// Bits of the firewall mark that such rules use.
    pub marks: u32,
}

/// A rule that leads into one of our chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jump {
    pub from: String,
    /// As `-D` wants it.
    pub rule: String,
    pub to: ChainName,
}

impl Saved {
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut saved = Self::default();
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some(chain) = line.strip_prefix(':') {
                saved.chain(table, chain);
            } else if let Some(rule) = line.strip_prefix("-A ") {
                saved.rule(table, rule);
            }
        }
        saved
    }

    fn chain(&mut self, table: &str, line: &str) {
        let name = line.split(' ').next().and_then(|name| name.parse::<ChainName>().ok());
        if table == "mangle" {
            self.chains.extend(name);
        }
    }

    fn rule(&mut self, table: &str, line: &str) {
        let Some((chain, rule)) = line.split_once(' ') else {
            return;
        };
        let own =
            |name: &str| (table == "mangle").then(|| name.parse::<ChainName>().ok()).flatten();
        let target = after(rule, "-j").or_else(|| after(rule, "-g")).and_then(own);
        if let Some(owner) = own(chain) {
            *self.entries.entry(owner).or_default() += 1;
            // A record counts only where that instance itself would write it.
            let record = after(rule, "--comment").and_then(|text| text.parse::<Record>().ok());
            self.records.extend(record.filter(|r| r.instance == owner.instance));
            let migration = after(rule, "--comment").and_then(|t| t.parse::<Migration>().ok());
            self.migrations.extend(migration.filter(|m| m.instance == owner.instance));
        } else if let Some(to) = target {
            self.jumps.push(Jump { from: chain.into(), rule: rule.into(), to });
        } else {
            self.foreign_rules += 1;
            self.marks |= marks_in_rule(rule);
        }
    }
}

/// The word after an option.
fn after<'a>(rule: &'a str, option: &str) -> Option<&'a str> {
    let mut words = rule.split(' ');
    words.find(|word| *word == option)?;
    words.next().map(|word| word.trim_matches('"'))
}

/// Every option that has to do with a mark has it in its name: `--set-xmark`, `--mark`,
/// `--tproxy-mark`, `--nfmask`, `--ctmask`.
fn marks_in_rule(rule: &str) -> u32 {
    let words: Vec<&str> = rule.split(' ').collect();
    words
        .windows(2)
        .filter(|pair| {
            let option = pair[0];
            option.starts_with("--") && (option.ends_with("mark") || option.ends_with("mask"))
        })
        .map(|pair| {
            let (value, mask) = pair[1].split_once('/').unwrap_or((pair[1], "0xffffffff"));
            claimed(number(value).unwrap_or(0), number(mask).unwrap_or(u32::MAX))
        })
        .fold(0, |bits, more| bits | more)
}

/// Whoever uses a mask owns its bits. Whoever uses none (`--set-mark 1`) means the value: taking
/// all 32 bits as used would leave nothing to anybody.
#[must_use]
pub fn claimed(value: u32, mask: u32) -> u32 {
    if mask == u32::MAX { value } else { mask | value }
}

/// Bits of the mark in what `nft list ruleset` prints. Not a parser: on a line that speaks of a
/// mark every number counts, since a bit too many costs nothing.
#[must_use]
pub fn marks_in_ruleset(text: &str) -> u32 {
    text.lines()
        .filter(|line| line.split_whitespace().any(|word| word == "mark"))
        .filter(|line| !line.contains("HAPILOT-"))
        .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric()))
        .filter_map(number)
        .map(|bits| match bits.count_ones() {
            32 => 0,
            // `and 0xfffeffff` clears one bit.
            17.. => !bits,
            _ => bits,
        })
        .fold(0, |bits, more| bits | more)
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
# Generated by iptables-nft-save v1.8.9
*mangle
:PREROUTING ACCEPT [0:0]
:HAPILOT-00000001 - [0:0]
:HAPILOT-00000001-TPROXY - [0:0]
:HAPILOT-mine - [0:0]
-A PREROUTING -p tcp -m socket --transparent -j HAPILOT-00000001
-A PREROUTING ! -i lo -p tcp -j HAPILOT-00000001-TPROXY
-A PREROUTING -j MARK --set-xmark 0x1/0xffffffff
-A HAPILOT-00000001 -m comment --comment \"hapilot:00000001:0x2/0x2:29000:170:0:-\" -j MARK --set-xmark 0x2/0x2
-A HAPILOT-00000001 -j ACCEPT
-A HAPILOT-00000001-TPROXY -p tcp -m tcp --dport 80 -j TPROXY --on-port 8080 --on-ip 0.0.0.0 --tproxy-mark 0x2/0x2
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A ts-input -m mark --mark 0x40000/0xff0000 -j ACCEPT
COMMIT
";

    #[test]
    fn ours_is_told_from_what_is_somebody_elses() {
        let saved = Saved::parse(SAVED);
        assert_eq!(saved.chains.len(), 2);
        assert_eq!(saved.records.len(), 1);
        assert_eq!(saved.records[0].former.v4, Some(0));
        let jumps: Vec<_> =
            saved.jumps.iter().map(|j| (j.from.as_str(), j.rule.as_str())).collect();
        assert_eq!(
            jumps,
            [
                ("PREROUTING", "-p tcp -m socket --transparent -j HAPILOT-00000001"),
                ("PREROUTING", "! -i lo -p tcp -j HAPILOT-00000001-TPROXY"),
            ]
        );
        assert_eq!(saved.foreign_rules, 3);
        assert_eq!(saved.marks, 0x1 | 0x4000 | 0x00ff_0000);
    }

    #[test]
    fn a_record_in_a_chain_of_another_name_does_not_count() {
        let forged = "*mangle\n-A HAPILOT-00000002 -m comment --comment hapilot:00000001:0x2/0x2:9:1:0:- -j ACCEPT\n";
        assert_eq!(Saved::parse(forged).records, []);
    }

    #[test]
    fn an_nft_ruleset_gives_its_mark_bits() {
        let text =
            "meta mark set meta mark | 0x00004000\nmeta mark & 0x00ff0000 == 0x00080000 accept
            meta mark set meta mark and 0xfffeffff\ntcp dport 443 accept\nct mark set 0x2 # x";
        assert_eq!(marks_in_ruleset(text), 0x4000 | 0x00ff_0000 | 0x1_0000 | 0x2);
    }
}
