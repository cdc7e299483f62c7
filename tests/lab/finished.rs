//! A command that has ended, and what it said.

use std::process::{ExitStatus, Output};

/// How a command ended and all that it said.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub text: String,
}

impl Finished {
    pub fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{}: it said:\n{}", self.status, self.text);
        self
    }

    /// Every one of these must have been said.
    pub fn assert_says(&self, words: &[&str]) -> &Self {
        for word in words {
            assert!(self.text.contains(word), "{word:?} is missing in:\n{}", self.text);
        }
        self
    }
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        let text = [output.stdout, output.stderr].concat();
        Self { status: output.status, text: String::from_utf8_lossy(&text).into_owned() }
    }
}
