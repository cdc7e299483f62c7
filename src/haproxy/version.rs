//! Decides: what `haproxy -vv` says about itself.

use std::collections::BTreeSet;
use std::fmt;

/// The oldest that is tested: its runtime API and command line are what we rely on.
const OLDEST: (u16, u16) = (2, 6);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
    /// All of it, such as `2.6.12-1+deb12u4` or `3.5-dev5`.
    pub full: String,
}

impl Version {
    #[must_use]
    pub fn at_least(&self, major: u16, minor: u16) -> bool {
        (self.major, self.minor) >= (major, minor)
    }

    #[must_use]
    pub fn supported(&self) -> bool {
        self.at_least(OLDEST.0, OLDEST.1)
    }

    fn parse(full: &str) -> Option<Self> {
        let mut parts = full.split(['.', '-']);
        let mut number = || parts.next()?.parse().ok();
        Some(Self { major: number()?, minor: number()?, full: full.to_owned() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.full.fmt(f)
    }
}

/// What a `haproxy` was built as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    pub version: Version,
    features: BTreeSet<String>,
}

impl Build {
    /// `None` when this is not what an HAProxy says.
    #[must_use]
    pub fn parse(vv: &str) -> Option<Self> {
        let first = vv.lines().next()?;
        // Until 2.3 it wrote HA-Proxy.
        let rest = first
            .strip_prefix("HAProxy version ")
            .or_else(|| first.strip_prefix("HA-Proxy version "))?;
        let version = Version::parse(rest.split_whitespace().next()?)?;
        let list = vv.lines().find_map(|line| line.strip_prefix("Feature list :"));
        let features = list
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|word| word.strip_prefix('+'))
            .map(str::to_owned)
            .collect();
        Some(Self { version, features })
    }

    /// Whether it was built with, for example, `TPROXY`, `LINUX_CAP` or `QUIC`.
    #[must_use]
    pub fn has(&self, feature: &str) -> bool {
        self.features.contains(feature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(first_line: &str) -> Version {
        Build::parse(first_line).unwrap().version
    }

    #[test]
    fn versions_of_every_kind_are_understood() {
        for (line, major, minor, full) in [
            (
                "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/",
                2,
                6,
                "2.6.12-1+deb12u4",
            ),
            ("HAProxy version 3.0.11-1 2025/06/03 - https://haproxy.org/", 3, 0, "3.0.11-1"),
            (
                "HAProxy version 3.5-dev5-50872d-1 2026/08/20 - https://haproxy.org/",
                3,
                5,
                "3.5-dev5-50872d-1",
            ),
            (
                "HA-Proxy version 2.2.9-2+deb11u6 2023/08/28 - https://haproxy.org/",
                2,
                2,
                "2.2.9-2+deb11u6",
            ),
            ("HAProxy version 12.34 2040/01/01", 12, 34, "12.34"),
        ] {
            assert_eq!(version(line), Version { major, minor, full: full.into() });
        }
    }

    #[test]
    fn only_2_6_and_newer_are_supported() {
        for (line, supported) in
            [("2.5.9", false), ("2.6-dev1", true), ("2.6.0", true), ("2.10.0", true), ("3.0", true)]
        {
            let version = version(&format!("HAProxy version {line} x"));
            assert_eq!(version.supported(), supported, "{line}");
        }
        assert!(version("HAProxy version 3.0.1").at_least(2, 9));
        assert!(!version("HAProxy version 2.8.1").at_least(2, 9));
    }

    #[test]
    fn features_with_a_plus_are_there_and_others_are_not() {
        let build = Build::parse(
            "HAProxy version 2.6.12 2026/10/17\n\nFeature list : -51DEGREES +LINUX_TPROXY +TPROXY -QUIC\n",
        )
        .unwrap();
        assert!(build.has("TPROXY") && build.has("LINUX_TPROXY"));
        assert!(!build.has("QUIC") && !build.has("51DEGREES") && !build.has("PROXY"));
    }

    #[test]
    fn other_programs_are_not_haproxy() {
        for text in ["", "nginx version: nginx/1.22.1", "HAProxy version x.y", "HAProxy version "] {
            assert_eq!(Build::parse(text), None, "{text:?}");
        }
    }
}
