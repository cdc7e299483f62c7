//! Looks at what is in force in every place where a hapilot may have written.

use anyhow::{Context, Result};

use super::instance::{ChainName, Instance, Purpose};
use super::iptables::Iptables;
use super::lease;
use super::record::Record;
use super::saved::Saved;
use super::step::{Family, Place, Program, Step};
use crate::process::together::each;

#[derive(Clone, Debug, Default)]
pub struct Survey {
    pub places: Vec<(Place, Saved)>,
}

impl Survey {
    pub fn take(iptables: &Iptables, programs: &[Program], families: &[Family]) -> Result<Self> {
        let of = |&program: &Program| families.iter().map(move |&family| Place { program, family });
        let places: Vec<Place> = programs.iter().flat_map(of).collect();
        let saved = each(&places, |&place| {
            let saved = iptables.saved(place);
            Ok((place, saved.with_context(|| format!("read the rules of {place}"))?))
        });
        Ok(Self { places: saved.into_iter().collect::<Result<_>>()? })
    }

    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.places.iter().flat_map(|(_, saved)| &saved.records)
    }

    /// Of every instance that lives, but for `us`.
    pub fn living_records(&self, us: Option<Instance>) -> Result<Vec<Record>> {
        let mut living = Vec::new();
        for record in self.records() {
            let other = Some(record.instance) != us && !living.contains(record);
            if other && lease::lives(record.instance)? {
                living.push(*record);
            }
        }
        Ok(living)
    }

    /// Places in which a chain, a rule or a jump of these steps is not there any more.
    #[must_use]
    pub fn broken(&self, us: Instance, steps: &[Step]) -> Vec<Place> {
        let whole = |place: Place, saved: &Saved| {
            let here = || steps.iter().filter(move |step| step.place() == Some(place));
            let jumps = here().filter(|step| matches!(step, Step::Jump { .. })).count();
            let entries = here().filter(|step| matches!(step, Step::Entry { .. })).count();
            // A guard comes and goes by itself.
            let ours = |chain: &ChainName| chain.instance == us && chain.purpose != Purpose::Guard;
            let entered = saved.entries.iter().filter(|(chain, _)| ours(chain));
            saved.jumps.iter().filter(|jump| ours(&jump.to)).count() == jumps
                && entered.map(|(_, count)| count).sum::<usize>() == entries
        };
        let places = self.places.iter().filter(|(place, saved)| !whole(*place, saved));
        places.map(|(place, _)| *place).collect()
    }

    /// Rules of others that this program sees.
    #[must_use]
    pub fn foreign_rules(&self, program: Program) -> usize {
        let seen = self.places.iter().filter(|(place, _)| place.program == program);
        seen.map(|(_, saved)| saved.foreign_rules).sum()
    }
}
