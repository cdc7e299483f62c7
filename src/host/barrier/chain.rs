//! Acts: the chain of iptables in which a guard does its work on SYNs: `HAPILOT-<instance>-GUARD`.
//!
//! It is first in PREROUTING: our other chains end the way of a packet (ACCEPT, TPROXY), so a guard
//! behind them would miss what they take. Packets over loopback come by here too. One transaction
//! for each protocol, both at the same time, since every millisecond in here is a client's.
//! It bears our name, so the sweep finds it after a kill.
//!
//! What drops expires by the `time` match, which counts whole seconds, the last one included. It has
//! a beginning as well: a clock that is set back ends it too.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};

use super::{Fate, Site};
use crate::host::instance::{ChainName, Purpose};
use crate::host::iptables::Iptables;
use crate::host::plan::jump_to;
use crate::host::record::Migration;
use crate::host::step::{Place, Program, Undo};
use crate::process::together::each;

const FROM: &str = "PREROUTING";

/// A clock is corrected by this much without being set.
const BEFORE: Duration = Duration::from_secs(2);

/// Its calls wait for programs.
#[derive(Clone, Debug)]
pub(super) struct InChain {
    chain: ChainName,
    places: Vec<Place>,
    rules: Vec<String>,
    /// Whether packets are led into the chain.
    jump: Option<String>,
    /// For one program.
    limit: Duration,
}

fn places(site: &Site, program: Program) -> Vec<Place> {
    site.families.iter().map(|&family| Place { program, family }).collect()
}

impl InChain {
    pub(super) fn new(
        site: &Site,
        program: Program,
        ports: &BTreeSet<u16>,
        fate: Fate,
        expiry: Duration,
    ) -> Self {
        let rest = match fate {
            Fate::Dropped => {
                format!("-m time {} -j DROP", in_force_from(SystemTime::now(), expiry))
            }
            Fate::Held { queue } => format!("-j NFQUEUE --queue-num {queue} --queue-bypass"),
        };
        let chain = ChainName { instance: site.instance, purpose: Purpose::Guard };
        let (rules, jump) = (rules(ports, &rest), Some(jump_to(chain)));
        Self { chain, places: places(site, program), rules, jump, limit: site.limit }
    }

    pub(super) fn note(site: &Site, program: Program, migration: Migration) -> Self {
        let mut places = places(site, program);
        places.truncate(1);
        let chain = ChainName { instance: site.instance, purpose: Purpose::Guard };
        let rules = vec![format!("-m comment --comment {migration} -j RETURN")];
        Self { chain, places, rules, jump: None, limit: site.limit }
    }

    /// On failure some of it may be there.
    pub(super) fn make(&self) -> Result<()> {
        let chain = self.chain;
        let mut lines = vec![format!(":{chain} - [0:0]")];
        lines.extend(self.rules.iter().map(|rule| format!("-A {chain} {rule}")));
        lines.extend(self.jump.iter().map(|jump| format!("-I {FROM} 1 {jump}")));
        let made = self.everywhere(|iptables, place| iptables.transaction(place, &lines));
        let made: Result<()> = made.into_iter().collect();
        made.with_context(|| format!("make chain {chain}"))
    }

    /// In each place the chain, and then what leads there.
    pub(super) fn undos(&self) -> Vec<Undo> {
        let chain = self.chain;
        let in_place = |&place: &Place| {
            let jump = self.jump.iter().map(move |rule| {
                let (from, rule) = (FROM.to_owned(), rule.clone());
                Undo::RemoveJump { place, from, rule }
            });
            [Undo::RemoveChain { place, chain }].into_iter().chain(jump)
        };
        self.places.iter().flat_map(in_place).collect()
    }

    /// Packets that the rules of the chain dropped.
    pub(super) fn dropped(&self) -> Result<u64> {
        let chain = format!("-A {} ", self.chain);
        let mut packets = 0;
        for answer in self.everywhere(|iptables, place| {
            let program = place.program.save_command(place.family);
            iptables.output(program, &["-c", "-t", "mangle"])
        }) {
            packets += count(&answer.context("read the guard's counters")?, &chain);
        }
        Ok(packets)
    }

