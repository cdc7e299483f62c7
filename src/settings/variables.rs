//! Decides: what the variables say together. A variable that is empty counts
//! as unset, for a compose file cannot do otherwise with an optional one.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tracing::level_filters::LevelFilter;

use super::names::{self, Variable};
use super::value;
use super::{
    LogFormat, Mistake, Mistakes, OnCrash, Predecessors, ReloadGuard, Settings, Takeover,
    Transparent, Warning, Watch,
};
use crate::host::backend::Firewall;
use crate::host::mark::Port;
use crate::host::secret::Secret;

const DEADLINE: Duration = Duration::from_secs(295);
const GENERATIONS: usize = 8;
const DEFAULT_PORTS: [u16; 2] = [80, 443];

/// The variables as text, before anything is parsed: `envy` stops at its first error, and we want
/// to report them all.
#[derive(Debug, Default, Deserialize)]
struct Texts {
    ports: Option<String>,
    pids: Option<String>,
    takeover: Option<String>,
    takeover_secret_file: Option<String>,
    config: Option<String>,
    transparent: Option<String>,
    intercept: Option<String>,
    firewall: Option<String>,
    mark: Option<String>,
    table: Option<String>,
    reload_guard: Option<String>,
    stop_deadline: Option<String>,
    drain_deadline: Option<String>,
    max_generations: Option<String>,
    on_crash: Option<String>,
    log_format: Option<String>,
    log_level: Option<String>,
    metrics: Option<String>,
    watch: Option<String>,
    syslog: Option<String>,
}

impl Settings {
    /// Reads the settings out of an environment. `usable` says whether a path will do as HAProxy's
    /// configuration, or why not; `secret` reads the operator's secret.
    pub fn from_variables(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        usable: impl FnOnce(&Path) -> Result<(), String>,
        secret: impl FnOnce(&Path) -> Result<Secret, String>,
    ) -> Result<(Self, Vec<Warning>), Mistakes> {
        let mut reader = Reader::default();
        let set = reader.collect(variables);
        let texts: Texts = envy::prefixed(names::PREFIX)
            .from_iter(set)
            .expect("each field is an optional text and each name is there once");
        let settings = reader.settings(&texts, usable, secret);
        if settings.transparent == Transparent::Off && !settings.intercept.is_empty() {
            let reason = format!("{}=off rules it out", names::TRANSPARENT.name);
            let text = texts.intercept.unwrap_or_default();
            reader.mistake(&names::INTERCEPT, &text, reason);
        }
        if reader.mistakes.is_empty() {
            Ok((settings, reader.warnings))
        } else {
            Err(Mistakes { mistakes: reader.mistakes, warnings: reader.warnings })
        }
    }
}

#[derive(Default)]
struct Reader {
    mistakes: Vec<Mistake>,
    warnings: Vec<Warning>,
}

