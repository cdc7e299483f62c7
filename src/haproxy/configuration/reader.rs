//! Decides: which lines HAProxy reads of some files, each as words with the values of variables
//! and with the section in which it stands. It is the only reader of configuration text.

use std::path::PathBuf;

use super::blocks::Blocks;
use super::environment::{Environment, is_known};
use super::{Configuration, Place, condition, line};
use crate::haproxy::version::Build;

/// From this version on HAProxy reads the files twice, first nothing but the global sections, and
/// what those set is set when it reads the second time.
const READS_TWICE_FROM: (u16, u16) = (3, 1);

/// Whether HAProxy reads a line, where it is not certain that it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    Certain,
    /// The condition around it cannot be decided: what it says may be warned of, no more.
    Possible,
}

/// What HAProxy is and knows when it begins to read.
#[derive(Clone, Debug)]
pub struct Reader {
    pub build: Build,
    pub environment: Environment,
}

/// What a line belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    None,
    Global,
    Defaults,
    Frontend,
    Backend,
    Listen,
    Peers,
    LogForward,
    /// All that nothing here asks about.
    Other,
}

/// One line that HAProxy reads, or may read.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) section: Section,
    pub(super) certainty: Certainty,
    pub(super) place: Place,
    /// At least one.
    pub(super) words: Vec<String>,
    /// `no` or `default` in front of them.
    pub(super) modifier: Option<&'static str>,
    /// Whether it begins the section.
    pub(super) begins: bool,
}

impl Reader {
    /// The files in the order in which HAProxy reads them.
    #[must_use]
    pub fn read(&self, files: &[(PathBuf, String)]) -> Configuration {
        let mut configuration = Configuration::default();
        let mut environment = self.environment.clone();
        let (major, minor) = READS_TWICE_FROM;
        if self.build.version.at_least(major, minor) {
            self.all(files, &mut environment, &mut Configuration::default());
            environment.set_unknown("HAPROXY_CFGFILES");
        }
        self.all(files, &mut environment, &mut configuration);
        configuration
    }

    fn all(
        &self,
        files: &[(PathBuf, String)],
        environment: &mut Environment,
        into: &mut Configuration,
    ) {
        for (file, text) in files {
            let mut pass = Pass {
                reader: self,
                environment,
                blocks: Blocks::default(),
                section: Section::None,
            };
            for (index, text) in text.split('\n').enumerate() {
                let place = Place { file: file.clone(), line: index + 1 };
                pass.line(text, place, into);
            }
        }
    }
}

/// Through one file.
struct Pass<'a> {
    reader: &'a Reader,
    environment: &'a mut Environment,
    blocks: Blocks,
    section: Section,
}

impl Pass<'_> {
    fn line(&mut self, text: &str, place: Place, into: &mut Configuration) {
        let Some(line::Read { mut words, unset }) = line::read(text, self.environment) else {
            return;
        };
        let Some(keyword) = words.first().cloned() else { return };
        let (environment, build) = (&*self.environment, &self.reader.build);
        let condition = || condition::evaluate(&words[1..].join(" "), environment, build);
        if self.blocks.line(&keyword, condition) {
            return;
        }
        let Some(certainty) = self.blocks.certainty() else { return };
        if keyword.starts_with('.') {
            return;
        }
        let modifier = ["no", "default"].into_iter().find(|modifier| *modifier == keyword);
        if modifier.is_some() {
            words.remove(0);
            if words.is_empty() {
                return;
            }
        }
        let begun = begins(&words[0]).filter(|_| modifier.is_none());
        self.section = begun.unwrap_or(self.section);
        let mut missing = unset;
        for at in addresses(&words) {
            if let Some(word) = words.get_mut(at) {
                let line::Read { words: mut read, unset } = line::address(word, self.environment);
                missing.extend(unset);
                *word = read.pop().unwrap_or_default();
            }
        }
        if self.section == Section::Global {
            self.environment.line(&words, certainty);
        }
        if certainty == Certainty::Certain {
            for name in &missing {
                into.misses(name, &place);
            }
        }
        let section = self.section;
        into.line(&Line { section, certainty, place, words, modifier, begins: begun.is_some() });
    }
}

/// Which words HAProxy reads as addresses.
fn addresses(words: &[String]) -> Vec<usize> {
    let keyword = words[0].as_str();
    let mut found = match (keyword, words.get(1).map(String::as_str)) {
        ("bind" | "dgram-bind" | "source" | "log", _) => vec![1],
        ("server" | "peer" | "nameserver" | "mailer", _) | ("stats", Some("socket")) => vec![2],
        ("server-template", _) => vec![3],
        _ => vec![],
    };
    let options = ["server", "server-template", "default-server", "source"].contains(&keyword);
    let before =
        |word: &String| ["addr", "agent-addr", "source", "usesrc"].contains(&word.as_str());
    if options {
        let places = words.iter().enumerate().skip(1).filter(|(_, word)| before(word));
        found.extend(places.map(|(at, _)| at + 1));
    }
    found
}

