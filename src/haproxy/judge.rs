//! Acts: looks at the configuration as HAProxy is about to read it, before each launch, so that a
//! reload is warned of like a start. HAProxy has the last word.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use rustix::thread::{CapabilitySet, capabilities, no_new_privs};

use super::configuration::environment::Environment;
use super::configuration::named::Named;
use super::configuration::reader::Reader;
use super::configuration::{Configuration, Directory, Facts, Found, judge};
use super::configuration_files;
use super::launch::StateFile;
use super::places;
use super::version::Build;
use crate::host::surroundings::{is_local, reverse_path};
use crate::problem::Problem;

/// What stays the same while the configuration changes.
#[derive(Clone, Debug)]
pub struct Judge {
    /// Files and directories; none for the embedded default.
    pub paths: Vec<PathBuf>,
    /// `-C` of HAProxy's arguments.
    pub directory: Option<PathBuf>,
    pub build: Build,
    pub hostname: String,
    pub local_peer: Option<String>,
    pub maxconn: Option<u64>,
    pub descriptors: Option<u64>,
    /// hapilot's own.
    pub own_descriptors: Option<u64>,
    pub transparent: bool,
    /// `HAPROXY_INTERCEPT` diverts clients.
    pub intercepts: bool,
    /// Ports from this one on may be bound without a right.
    pub open_from: u16,
    /// Ours, where the configuration does not name one.
    pub state_file: PathBuf,
}

#[derive(Debug, Default)]
pub struct Judgement {
    pub problems: Vec<Problem>,
    /// Where the configuration expects the servers' state, if it does.
    pub state_file: Option<StateFile>,
    /// `stats maxconn`.
    pub questions: Option<u64>,
    /// How long it accepts after it was told to stop.
    pub grace: Duration,
    /// Where HAProxy will look for `/dev/log`, if it sends its log there.
    pub syslog: Vec<PathBuf>,
    /// Directories that it needs and that are not there.
    pub missing: Vec<Found<Directory>>,
}

impl Judge {
    /// What cannot be read is HAProxy's to complain about, in its own words.
    #[must_use]
    pub fn read(&self) -> Configuration {
        let reader = reader(&self.build, self.local_peer.as_deref(), &self.hostname);
        configuration_files::read(&self.paths, self.directory.as_deref(), &reader)
            .unwrap_or_default()
    }

    #[must_use]
    pub fn judge(&self) -> Judgement {
        let configuration = self.read();
        let facts = Facts {
            version: &self.build.version,
            hostname: &self.hostname,
            local_peer: self.local_peer.as_deref(),
            maxconn: self.maxconn,
            descriptors: self.descriptors,
            own_descriptors: self.own_descriptors,
            transparent: self.transparent,
            may_be_transparent: may_be_transparent(),
            no_new_privs: no_new_privs().is_ok_and(|set| set),
            open_from: self.open_from,
        };
        let mut problems = judge(&configuration, &facts);
        let missing = places::missing(&configuration.directories);
        problems.extend(places::problems(&missing));
        problems.extend(self.surroundings(&configuration));
        let syslog = syslog(&configuration);
        let grace = configuration.grace.as_ref().map_or(Duration::ZERO, |grace| grace.value);
        let state_file = self.state_file(&configuration);
        let questions = configuration.stats_maxconn.as_ref().map(|found| found.value);
        Judgement { problems, state_file, questions, grace, syslog, missing }
    }

    /// What of the host breaks the transparent proxying that this configuration uses.
    fn surroundings(&self, configuration: &Configuration) -> Vec<Problem> {
        if !self.transparent {
            return Vec::new();
        }
        let servers = configuration.proxies.transparent_servers();
        let local: Vec<_> = servers.iter().filter(|found| is_local(found.value)).collect();
        let beside = local.first().map(|found| server_beside(found, local.len()));
        let used = self.intercepts || !configuration.usesrc.is_empty();
        used.then(reverse_path).flatten().into_iter().chain(beside).collect()
    }

    /// The files that the configuration names, those of its lists included.
    #[must_use]
    pub fn named(&self, directories: &[PathBuf]) -> Named {
        let mut named = self.read().named;
        for list in named.lists.clone() {
            let places: Vec<_> = named.places(&list, directories).collect();
            for text in places.iter().filter_map(|place| std::fs::read_to_string(place).ok()) {
                text.lines().for_each(|line| named.of_list(line));
            }
        }
        named
    }

    fn state_file(&self, configuration: &Configuration) -> Option<StateFile> {
        let Configuration { server_state_file, server_state_base, .. } = configuration;
        configuration.loads_server_state.then(|| match (server_state_file, server_state_base) {
            (Some(file), Some(base)) => StateFile::Theirs(base.join(file)),
            (Some(file), None) => StateFile::Theirs(file.clone()),
            (None, _) => StateFile::Ours(self.state_file.clone()),
        })
    }
}

/// With the environment that HAProxy finds: ours, and what each launch adds to it.
#[must_use]
pub fn reader(build: &Build, local_peer: Option<&str>, hostname: &str) -> Reader {
    let ours = ["HAPILOT_GENERATION", "HAPILOT_VERSION", "HAPILOT_HAPROXY_VERSION"];
    let inherited = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, lossy(&value))));
    let added = ours.into_iter().map(|name| (name.to_owned(), String::new()));
    let all = inherited.chain(added);
    let environment = Environment::new(all, &build.version, local_peer.unwrap_or(hostname));
    Reader { build: build.clone(), environment }
}

/// Its answers go straight to the client's address: they never come in from outside.
fn server_beside(first: &Found<IpAddr>, count: usize) -> Problem {
    let Found { value: address, place } = first;
    let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
    Problem::new(
        format!(
            "{place}: the server {address}{more} is on this very host: with usesrc its answers go \
             straight to the client, never to HAProxy, and the connection times out"
        ),
        "write source 0.0.0.0 (source :: for IPv6) on that server line; send-proxy can tell the server \
         the client's address",
    )
}

fn may_be_transparent() -> bool {
    let either = CapabilitySet::NET_RAW | CapabilitySet::NET_ADMIN;
    capabilities(None).is_ok_and(|sets| sets.effective.intersects(either))
}

fn lossy(value: &OsStr) -> String {
    value.to_string_lossy().into_owned()
}

/// HAProxy looks for it anew with each message, so a `chroot` has one of its own; what it says
/// before is said outside.
fn syslog(configuration: &Configuration) -> Vec<PathBuf> {
    if !configuration.logs_to_dev_log {
        return Vec::new();
    }
    let inside = configuration.chroot.iter().map(|root| root.join("dev/log"));
    std::iter::once(PathBuf::from("/dev/log")).chain(inside).collect()
}
