//! SYNs are dropped, by a rule that expires by itself whatever happens to us.
//!
//! The `time` match counts whole seconds, the last one included: so the rule is in force for as long
//! as a guard may be up and up to a second more. It has a beginning as well: a clock that is set back
//! ends it too.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::{SYN_LIMIT, rules};
use crate::host::barrier::{Barrier, Site};

/// A clock is corrected by this much without being set.
const BEFORE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Dropping {
    barrier: Barrier,
}

impl Dropping {
    pub(super) fn raise(site: &Site, ports: &BTreeSet<u16>) -> Result<Self> {
        let time = in_force_from(SystemTime::now());
        let rules = rules(ports, &format!("-m time {time} -j DROP"));
        Barrier::raise(site, &rules).map(|barrier| Self { barrier })
    }

    /// Its counters say how many SYNs were dropped.
    pub(super) fn open(mut self) -> (Result<()>, Barrier) {
        (self.barrier.open(), self.barrier)
    }
}

/// In UTC, as the match takes it.
fn in_force_from(now: SystemTime) -> String {
    let second = |time| {
        let text = humantime::format_rfc3339_seconds(time).to_string();
        text.trim_end_matches('Z').to_owned()
    };
    format!("--datestart {} --datestop {}", second(now - BEFORE), second(now + SYN_LIMIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_ends_with_the_second_in_which_the_guard_must_be_down() {
        for (now, stop) in [
            (86_398_100, "1970-01-01T23:59:58"),
            (86_398_300, "1970-01-01T23:59:59"),
            (86_399_700, "1970-01-02T00:00:00"),
        ] {
            let time = in_force_from(SystemTime::UNIX_EPOCH + Duration::from_millis(now));
            assert!(time.starts_with("--datestart 1970-01-01T23:59:5"), "{time}");
            assert!(time.ends_with(&format!("--datestop {stop}")), "{time}");
        }
    }
}
