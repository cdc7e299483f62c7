//! SYNs are dropped, by a rule that expires by itself whatever happens to us.
//!
//! The `time` match counts whole seconds: with a stop at the next one the rule is in force for one
//! to two seconds, longer than any guard of ours and shorter than anybody would notice of a kill.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::rules;
use crate::host::barrier::{Barrier, Site};

const EXPIRES_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Dropping {
    barrier: Barrier,
}

impl Dropping {
    pub(super) fn raise(site: &Site, ports: &BTreeSet<u16>) -> Result<Self> {
        let expiry = expiry(SystemTime::now());
        let rules = rules(ports, &format!("-m time --datestop {expiry} -j DROP"));
        Barrier::raise(site, &rules).map(|barrier| Self { barrier })
    }

    /// And how many SYNs were dropped.
    pub(super) fn lower(mut self) -> (Result<()>, u64) {
        let dropped = self.barrier.packets();
        let lowered = self.barrier.lower();
        match dropped {
            Ok(dropped) => (lowered, dropped),
            Err(error) => (lowered.and(Err(error)), 0),
        }
    }
}

/// UTC, as the match takes it: the rule still holds during that second.
fn expiry(now: SystemTime) -> String {
    let stop = humantime::format_rfc3339_seconds(now + EXPIRES_AFTER).to_string();
    stop.trim_end_matches('Z').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_ends_with_the_next_second_in_utc() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(86_399_700);
        assert_eq!(expiry(now), "1970-01-02T00:00:00");
    }
}