fn begins(keyword: &str) -> Option<Section> {
    if !is_known(keyword) {
        return None;
    }
    Some(match keyword {
        "global" => Section::Global,
        "defaults" => Section::Defaults,
        "frontend" => Section::Frontend,
        "backend" => Section::Backend,
        "listen" => Section::Listen,
        "peers" => Section::Peers,
        "log-forward" => Section::LogForward,
        "acme" | "cache" | "crt-store" | "fcgi-app" | "http-errors" | "log-profile" | "mailers"
        | "program" | "resolvers" | "ring" | "traces" | "userlist" => Section::Other,
        _ => return None,
    })
}

/// What stands in one file `h.cfg`, for a HAProxy 3.0 whose host is `host` and which has `HOSTNAME`
/// and `ME`, which is `a`, in its environment.
#[cfg(test)]
#[must_use]
pub fn read_text(text: &str) -> Configuration {
    read_with(text, &[("HOSTNAME", "host"), ("ME", "a")])
}

#[cfg(test)]
pub(super) fn read_with(text: &str, variables: &[(&str, &str)]) -> Configuration {
    reader("3.0.11", variables).read(&[("h.cfg".into(), text.to_owned())])
}

#[cfg(test)]
pub(super) fn reader(version: &str, variables: &[(&str, &str)]) -> Reader {
    let build = Build::parse(&format!("HAProxy version {version}\nFeature list : +LUA")).unwrap();
    let environment = Environment::new(variables.iter().copied(), &build.version, "host");
    Reader { build, environment }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_not_read_count_for_nothing_and_undecided_ones_are_marked() {
        let read = |condition: &str| {
            let text = format!(
                "backend b\n.if {condition}\n source 0.0.0.0 usesrc clientip\n.else\n maxconn 5\n.endif\n"
            );
            let found = read_with(&text, &[("TPROXY", "")]);
            found.usesrc.first().map(|found| found.value)
        };
        assert_eq!(read("defined(TPROXY)"), Some(Certainty::Certain));
        assert_eq!(read("defined(NO_SUCH)"), None);
        assert_eq!(read("feature(LUA)"), Some(Certainty::Certain));
        assert_eq!(read("version_before(2.9)"), None);
        assert_eq!(read("enabled(SPLICE)"), Some(Certainty::Possible));
    }

    #[test]
    fn what_global_sets_counts_from_there_on_also_in_later_files() {
        let read = |version: &str, first: &str, second: &str| {
            let files = [("a".into(), first.to_owned()), ("b".into(), second.to_owned())];
            let found = reader(version, &[("LOG", "stdout")]).read(&files);
            found.logs_to_dev_log
        };
        let log = "global\n log \"$LOG\" local0\n";
        let set = "global\n setenv LOG /dev/log\n";
        assert!(read("3.0.1", set, log));
        assert!(!read("3.0.1", log, set), "it is set too late");
        assert!(
            read("3.2.1", log, set),
            "what was set in the first reading is there in the second"
        );
        assert!(!read("3.0.1", "global\n presetenv LOG /dev/log\n", log));
        assert!(read("3.0.1", "global\n unsetenv LOG\n presetenv LOG /dev/log\n", log));
        assert!(read("3.0.1", "global\n resetenv HOME\n presetenv LOG /dev/log\n", log));
        assert!(!read("3.0.1", "defaults\n setenv LOG /dev/log\n", log), "only in global");
        let undecided = "global\n.if enabled(SPLICE)\n setenv LOG /dev/log\n.endif\n";
        assert!(!read("3.0.1", undecided, log));
    }

    #[test]
    fn any_text_is_read() {
        let parts = [
            "global\n",
            ".if ",
            "defined(A)\n",
            ".else\n",
            ".endif\n",
            "setenv A ",
            "\"$A\"",
            "bind ",
            "${A",
            "}",
            "\n",
            " ",
            "no ",
            "listen x\n",
            "\\",
            "\0",
            "usesrc",
            "default-server ",
            "é",
        ];
        for seed in 0..20_000_usize {
            let mut left = seed * 104_729;
            let mut text = String::new();
            while left > 0 {
                text += parts[left % parts.len()];
                left /= parts.len();
            }
            let _ = read_text(&text);
        }
        let _ = read_text(&".if 1\n".repeat(10_000));
        let _ = read_text(&format!("bind {}", "x".repeat(1_000_000)));
    }
}
