//! Decides: what an exit means. Values only.

use std::fmt;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(u8),
    Signal(i32),
}

impl Exit {
    /// The status that a shell would show: the code itself, or 128 + signal.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(known) => write!(f, "{known}"),
                Err(_) => write!(f, "signal {signal}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_counts_from_128_as_in_a_shell() {
        assert_eq!(Exit::Signal(9).status(), 137);
        assert_eq!(Exit::Code(3).status(), 3);
    }

    #[test]
    fn a_signal_is_named() {
        assert_eq!(Exit::Signal(15).to_string(), "SIGTERM");
        assert_eq!(Exit::Code(1).to_string(), "exit status 1");
    }
}
