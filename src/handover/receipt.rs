//! Decides: what is written down about a reload. Values only.

use serde::{Deserialize, Serialize};

use crate::listeners::compare::Changes;
use crate::listeners::counters::Counters;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Taken,
    Refused,
}

/// One for each reload: the last one is in `status --json`, and `hapilot reload` prints its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    pub verdict: Verdict,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// When it was answered, RFC 3339.
    pub at: String,
    pub from_generation: Option<u32>,
    pub from_pid: Option<i32>,
    pub to_generation: Option<u32>,
    pub to_pid: Option<i32>,
    /// From launch to ready, in milliseconds.
    pub ready_ms: Option<u64>,
    pub listeners: Changes,
    /// How the listeners came over: `shared`, or `separate` where one got a socket of its own.
    pub strategy: String,
    /// What kept connections meanwhile: `none`, `migrate`, `hold` or `drop`.
    pub guard: String,
    /// How long it was up, and what waited or has to be sent again because of it.
    pub window_ms: Option<f64>,
    pub held: u64,
    pub dropped: u64,
    /// The kernel's counters when the new generation was launched, and when the old one drains.
    pub counters_before: Counters,
    pub counters_after: Counters,
    /// Why it is not shown that no new connection was lost; empty when it is.
    pub doubts: Vec<String>,
    /// Drains, maintenance and weights that were set by hand and were set again.
    pub carried_over: Vec<String>,
    /// Descriptors that hapilot was started with and that each generation gets.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub inherited: Vec<String>,
    /// Entries of stick tables that were set again, as no `peers` section carries them.
    #[serde(default)]
    pub stick_entries: usize,
    /// What could not be found out or carried over.
    pub warnings: Vec<String>,
    /// HAProxy's own words while it started.
    pub haproxy: Vec<String>,
}

impl Receipt {
    #[must_use]
    pub fn taken(at: String) -> Self {
        Self {
            verdict: Verdict::Taken,
            reason: None,
            at,
            from_generation: None,
            from_pid: None,
            to_generation: None,
            to_pid: None,
            ready_ms: None,
            listeners: Changes::default(),
            strategy: String::new(),
            guard: "none".to_owned(),
            window_ms: None,
            held: 0,
            dropped: 0,
            counters_before: Counters::default(),
            counters_after: Counters::default(),
            doubts: Vec::new(),
            carried_over: Vec::new(),
            inherited: Vec::new(),
            stick_entries: 0,
            warnings: Vec::new(),
            haproxy: Vec::new(),
        }
    }

    #[must_use]
    pub fn refused(at: String, reason: impl Into<String>) -> Self {
        Self { verdict: Verdict::Refused, reason: Some(reason.into()), ..Self::taken(at) }
    }
}

/// What keeps a reload that was taken from being shown to be lossless. The counters are those of
/// the whole network namespace: what they count may have been somebody else's, so they can only
/// raise a doubt. `exposed` are listeners that went away without a guard.
#[must_use]
pub fn doubts(
    listeners: Option<&Changes>,
    exposed: &[String],
    before: Counters,
    after: Counters,
) -> Vec<String> {
    let mut doubts = Vec::new();
    let migrates = after.migrated > before.migrated;
    match listeners {
        None => doubts.push("which listeners were handed over is not known".to_owned()),
        Some(_) if !exposed.is_empty() && !migrates => doubts.push(format!(
            "{} got a socket of its own: connections that were half open on the old one are reset",
            exposed.join(", ")
        )),
        Some(_) => {}
    }
    // What the operator wanted, most likely; but whoever waited there was lost all the same.
    let given_up = listeners.map(Changes::given_up).unwrap_or_default();
    if !given_up.is_empty() {
        doubts.push(format!("{} was closed, with whoever waited there", given_up.join(", ")));
    }
    let counted = [
        ("ListenDrops", before.listen_drops, after.listen_drops),
        ("ListenOverflows", before.listen_overflows, after.listen_overflows),
        ("TCPMigrateReqFailure", before.not_migrated, after.not_migrated),
    ];
    for (name, before, after) in counted.into_iter().filter(|(_, before, after)| after > before) {
        doubts.push(format!("{name} rose from {before} to {after}"));
    }
    doubts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shared_listeners_and_still_counters_leave_no_doubt() {
        let shared = Changes { shared: vec![":80".to_owned()], ..Changes::default() };
        let still = Counters { listen_drops: 7, ..Counters::default() };
        assert_eq!(doubts(Some(&shared), &[], still, still), Vec::<String>::new());
        let dropped = Counters { listen_drops: 9, ..still };
        assert_eq!(doubts(Some(&shared), &[], still, dropped), ["ListenDrops rose from 7 to 9"]);
        let exposed = [":80".to_owned()];
        let separate = Changes { not_shared: vec![":80".to_owned()], ..Changes::default() };
        assert_eq!(doubts(Some(&separate), &exposed, still, still).len(), 1);
        assert_eq!(doubts(Some(&separate), &[], still, still), Vec::<String>::new());
        let migrated = Counters { migrated: 3, ..still };
        assert_eq!(doubts(Some(&separate), &exposed, still, migrated), Vec::<String>::new());
        assert_eq!(doubts(None, &[], still, still).len(), 1);
    }
}
