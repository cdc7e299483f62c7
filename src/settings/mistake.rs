//! Decides nothing: how mistakes and warnings read. One mistake names the variable, its value,
//! what is wrong with it, what was expected, and an example that can be pasted.

use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub variable: &'static str,
    pub value: String,
    pub reason: String,
    pub expected: &'static str,
    pub example: &'static str,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { variable, value, reason, expected, example } = self;
        write!(
            f,
            "{variable}={value:?}: {reason}; expected {expected}, for example {variable}={example}"
        )
    }
}

/// All mistakes of one start, never none, and what is suspicious besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes {
    pub mistakes: Vec<Mistake>,
    pub warnings: Vec<Warning>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mistakes.len() {
            1 => write!(f, "one setting is wrong, nothing was changed:")?,
            count => write!(f, "{count} settings are wrong, nothing was changed:")?,
        }
        self.mistakes.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))?;
        self.warnings.iter().try_for_each(|warning| write!(f, "\n  warning: {warning}"))
    }
}

impl std::error::Error for Mistakes {}

/// Something that does not keep us from starting, but is probably not what was meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub variable: String,
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.text)
    }
}
