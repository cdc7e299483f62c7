//! Decides: what is written down about a reload. Values only.

use serde::{Deserialize, Serialize};

use crate::listeners::compare::Changes;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Taken,
    Refused,
}

/// One for each reload: the last one is in `status --json`, and `hapilot reload` prints its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Drains, maintenance and weights that were set by hand and were set again.
    pub carried_over: Vec<String>,
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
            carried_over: Vec::new(),
            warnings: Vec::new(),
            haproxy: Vec::new(),
        }
    }

    #[must_use]
    pub fn refused(at: String, reason: impl Into<String>) -> Self {
        Self { verdict: Verdict::Refused, reason: Some(reason.into()), ..Self::taken(at) }
    }
}
