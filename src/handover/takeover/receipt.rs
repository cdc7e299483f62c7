//! Decides: what is written down about a take-over. Values only.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::predecessor::{Rung, Told};
use crate::handover::receipt::Receipt;

/// What `Relieved::state` may be.
pub const STATES: [&str; 4] = ["told", "draining", "deaf", "gone"];

/// One whom we relieved, and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Relieved {
    pub name: String,
    /// How its listeners came to us.
    pub rung: Rung,
    /// Why by no better way.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub notes: Vec<String>,
    /// One of `STATES`.
    pub state: String,
    /// What it has to finish, where that is known.
    pub sessions: Option<u64>,
    /// What it ended with, where that is known.
    pub status: Option<u8>,
}

/// Like a reload's receipt; from no generation of ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Takeover {
    #[serde(flatten)]
    pub receipt: Receipt,
    pub predecessors: Vec<Relieved>,
}

impl Relieved {
    #[must_use]
    pub fn new(name: String, rung: Rung, notes: &[String]) -> Self {
        Self {
            name,
            rung,
            notes: notes.to_vec(),
            state: "told".to_owned(),
            sessions: None,
            status: None,
        }
    }

    pub fn note(&mut self, told: &Told) {
        let state = match told {
            Told::Draining { sessions } => {
                self.sessions = *sessions;
                "draining"
            }
            Told::Deaf { .. } | Told::LetDown { .. } => "deaf",
            Told::Gone { status } => {
                (self.sessions, self.status) = (Some(0), *status);
                "gone"
            }
            Told::Died => {
                self.sessions = Some(0);
                "gone"
            }
        };
        state.clone_into(&mut self.state);
    }

    /// It has answered, or will never.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.state != "told"
    }
}

impl fmt::Display for Relieved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (by {}), {}", self.name, self.rung, self.state)?;
        match (self.state.as_str(), self.sessions) {
            ("draining", Some(sessions)) => write!(f, " {sessions} sessions"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Takeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.predecessors.iter().map(ToString::to_string).collect();
        write!(f, "{}; from {}", self.receipt, names.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_predecessor_is_told_then_drains_then_is_gone() {
        let mut one = Relieved::new("hapilot 0a".to_owned(), Rung::Hapilot, &[]);
        assert!(!one.has_answered());
        one.note(&Told::Draining { sessions: Some(3) });
        assert_eq!(one.to_string(), "hapilot 0a (by its hapilot's socket), draining 3 sessions");
        one.note(&Told::Gone { status: Some(0) });
        assert!(one.has_answered());
        assert!(STATES.contains(&&*one.state));
        for rung in Rung::ALL {
            assert_eq!(serde_json::to_string(&rung).unwrap(), format!("\"{}\"", rung.as_str()));
        }
        let text = serde_json::to_string(&one).unwrap();
        assert!(
            text.contains(r#""rung":"hapilot","state":"gone","sessions":0,"status":0"#),
            "{text}"
        );
    }
}
