//! The chain in which a guard does its work on SYNs: `HAPILOT-<instance>-GUARD`.
//!
//! It is first in PREROUTING: our other chains end the way of a packet (ACCEPT, TPROXY), so a guard
//! behind them would miss what they take. Packets over loopback come by here too. One transaction
//! for each protocol, both at the same time, since every millisecond in here is a client's.
//! It bears our name, so the sweep finds it after a kill.

use anyhow::{Context, Result, anyhow};
use tracing::warn;

use super::instance::{ChainName, Instance, Purpose};
use super::iptables::Iptables;
use super::plan::jump_to;
use super::record::Migration;
use super::step::{Family, Place, Program};

const FROM: &str = "PREROUTING";

/// Where a guard may put its rules.
#[derive(Clone, Debug)]
pub struct Site {
    pub instance: Instance,
    /// `None`: no iptables program works here.
    pub program: Option<Program>,
    pub families: Vec<Family>,
}

/// Rules in force. Dropped, they are removed as well, but nobody hears whether that worked.
#[derive(Debug)]
pub struct Barrier {
    chain: ChainName,
    places: Vec<Place>,
    /// Whether packets are led into the chain.
    jump: Option<String>,
    up: bool,
}

impl Site {
    fn chain(&self) -> ChainName {
        ChainName { instance: self.instance, purpose: Purpose::Guard }
    }

    fn places(&self) -> Result<Vec<Place>> {
        let program = self.program.context("no iptables program works here")?;
        Ok(self.families.iter().map(|&family| Place { program, family }).collect())
    }
}

impl Barrier {
    /// SYNs go through these rules from now on.
    pub fn raise(site: &Site, rules: &[String]) -> Result<Self> {
        let jump = jump_to(site.chain());
        Self::build(site, site.places()?, rules, Some(jump))
    }

    /// Only for the sweep to find; no packet comes here.
    pub fn note(site: &Site, migration: Migration) -> Result<Self> {
        let mut places = site.places()?;
        places.truncate(1);
        Self::build(site, places, &[format!("-m comment --comment {migration} -j RETURN")], None)
    }

    fn build(
        site: &Site,
        places: Vec<Place>,
        rules: &[String],
        jump: Option<String>,
    ) -> Result<Self> {
        let chain = site.chain();
        let mut lines = vec![format!(":{chain} - [0:0]")];
        lines.extend(rules.iter().map(|rule| format!("-A {chain} {rule}")));
        lines.extend(jump.iter().map(|jump| format!("-I {FROM} 1 {jump}")));
        // From here on dropping it takes back whatever of it is there.
        let barrier = Self { chain, places, jump, up: true };
        for answer in barrier.everywhere(|iptables, place| iptables.transaction(place, &lines)) {
            answer.with_context(|| format!("make chain {chain}"))?;
        }
        Ok(barrier)
    }

    /// Packets that the rules of the chain dropped.
    pub fn dropped(&self) -> Result<u64> {
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

    /// From here on no packet is stopped. Adding a rule takes a third of the time that `nf_tables`
    /// needs to remove one.
    pub fn open(&mut self) -> Result<()> {
        let line = [format!("-I {} 1 -j RETURN", self.chain)];
        let answers = self.everywhere(|iptables, place| iptables.transaction(place, &line));
        if answers.iter().all(Result::is_ok) { Ok(()) } else { self.lower() }
    }

    /// Afterwards nothing of it is there. Goes on past failures. Twice is not an error.
    pub fn lower(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.up) {
            return Ok(());
        }
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
        let what = &what;
        std::thread::scope(|scope| {
            let one = |place: Place| scope.spawn(move || what(&Iptables::default(), place));
            let all: Vec<_> = self.places.iter().map(|&place| one(place)).collect();
            all.into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("it panicked"))))
                .collect()
        })
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        if let Err(error) = self.lower() {
            warn!("{error:#}");
        }
    }
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
}
