//! Decides: the name of one run of hapilot, and the names of what it owns in the kernel.

use std::fmt;
use std::str::FromStr;

/// Eight hex digits that tell this run from every other on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance(u32);

impl Instance {
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The lease's abstract socket, without the leading `@`.
    #[must_use]
    pub fn lease_name(self) -> String {
        format!("hapilot/{self}")
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for Instance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 8 && text.bytes().all(hex))
            .then(|| u32::from_str_radix(text, 16).ok())
            .flatten()
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not an instance (8 hex digits)"))
    }
}

/// What one of our chains is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Marks the return traffic of transparent sockets; its first rule carries the record.
    Diversion,
    /// Hands traffic to any address to a local listener (`HAPROXY_INTERCEPT`).
    Interception,
    /// Holds or drops SYNs for a moment, while one HAProxy follows another.
    Guard,
}

/// One of our chains in the mangle table. iptables allows 28 characters; the longest has 23.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName {
    pub instance: Instance,
    pub purpose: Purpose,
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = match self.purpose {
            Purpose::Diversion => "",
            Purpose::Interception => "-TPROXY",
            Purpose::Guard => "-GUARD",
        };
        write!(f, "HAPILOT-{}{suffix}", self.instance)
    }
}

impl FromStr for ChainName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text
            .strip_prefix("HAPILOT-")
            .ok_or_else(|| format!("{text:?} is not a chain of hapilot"))?;
        let (instance, purpose) = match rest.split_once('-') {
            Some((instance, "TPROXY")) => (instance, Purpose::Interception),
            Some((instance, "GUARD")) => (instance, Purpose::Guard),
            _ => (rest, Purpose::Diversion),
        };
        Ok(Self { instance: instance.parse()?, purpose })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_are_read_back_and_those_of_others_are_not_ours() {
        for purpose in [Purpose::Diversion, Purpose::Interception, Purpose::Guard] {
            let name = ChainName { instance: Instance::new(0x00ab_cdef), purpose };
            assert_eq!(name.to_string().parse(), Ok(name));
            assert!(name.to_string().len() <= 28);
        }
        for other in [
            "DIVERT",
            "HAPILOT-",
            "HAPILOT-ABCDEF01",
            "HAPILOT-+bcdef01",
            "HAPILOT-1-TPROXY",
            "HAPILOT-00abcdef-X",
        ] {
            assert!(other.parse::<ChainName>().is_err(), "{other}");
        }
    }
}
