//! Decides: how a thing that is wrong with the host is told, always with what mends it.

use std::fmt;

/// Something that the host or the container lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong, with the object and the value.
    pub what: String,
    /// The `docker run` flag or the host command that mends it.
    pub mend: String,
}

impl Problem {
    #[must_use]
    pub fn new(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what: what.into(), mend: mend.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.mend)
    }
}
