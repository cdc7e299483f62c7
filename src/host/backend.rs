//! Decides: which firewall our rules are in.

use std::fmt;

use super::step::{Family, Program};

/// `HAPROXY_FIREWALL`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Firewall {
    /// iptables, where operators look, if a program works here; else nftables.
    #[default]
    Auto,
    Iptables,
    Nftables,
}

/// The one that is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Iptables(Program),
    Nftables,
}

impl Backend {
    /// What the other one would add, for the start-up line.
    #[must_use]
    pub fn the_other_adds(self) -> &'static str {
        match self {
            Self::Iptables(_) => {
                "HAPROXY_FIREWALL=nftables: the kernel would remove every rule when hapilot dies"
            }
            Self::Nftables => "HAPROXY_FIREWALL=iptables: 'iptables -S' would show the rules",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iptables(program) => f.write_str(program.command(Family::V4)),
            Self::Nftables => f.write_str("nftables"),
        }
    }
}