impl Reader {
    /// Picks our variables out, and warns about those that nearly are.
    fn collect(
        &mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> BTreeMap<String, String> {
        let mut set = BTreeMap::new();
        for (name, value) in variables {
            let Some(name) = name.to_str() else { continue };
            if is_blank(&value) {
                continue;
            }
            if let Some(ours) = names::OURS.iter().find(|ours| ours.name == name) {
                match value.to_str() {
                    // getenv(3) answers with the first of two, and so do we.
                    Some(text) => {
                        set.entry(name.to_owned()).or_insert_with(|| text.trim().to_owned());
                    }
                    None => self.mistake(ours, &value.to_string_lossy(), "it is not UTF-8".into()),
                }
            } else if names::NOT_YET.contains(&name) {
                self.warn(name, "this version does not have it yet; it is ignored");
            } else if let Some(meant) = names::nearly_ours(name) {
                self.warn(
                    name,
                    &format!("there is no such setting, it is ignored; {meant} is one"),
                );
            }
        }
        set
    }

    fn settings(
        &mut self,
        texts: &Texts,
        usable: impl FnOnce(&Path) -> Result<(), String>,
        secret: impl FnOnce(&Path) -> Result<Secret, String>,
    ) -> Settings {
        Settings {
            ports: self
                .read(&names::PORTS, texts.ports.as_ref(), value::ports)
                .unwrap_or_else(|| DEFAULT_PORTS.into_iter().filter_map(Port::new).collect()),
            pids: self
                .read(&names::PIDS, texts.pids.as_ref(), value::pids)
                .unwrap_or(Predecessors::None),
            takeover: self
                .read(&names::TAKEOVER, texts.takeover.as_ref(), |text| {
                    value::choice(text, &[("on", Takeover::On), ("off", Takeover::Off)])
                })
                .unwrap_or(Takeover::On),
            secret: self.read(
                &names::TAKEOVER_SECRET_FILE,
                texts.takeover_secret_file.as_ref(),
                |text| secret(Path::new(text)),
            ),
            config: self.read(&names::CONFIG, texts.config.as_ref(), |text| {
                usable(Path::new(text)).map(|()| PathBuf::from(text))
            }),
            transparent: self
                .read(&names::TRANSPARENT, texts.transparent.as_ref(), |text| {
                    let (auto, on, off) = (Transparent::Auto, Transparent::On, Transparent::Off);
                    value::choice(text, &[("auto", auto), ("on", on), ("off", off)])
                })
                .unwrap_or(Transparent::Auto),
            intercept: self
                .read(&names::INTERCEPT, texts.intercept.as_ref(), value::intercept)
                .unwrap_or_default(),
            firewall: self
                .read(&names::FIREWALL, texts.firewall.as_ref(), |text| {
                    let (auto, iptables) = (Firewall::Auto, Firewall::Iptables);
                    let nftables = Firewall::Nftables;
                    let choices = [("auto", auto), ("iptables", iptables), ("nftables", nftables)];
                    value::choice(text, &choices)
                })
                .unwrap_or(Firewall::Auto),
            mark: self.read(&names::MARK, texts.mark.as_ref(), value::mark),
            table: self.read(&names::TABLE, texts.table.as_ref(), value::table),
            reload_guard: self
                .read(&names::RELOAD_GUARD, texts.reload_guard.as_ref(), |text| {
                    let (auto, none) = (ReloadGuard::Auto, ReloadGuard::None);
                    let (hold, drop) = (ReloadGuard::Hold, ReloadGuard::Drop);
                    let choices = [("auto", auto), ("hold", hold), ("drop", drop), ("none", none)];
                    value::choice(text, &choices)
                })
                .unwrap_or(ReloadGuard::Auto),
            stop_deadline: self
                .read(&names::STOP_DEADLINE, texts.stop_deadline.as_ref(), value::deadline)
                .unwrap_or(DEADLINE),
            drain_deadline: self
                .read(&names::DRAIN_DEADLINE, texts.drain_deadline.as_ref(), value::deadline)
                .unwrap_or(DEADLINE),
            max_generations: self
                .read(&names::MAX_GENERATIONS, texts.max_generations.as_ref(), value::generations)
                .unwrap_or(GENERATIONS),
            on_crash: self
                .read(&names::ON_CRASH, texts.on_crash.as_ref(), |text| {
                    let choices = [("restart", OnCrash::Restart), ("exit", OnCrash::Exit)];
                    value::choice(text, &choices)
                })
                .unwrap_or(OnCrash::Restart),
            log_format: self
                .read(&names::LOG_FORMAT, texts.log_format.as_ref(), |text| {
                    let choices = [("text", LogFormat::Text), ("json", LogFormat::Json)];
                    value::choice(text, &choices)
                })
                .unwrap_or(LogFormat::Text),
            log_level: self
                .read(&names::LOG_LEVEL, texts.log_level.as_ref(), value::log_level)
                .unwrap_or(LevelFilter::INFO),
            metrics: self.read(&names::METRICS, texts.metrics.as_ref(), value::address),
            watch: self
                .read(&names::WATCH, texts.watch.as_ref(), |text| {
                    value::choice(text, &[("on", Watch::On), ("off", Watch::Off)])
                })
                .unwrap_or(Watch::Off),
            syslog: self.read(&names::SYSLOG, texts.syslog.as_ref(), value::loopback),
        }
    }

    /// `None` when unset, and when wrong: then the mistake is noted and the default only stands in.
    fn read<T>(
        &mut self,
        variable: &Variable,
        text: Option<&String>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = text?;
        parse(text).map_err(|reason| self.mistake(variable, text, reason)).ok()
    }

    fn mistake(&mut self, variable: &Variable, value: &str, reason: String) {
        let Variable { name, expected, example } = *variable;
        self.mistakes.push(Mistake {
            variable: name,
            value: value.to_owned(),
            reason,
            expected,
            example,
        });
    }

    fn warn(&mut self, variable: &str, text: &str) {
        self.warnings.push(Warning { variable: variable.to_owned(), text: text.to_owned() });
    }
}

fn is_blank(value: &OsStr) -> bool {
    value.to_str().is_some_and(|text| text.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;
    use crate::host::mark::{FwMark, TableId};

    type Answer = Result<(Settings, Vec<Warning>), Mistakes>;

    fn read(variables: &[(&str, &str)]) -> Answer {
        Settings::from_variables(
            variables.iter().map(|(name, value)| (name.into(), value.into())),
            |path| match path.to_str() {
                Some("/there.cfg") => Ok(()),
                _ => Err("no such file or directory".into()),
            },
            |path| match path.to_str() {
                Some("/there.secret" | "/run/secrets/takeover") => Ok(secret()),
                _ => Err("other users may read it".into()),
            },
        )
    }

    fn secret() -> Secret {
        Secret::new(b"0123456789abcdef").unwrap()
    }

    fn warnings(variables: &[(&str, &str)]) -> Vec<String> {
        read(variables).unwrap().1.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn no_variables_and_no_mistakes_give_the_defaults() {
        let (settings, warnings) = read(&[("PATH", "/bin"), ("HOME", "/")]).unwrap();
        assert_eq!(settings.ports.iter().map(|p| p.number()).collect::<Vec<_>>(), [80, 443]);
        assert_eq!(
            settings,
            Settings {
                ports: settings.ports.clone(),
                pids: Predecessors::None,
                takeover: Takeover::On,
                secret: None,
                config: None,
                transparent: Transparent::Auto,
                intercept: vec![],
                firewall: Firewall::Auto,
                mark: None,
                table: None,
                reload_guard: ReloadGuard::Auto,
                stop_deadline: Duration::from_secs(295),
                drain_deadline: Duration::from_secs(295),
                max_generations: 8,
                on_crash: OnCrash::Restart,
                log_format: LogFormat::Text,
                log_level: LevelFilter::INFO,
                metrics: None,
                watch: Watch::Off,
                syslog: None,
            }
        );
        assert_eq!(warnings, []);
    }

    #[test]
    fn every_variable_reaches_its_setting() {
        let (settings, warnings) = read(&[
            ("HAPROXY_PORTS", "8080"),
            ("HAPROXY_TAKEOVER", "off"),
            ("HAPROXY_TAKEOVER_SECRET_FILE", "/there.secret"),
            ("HAPROXY_CONFIG", "/there.cfg"),
            ("HAPROXY_TRANSPARENT", "on"),
            ("HAPROXY_INTERCEPT", "80:8080"),
            ("HAPROXY_FIREWALL", "iptables"),
            ("HAPROXY_MARK", "0x10/0xf0"),
            ("HAPROXY_TABLE", "77"),
            ("HAPROXY_RELOAD_GUARD", "hold"),
            ("HAPROXY_STOP_DEADLINE", "10"),
            ("HAPROXY_DRAIN_DEADLINE", "20m"),
            ("HAPROXY_MAX_GENERATIONS", "3"),
            ("HAPROXY_ON_CRASH", "exit"),
            ("HAPROXY_LOG_FORMAT", "json"),
            ("HAPROXY_LOG_LEVEL", "trace"),
            ("HAPROXY_METRICS", "[::1]:9101"),
            ("HAPROXY_WATCH", "on"),
            ("HAPROXY_SYSLOG", "127.0.0.1:514"),
        ])
        .unwrap();
        let port = |number| Port::new(number).unwrap();
        assert_eq!(
            settings,
            Settings {
                ports: vec![port(8080)],
                pids: Predecessors::None,
                takeover: Takeover::Off,
                secret: Some(secret()),
                config: Some("/there.cfg".into()),
                transparent: Transparent::On,
                intercept: vec![crate::host::mark::Intercept { from: port(80), to: port(8080) }],
                firewall: Firewall::Iptables,
                mark: FwMark::new(0x10, 0xf0),
                table: TableId::new(77),
                reload_guard: ReloadGuard::Hold,
                stop_deadline: Duration::from_secs(10),
                drain_deadline: Duration::from_mins(20),
                max_generations: 3,
                on_crash: OnCrash::Exit,
                log_format: LogFormat::Json,
                log_level: LevelFilter::TRACE,
                metrics: Some("[::1]:9101".parse().unwrap()),
                watch: Watch::On,
                syslog: Some("127.0.0.1:514".parse().unwrap()),
            }
        );
        assert_eq!(warnings, []);
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let all: Vec<_> =
            names::OURS.iter().map(|v| v.name).chain(names::NOT_YET).map(|n| (n, " ")).collect();
        assert_eq!(read(&all).unwrap(), read(&[]).unwrap());
    }

    #[test]
    fn all_mistakes_are_reported_at_once_each_with_value_expectation_and_example() {
        let mistakes = read(&[
            ("HAPROXY_PORTS", "eighty"),
            ("HAPROXY_STOP_DEADLINE", "5 parsecs"),
            ("HAPROXY_CONFIG", "/missing"),
        ])
        .unwrap_err();
        let text = mistakes.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[0], "3 settings are wrong, nothing was changed:");
        assert_eq!(
            lines[1],
            "  HAPROXY_PORTS=\"eighty\": \"eighty\" is not a port (1 to 65535); expected ports \
             from 1 to 65535 separated by commas, for example HAPROXY_PORTS=80,443"
        );
        assert!(lines[2].contains("HAPROXY_CONFIG=\"/missing\": no such file"), "{text}");
        assert!(lines[3].contains("HAPROXY_STOP_DEADLINE=\"5 parsecs\""), "{text}");
        assert!(lines[3].ends_with("for example HAPROXY_STOP_DEADLINE=295s"), "{text}");
    }

    #[test]
    fn a_slip_of_the_fingers_is_told_beside_a_mistake() {
        let both = read(&[("HAPROXY_PORTS", "eighty"), ("HAPROXY_PROTS", "80")]).unwrap_err();
        let text = both.to_string();
        assert!(
            text.ends_with(
                "\n  warning: HAPROXY_PROTS: there is no such setting, it is ignored; \
             HAPROXY_PORTS is one"
            ),
            "{text}"
        );
    }

    #[test]
    fn each_variable_refuses_what_it_does_not_know() {
        for (name, value, reason) in [
            ("HAPROXY_PORTS", "80,,443", "empty entry"),
            ("HAPROXY_PIDS", "12 x", "\"x\" is not a PID"),
            ("HAPROXY_TAKEOVER", "maybe", "on or off"),
            ("HAPROXY_TAKEOVER_SECRET_FILE", "/open", "other users may read it"),
            ("HAPROXY_CONFIG", "/missing", "no such file"),
            ("HAPROXY_TRANSPARENT", "maybe", "auto, on or off"),
            ("HAPROXY_INTERCEPT", "80:80", "to itself"),
            ("HAPROXY_FIREWALL", "ufw", "auto, iptables or nftables"),
            ("HAPROXY_MARK", "0", "no bits"),
            ("HAPROXY_TABLE", "254", "the kernel's own"),
            ("HAPROXY_RELOAD_GUARD", "migrate", "auto, hold, drop or none"),
            ("HAPROXY_STOP_DEADLINE", "-1s", "not a length of time"),
            ("HAPROXY_DRAIN_DEADLINE", "0s", "too short"),
            ("HAPROXY_MAX_GENERATIONS", "1", "2 to 64"),
            ("HAPROXY_ON_CRASH", "pray", "restart or exit"),
            ("HAPROXY_LOG_FORMAT", "xml", "text or json"),
            ("HAPROXY_LOG_LEVEL", "loud", "error, warn, info"),
            ("HAPROXY_METRICS", "localhost:9101", "not an IP address and a port"),
            ("HAPROXY_METRICS", "127.0.0.1:0", "port 0"),
            ("HAPROXY_WATCH", "yes", "on or off"),
            ("HAPROXY_SYSLOG", "0.0.0.0:514", "not of the loopback"),
        ] {
            let Mistakes { mistakes, .. } = read(&[(name, value)]).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{name}={value}");
            assert_eq!(mistakes[0].variable, name);
            assert_eq!(mistakes[0].value, value);
            assert!(mistakes[0].to_string().contains(reason), "{}", mistakes[0]);
        }
    }

    #[test]
    fn an_intercept_without_transparent_proxying_is_a_contradiction() {
        let off = ("HAPROXY_TRANSPARENT", "off");
        let text = read(&[off, ("HAPROXY_INTERCEPT", "80:8080")]).unwrap_err().to_string();
        assert!(text.contains("HAPROXY_TRANSPARENT=off rules it out"), "{text}");
        assert!(read(&[off]).is_ok());
    }

    #[test]
    fn the_examples_that_mistakes_give_are_themselves_valid() {
        for variable in names::OURS.iter().filter(|variable| variable.name != names::CONFIG.name) {
            let example = variable.example.trim_matches('"');
            assert!(read(&[(variable.name, example)]).is_ok(), "{}={example}", variable.name);
        }
    }

    #[test]
    fn a_value_that_is_not_utf_8_is_a_mistake_and_a_foreign_one_is_not() {
        let garbage = || OsString::from_vec(vec![0xff, 0xfe]);
        let read = |name: OsString| {
            let (config, secret) =
                (|_: &Path| unreachable!("no path"), |_: &Path| unreachable!("no path"));
            Settings::from_variables([(name, garbage())], config, secret)
        };
        let text = read("HAPROXY_PORTS".into()).unwrap_err().to_string();
        assert!(text.contains("HAPROXY_PORTS=") && text.contains("not UTF-8"), "{text}");
        assert!(read("LS_COLORS".into()).is_ok());
        assert!(read(garbage()).is_ok());
    }

    #[test]
    fn those_to_take_over_from_are_named_or_to_be_found() {
        for (text, wanted) in
            [("12,13", Predecessors::Pids(vec![12, 13])), ("auto", Predecessors::Auto)]
        {
            let (settings, warnings) = read(&[("HAPROXY_PIDS", text)]).unwrap();
            assert_eq!((settings.pids, warnings.len()), (wanted, 0));
        }
    }

    #[test]
    fn a_variable_that_is_nearly_ours_is_warned_about_with_the_one_meant() {
        let warned = warnings(&[("HAPROXY_PORT", "80"), ("HAPROXY_BACKEND", "x")]);
        let expected =
            "HAPROXY_PORT: there is no such setting, it is ignored; HAPROXY_PORTS is one";
        assert_eq!(warned, [expected]);
    }

    #[test]
    fn settings_of_later_versions_are_warned_about() {
        let variables: Vec<_> = names::NOT_YET.iter().map(|name| (*name, "on")).collect();
        let warnings = warnings(&variables);
        assert_eq!(warnings.len(), names::NOT_YET.len());
        assert!(warnings[0].starts_with("HAPROXY_DISCOVERY: this version does not have it"));
    }
}
