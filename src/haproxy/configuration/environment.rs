//! Decides: which variables HAProxy has while it reads, and with which values. A value is not known
//! where HAProxy makes it itself, or where a condition that cannot be decided stands before it.

use std::collections::BTreeMap;

use super::Certainty;
use crate::haproxy::version::Version;

/// Stands in a word for what is not known. No line of a configuration has it: HAProxy refuses a NUL.
pub(super) const UNKNOWN: char = '\0';

/// Whether all of this text is known.
pub(super) fn is_known(text: &str) -> bool {
    !text.contains(UNKNOWN)
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Value {
    #[default]
    Unset,
    Is(String),
    /// Set, to a value that is not known.
    Something,
    /// It is not even known whether it is set.
    Perhaps,
}

impl Value {
    fn of(text: &str) -> Self {
        if is_known(text) { Self::Is(text.to_owned()) } else { Self::Something }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    variables: BTreeMap<String, Value>,
}

impl Environment {
    /// What HAProxy finds, and what it sets before it reads the first line.
    pub fn new<N: Into<String>, V: Into<String>>(
        inherited: impl IntoIterator<Item = (N, V)>,
        version: &Version,
        local_peer: &str,
    ) -> Self {
        let pair = |(name, value): (N, V)| (name.into(), Value::Is(value.into()));
        let mut variables: BTreeMap<_, _> = inherited.into_iter().map(pair).collect();
        variables.insert("HAPROXY_LOCALPEER".into(), Value::Is(local_peer.into()));
        if version.at_least(3, 0) {
            let full = Value::Is(version.full.clone());
            variables.entry("HAPROXY_STARTUP_VERSION".into()).or_insert(full);
        }
        if version.at_least(2, 8) {
            let branch = format!("{}.{}", version.major, version.minor);
            variables.insert("HAPROXY_BRANCH".into(), Value::Is(branch));
            for format in ["HTTP", "HTTPS", "TCP"] {
                variables.insert(format!("HAPROXY_{format}_LOG_FMT"), Value::Something);
            }
        }
        if version.at_least(3, 2) {
            for format in ["HTTP", "TCP"] {
                variables.insert(format!("HAPROXY_{format}_CLF_LOG_FMT"), Value::Something);
            }
        }
        Self { variables }
    }

    pub(super) fn value(&self, name: &str) -> &Value {
        if !is_known(name) {
            return &Value::Perhaps;
        }
        self.variables.get(name).unwrap_or(&Value::Unset)
    }

    /// What HAProxy sets between two readings of the same files.
    pub(super) fn set_unknown(&mut self, name: &str) {
        self.variables.insert(name.to_owned(), Value::Something);
    }

    /// A line of the global section, if it is about variables.
    pub(super) fn line(&mut self, words: &[String], certainty: Certainty) {
        let [keyword, arguments @ ..] = words else { return };
        match (keyword.as_str(), arguments) {
            ("setenv", [name, value, ..]) => self.put(name, Value::of(value), certainty),
            ("localpeer", [name, ..]) => {
                self.put("HAPROXY_LOCALPEER", Value::of(name), certainty);
            }
            ("presetenv", [name, value, ..]) => match self.value(name) {
                Value::Unset => self.put(name, Value::of(value), certainty),
                Value::Perhaps => self.put(name, Value::Something, certainty),
                Value::Is(_) | Value::Something => {}
            },
            ("unsetenv", names) => {
                for name in names {
                    self.put(name, Value::Unset, certainty);
                }
            }
            ("resetenv", kept) => {
                let all: Vec<String> = self.variables.keys().cloned().collect();
                for name in all.iter().filter(|name| !kept.contains(name)) {
                    self.put(name, Value::Unset, certainty);
                }
            }
            _ => {}
        }
    }

    fn put(&mut self, name: &str, value: Value, certainty: Certainty) {
        if !is_known(name) {
            return;
        }
        let entry = self.variables.entry(name.to_owned()).or_default();
        *entry = match (certainty, &*entry) {
            (Certainty::Certain, _) => value,
            (Certainty::Possible, before) if *before == value => value,
            (Certainty::Possible, Value::Is(_) | Value::Something) if value != Value::Unset => {
                Value::Something
            }
            (Certainty::Possible, _) => Value::Perhaps,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(major: u16, minor: u16) -> Version {
        Version { major, minor, full: format!("{major}.{minor}.1") }
    }

    fn after(lines: &[(&[&str], Certainty)], name: &str) -> Value {
        let mut environment = Environment::new([("A", "a"), ("B", "b")], &version(3, 0), "me");
        for (words, certainty) in lines {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            environment.line(&words, *certainty);
        }
        environment.value(name).clone()
    }

    #[test]
    fn lines_of_the_global_section_change_what_follows() {
        use Certainty::{Certain, Possible};
        let is = |text: &str| Value::Is(text.to_owned());
        assert_eq!(after(&[(&["setenv", "A", "x"], Certain)], "A"), is("x"));
        assert_eq!(after(&[(&["presetenv", "A", "x"], Certain)], "A"), is("a"));
        assert_eq!(after(&[(&["presetenv", "C", "x"], Certain)], "C"), is("x"));
        assert_eq!(after(&[(&["unsetenv", "C", "A"], Certain)], "A"), Value::Unset);
        assert_eq!(after(&[(&["resetenv", "A"], Certain)], "A"), is("a"));
        assert_eq!(after(&[(&["resetenv", "A"], Certain)], "B"), Value::Unset);
        assert_eq!(after(&[(&["localpeer", "x"], Certain)], "HAPROXY_LOCALPEER"), is("x"));
        assert_eq!(after(&[(&["setenv", "A", "x\0"], Certain)], "A"), Value::Something);
        assert_eq!(after(&[(&["setenv", "A", "x"], Possible)], "A"), Value::Something);
        assert_eq!(after(&[(&["setenv", "A", "a"], Possible)], "A"), is("a"));
        assert_eq!(after(&[(&["setenv", "C", "x"], Possible)], "C"), Value::Perhaps);
        assert_eq!(after(&[(&["unsetenv", "A"], Possible)], "A"), Value::Perhaps);
        let both: &[(&[&str], Certainty)] =
            &[(&["setenv", "C", "x"], Possible), (&["presetenv", "C", "y"], Certain)];
        assert_eq!(after(both, "C"), Value::Something);
    }

    #[test]
    fn what_haproxy_sets_itself_depends_on_its_version() {
        let value = |major, minor, name: &str| {
            let none: [(&str, &str); 0] = [];
            Environment::new(none, &version(major, minor), "me").value(name).clone()
        };
        assert_eq!(value(2, 6, "HAPROXY_LOCALPEER"), Value::Is("me".into()));
        assert_eq!(value(2, 6, "HAPROXY_BRANCH"), Value::Unset);
        assert_eq!(value(3, 0, "HAPROXY_BRANCH"), Value::Is("3.0".into()));
        assert_eq!(value(3, 0, "HAPROXY_TCP_LOG_FMT"), Value::Something);
        assert_eq!(value(3, 0, "HAPROXY_TCP_CLF_LOG_FMT"), Value::Unset);
    }
}