    /// Adding a rule takes a third of the time that `nf_tables` needs to remove one.
    pub(super) fn open(&self) -> Result<()> {
        let line = [format!("-I {} 1 -j RETURN", self.chain)];
        let answers = self.everywhere(|iptables, place| iptables.transaction(place, &line));
        answers.into_iter().collect()
    }

    pub(super) fn lower(&self) -> Result<()> {
        let failures: Vec<String> = self
            .everywhere(|iptables, place| self.remove(iptables, place))
            .into_iter()
            .filter_map(Result::err)
            .map(|error| format!("{error:#}"))
            .collect();
        if failures.is_empty() {
            return Ok(());
        }
        Err(anyhow!("remove chain {}: {}", self.chain, failures.join("; ")))
    }

    fn remove(&self, iptables: &Iptables, place: Place) -> Result<()> {
        let chain = self.chain;
        let mut lines: Vec<String> =
            self.jump.iter().map(|jump| format!("-D {FROM} {jump}")).collect();
        lines.extend([format!("-F {chain}"), format!("-X {chain}")]);
        if iptables.transaction(place, &lines).is_ok() {
            return Ok(());
        }
        // Somebody flushed a part of it, or it never was whole: what is there, one by one.
        if let Some(jump) = &self.jump {
            iptables.delete(place, FROM, jump)?;
        }
        iptables.remove_chain(place, chain)
    }

    /// For each protocol at the same time.
    fn everywhere<T: Send>(
        &self,
        what: impl Fn(&Iptables, Place) -> Result<T> + Sync,
    ) -> Vec<Result<T>> {
        each(&self.places, |&place| {
            let mut iptables = Iptables::default();
            // The first call may take half of it.
            iptables.finish_by(Instant::now() + 2 * self.limit);
            what(&iptables, place)
        })
    }
}

/// Matches of these ports, as many rules as `multiport` needs: it takes fifteen.
fn rules(ports: &BTreeSet<u16>, rest: &str) -> Vec<String> {
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    ports
        .chunks(15)
        .map(|ports| format!("-p tcp -m multiport --dports {} {rest}", ports.join(",")))
        .collect()
}

/// In UTC, as the match takes it.
fn in_force_from(now: SystemTime, expiry: Duration) -> String {
    let second = |time| {
        let text = humantime::format_rfc3339_seconds(time).to_string();
        text.trim_end_matches('Z').to_owned()
    };
    format!("--datestart {} --datestop {}", second(now - BEFORE), second(now + expiry))
}

/// `[7:420] -A CHAIN rule`, as `iptables-save -c` prints it.
fn count(saved: &str, chain: &str) -> u64 {
    saved
        .lines()
        .filter_map(|line| line.strip_prefix('[')?.split_once("] "))
        .filter(|(_, rule)| rule.starts_with(chain) && rule.ends_with("-j DROP"))
        .filter_map(|(counters, _)| counters.split(':').next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_packets_of_our_own_chain_are_counted() {
        let saved = "*mangle\n:A-GUARD - [0:0]\n[9:1] -A PREROUTING -j A-GUARD\n\
                     [7:420] -A A-GUARD -p tcp -j DROP\n[5:300] -A A-GUARD -j DROP\n[2:9] -A A-GUARD -j RETURN\nCOMMIT\n";
        assert_eq!(count(saved, "-A A-GUARD "), 12);
    }

    #[test]
    fn more_ports_than_one_rule_takes_become_more_rules() {
        let got = rules(&(1..=31).collect(), "-j DROP");
        assert_eq!(got.len(), 3);
        assert_eq!(got[2], "-p tcp -m multiport --dports 31 -j DROP");
    }

    #[test]
    fn the_rule_ends_with_the_second_in_which_the_guard_must_be_down() {
        for (now, stop) in [
            (86_398_100, "1970-01-01T23:59:58"),
            (86_398_300, "1970-01-01T23:59:59"),
            (86_399_700, "1970-01-02T00:00:00"),
        ] {
            let now = SystemTime::UNIX_EPOCH + Duration::from_millis(now);
            let time = in_force_from(now, Duration::from_millis(800));
            assert!(time.starts_with("--datestart 1970-01-01T23:59:5"), "{time}");
            assert!(time.ends_with(&format!("--datestop {stop}")), "{time}");
        }
    }
}
