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

    /// As HAProxy's `version_atleast` compares; what is no version is older than all.
    #[must_use]
    pub fn is_at_least(&self, text: &str) -> bool {
        split(text).is_none_or(|wanted| split(&self.full).is_some_and(|own| own >= wanted))
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

/// `A.B.C.D-devE-F`: A to D, 1 for "dev", 2 for "rc" and "pre", else 3, E, F. The number before
/// a sign that is none is read, as `strtol` does.
fn split(text: &str) -> Option<[u64; 7]> {
    let mut value = [0, 0, 0, 0, 3, 0, 0];
    if text.is_empty() {
        return None;
    }
    let mut left = text;
    for (place, last) in [(0, false), (1, false), (2, false), (3, true)] {
        let (number, rest) = leading(left);
        value[place] = number;
        match rest.as_bytes().first() {
            None => return Some(value),
            Some(b'-') => {
                left = &rest[1..];
                break;
            }
            Some(b'.') if !last => left = &rest[1..],
            _ => return None,
        }
    }
    for (tag, rank) in [("dev", 1), ("rc", 2), ("pre", 2)] {
        if let Some(rest) = left.strip_prefix(tag) {
            let (number, rest) = leading(rest);
            (value[4], value[5]) = (rank, number);
            if rest.is_empty() {
                return Some(value);
            }
            left = rest.strip_prefix('-')?;
            break;
        }
    }
    let commit = left.rsplit_once('-').map_or(left, |(_, commit)| commit);
    if left.ends_with('-') {
        return None;
    }
    let (number, rest) = leading(commit);
    value[6] = if rest.is_empty() { number } else { 0 };
    Some(value)
}

fn leading(text: &str) -> (u64, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (text[..end].parse().unwrap_or(0), &text[end..])
}

/// `3.0.22`, `1.1.1w`.
fn openssl(text: &str) -> Option<(u64, u64, u64, String)> {
    let mut parts = text.splitn(3, '.');
    let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let (patch, letter) = leading(parts.next()?);
    letter.chars().all(|c| c.is_ascii_lowercase()).then(|| (major, minor, patch, letter.to_owned()))
}

/// What a `haproxy` was built as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    pub version: Version,
    features: BTreeSet<String>,
    /// Of the TLS library: what it was built with, and what it runs with.
    tls: Option<(String, String)>,
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
        let said = |begin: &str| {
            // Since 3.2 it is "SSL library version".
            let mut lines = vv.lines().filter(|l| l.starts_with(begin) && l.contains("SSL"));
            Some(lines.find_map(|line| line.split_once("version : "))?.1.to_owned())
        };
        let tls = said("Built with ").zip(said("Running on "));
        Some(Self { version, features, tls })
    }

    /// What is certain of every HAProxy, where there is none to ask.
    #[must_use]
    pub fn oldest() -> Self {
        let (major, minor) = OLDEST;
        let version = Version { major, minor, full: format!("{major}.{minor}") };
        Self { version, features: BTreeSet::new(), tls: None }
    }

    /// `None` where it was not built with OpenSSL, or where that is no version of it.
    #[must_use]
    pub fn openssl_is_at_least(&self, text: &str) -> Option<bool> {
        let (built, _) = self.tls.as_ref()?;
        let own = openssl(built.strip_prefix("OpenSSL ")?.split_whitespace().next()?)?;
        Some(own >= openssl(text)?)
    }

    #[must_use]
    pub fn tls_library_starts_with(&self, text: &str) -> Option<bool> {
        self.tls.as_ref().map(|(_, runs)| runs.starts_with(text))
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
    fn versions_are_compared_as_haproxy_compares_them() {
        let own = version("HAProxy version 3.0.11-1+deb13u5 2026/11/18");
        for (text, at_least) in [
            ("3", true),
            ("3.0.11", true),
            ("3.0.12", false),
            ("3.0.11-dev5", true),
            ("3.0.11-1", false),
            ("3.1-dev0", false),
            ("2.9.99", true),
            ("x", true),
            ("", true),
        ] {
            assert_eq!(own.is_at_least(text), at_least, "{text}");
        }
    }

    #[test]
    fn the_tls_library_is_told_by_what_was_built_and_what_runs() {
        let text = "HAProxy version 3.0.11 2026\nBuilt with OpenSSL version : OpenSSL 1.1.1w 11\n\
                    Running on OpenSSL version : OpenSSL 1.1.1x 12\n";
        let build = Build::parse(text).unwrap();
        for (text, at_least) in
            [("1.1.1", Some(true)), ("1.1.1x", Some(false)), ("3.0.0", Some(false)), ("3", None)]
        {
            assert_eq!(build.openssl_is_at_least(text), at_least, "{text}");
        }
        assert_eq!(build.tls_library_starts_with("OpenSSL 1.1.1x"), Some(true));
        assert_eq!(build.tls_library_starts_with("LibreSSL"), Some(false));
        assert_eq!(Build::oldest().openssl_is_at_least("1.1.1"), None);
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
