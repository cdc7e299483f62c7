//! Decides: what can be read out of a configuration without being HAProxy. Conditions and variables
//! are evaluated as HAProxy does (`reader`). It is a hint all the same: HAProxy has the last word.

mod blocks;
mod condition;
pub mod environment;
pub mod judgement;
mod line;
pub mod named;
mod proxies;
pub mod reader;
mod time;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use environment::is_known;
pub use judgement::{Facts, closed_port, judge};
use named::Named;
use proxies::Proxies;
pub use reader::Certainty;
use reader::{Line, Section};

/// Where something stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A value with the place where it was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    pub value: T,
    pub place: Place,
}

/// `timeout client`, `server` or `tunnel`: what a silent session lives for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeout {
    pub of: String,
    /// Zero is for ever.
    pub value: Duration,
}

/// A directory that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    pub path: PathBuf,
    /// The keyword that needs it.
    pub of: &'static str,
}

/// A `peers` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers {
    pub section: String,
    pub place: Place,
    pub names: Vec<String>,
    pub disabled: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// `source … usesrc …`: connections to servers from addresses that are not ours.
    pub usesrc: Vec<Found<Certainty>>,
    /// `bind … transparent`, where it is certain.
    pub transparent_binds: Vec<Place>,
    pub server_state_file: Option<PathBuf>,
    pub server_state_base: Option<PathBuf>,
    /// `load-server-state-from-file` with `global` or `local` somewhere.
    pub loads_server_state: bool,
    pub master_worker: Option<Place>,
    /// The first `program` section: only a master runs those.
    pub program: Option<Place>,
    pub daemon: Option<Place>,
    pub maxconn: Option<Found<u64>>,
    /// `user` or `uid`, unless it is root.
    pub user: Option<Place>,
    pub group: Option<Place>,
    /// The capabilities of `setcap`.
    pub setcap: Vec<String>,
    pub chroot: Option<PathBuf>,
    pub peers: Vec<Peers>,
    pub local_peer: Option<Found<String>>,
    /// `log /dev/log …` somewhere.
    pub logs_to_dev_log: bool,
    /// Of all `bind` lines.
    pub lowest_port: Option<Found<u16>>,
    pub hard_stop_after: Option<Found<Duration>>,
    /// How long HAProxy goes on accepting after it was told to stop.
    pub grace: Option<Found<Duration>>,
    pub timeouts: Vec<Found<Timeout>>,
    /// How many sockets it listens at, as far as that can be read.
    pub listeners: u64,
    pub descriptors: Descriptors,
    /// `namespace` of a `bind` or `server` line.
    pub namespace: Option<Place>,
    pub named: Named,
    /// Of unix sockets that are bound, and of `chroot`; with `unix-bind prefix`.
    pub directories: Vec<Found<Directory>>,
    unix_prefix: String,
    pub stats_maxconn: Option<Found<u64>>,
    pub pidfile: Option<Place>,
    pub insecure_setuid_wanted: Option<Place>,
    pub proxies: Proxies,
    /// Variables that are needed and not set, each where it is needed first.
    pub unset: Vec<Found<String>>,
}

/// Descriptors that HAProxy is to inherit: `fd@7`, `sockpair@7`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descriptors {
    numbers: BTreeSet<i32>,
    /// One that cannot be read may be any.
    any: bool,
}

impl Descriptors {
    #[must_use]
    pub fn has(&self, number: i32) -> bool {
        self.any || self.numbers.contains(&number)
    }

    fn word(&mut self, word: &str) {
        for address in word.split(',') {
            let address = address.rsplit_once('+').map_or(address, |(_, address)| address);
            let number = ["fd@", "sockpair@"].iter().find_map(|kind| address.strip_prefix(kind));
            match number.map(str::parse) {
                Some(Ok(number)) => drop(self.numbers.insert(number)),
                Some(Err(_)) => self.any = true,
                None => {}
            }
        }
    }
}

impl Configuration {
    /// The first line that certainly needs the host to be set up for transparent proxying.
    #[must_use]
    pub fn needs_the_host(&self) -> Option<&Place> {
        let certain = |found: &&Found<Certainty>| found.value == Certainty::Certain;
        self.usesrc.iter().find(certain).map(|found| &found.place)
    }

    fn misses(&mut self, name: &str, place: &Place) {
        if self.unset.iter().all(|found| found.value != name) {
            self.unset.push(Found { value: name.to_owned(), place: place.clone() });
        }
    }

    fn line(&mut self, line: &Line) {
        self.named.line(&line.words);
        line.words.iter().for_each(|word| self.descriptors.word(word));
        self.proxies.line(line);
        if line.begins && line.section == Section::Peers {
            let section = line.words.get(1).cloned().unwrap_or_default();
            let place = line.place.clone();
            self.peers.push(Peers { section, place, names: vec![], disabled: false });
        }
        if line.begins {
            if line.words.first().is_some_and(|word| word == "program") {
                self.program.get_or_insert_with(|| line.place.clone());
            }
            return;
        }
        let [keyword, arguments @ ..] = line.words.as_slice() else { return };
        self.logs(line, keyword, arguments);
        self.listens(line, keyword, arguments);
        self.unix_sockets(line, keyword, arguments);
        match line.section {
            Section::Global => self.global(line, keyword, arguments),
            Section::Peers => self.peer(keyword, arguments),
            Section::Defaults | Section::Frontend | Section::Backend | Section::Listen => {
                self.proxy(line, keyword, arguments);
            }
            Section::LogForward | Section::Other | Section::None => {}
        }
    }

    /// `log` may stand in nearly every section, and in mode log a server is a receiver of lines.
    fn logs(&mut self, line: &Line, keyword: &str, arguments: &[String]) {
        let address = match (keyword, line.section) {
            ("log", _) if line.modifier.is_none() => arguments.first(),
            ("server", Section::Backend | Section::Listen | Section::Defaults) => arguments.get(1),
            _ => None,
        };
        self.logs_to_dev_log |= address.is_some_and(|address| path(address) == Some("/dev/log"));
    }

    fn listens(&mut self, line: &Line, keyword: &str, arguments: &[String]) {
        let listens = match line.section {
            Section::Frontend | Section::Listen | Section::Peers => keyword == "bind",
            Section::LogForward => matches!(keyword, "bind" | "dgram-bind"),
            _ => false,
        };
        if let Some(addresses) = arguments.first().filter(|_| listens) {
            let mut shards = arguments.iter().skip_while(|word| *word != "shards").skip(1);
            let shards = shards.next().and_then(|number| number.parse().ok()).unwrap_or(1);
            self.listeners =
                self.listeners.saturating_add(sockets(addresses) * shards.clamp(1, 4096));
        }
    }

    /// A unix socket is made in a directory, which HAProxy does not make.
    fn unix_sockets(&mut self, line: &Line, keyword: &str, arguments: &[String]) {
        let (addresses, of) = match (keyword, arguments) {
            ("stats", [socket, address, ..]) if socket == "socket" => (address, "stats socket"),
            ("bind", [addresses, ..]) => (addresses, "bind"),
            _ => return,
        };
        for path in addresses.split(',').filter_map(path) {
            let path = PathBuf::from(format!("{}{path}", self.unix_prefix));
            self.directory(path.parent(), of, line);
        }
    }

    fn directory(&mut self, path: Option<&Path>, of: &'static str, line: &Line) {
        let Some(path) = path.filter(|path| path.to_str().is_some_and(is_known)) else { return };
        if line.certainty == Certainty::Certain {
            let value = Directory { path: path.to_owned(), of };
            self.directories.push(Found { value, place: line.place.clone() });
        }
    }

    fn global(&mut self, line: &Line, keyword: &str, arguments: &[String]) {
        let first = arguments.first().map_or("", String::as_str);
        let place = line.place.clone();
        match keyword {
            "master-worker" => self.master_worker = Some(place),
            "daemon" => self.daemon = Some(place),
            "user" if first != "root" => self.user = Some(place),
            "uid" if first != "0" => self.user = Some(place),
            "group" | "gid" => self.group = Some(place),
            "setcap" => self.setcap.extend(first.split(',').map(str::to_owned)),
            "chroot" if is_known(first) => {
                self.chroot = Some(first.into());
                self.directory(Some(Path::new(first)), "chroot", line);
            }
            "unix-bind" => {
                let prefix = arguments.windows(2).find(|pair| pair[0] == "prefix");
                self.unix_prefix = prefix.map(|pair| pair[1].clone()).unwrap_or_default();
            }
            "stats" if first == "maxconn" => {
                let value = arguments.get(1).and_then(|value| value.parse().ok());
                self.stats_maxconn = value.map(|value| Found { value, place });
            }
            "pidfile" => self.pidfile = Some(place),
            "insecure-setuid-wanted" if line.modifier.is_none() => {
                self.insecure_setuid_wanted = Some(place);
            }
            "server-state-file" if is_known(first) => self.server_state_file = Some(first.into()),
            "server-state-base" if is_known(first) => self.server_state_base = Some(first.into()),
            "localpeer" => {
                self.local_peer = Some(Found { value: first.to_owned(), place });
            }
            "hard-stop-after" => {
                self.hard_stop_after = time::time(first).map(|value| Found { value, place });
            }
            "grace" => {
                self.grace = time::time(first).map(|value| Found { value, place });
            }
            "maxconn" => {
                self.maxconn = first.parse().ok().map(|value| Found { value, place });
            }
            _ => {}
        }
    }

    fn peer(&mut self, keyword: &str, arguments: &[String]) {
        let Some(peers) = self.peers.last_mut() else {
            return;
        };
        match (keyword, arguments.first()) {
            ("peer" | "server", Some(name)) => peers.names.push(name.clone()),
            ("disabled", _) => peers.disabled = true,
            ("enabled", _) => peers.disabled = false,
            _ => {}
        }
    }

    fn proxy(&mut self, line: &Line, keyword: &str, arguments: &[String]) {
        let place = line.place.clone();
        // A name or an address comes first and may read like an option.
        let has = |word| arguments.iter().skip(1).any(|argument| argument == word);
        if matches!(keyword, "bind" | "server" | "server-template") && has("namespace") {
            self.namespace.get_or_insert_with(|| place.clone());
        }
        if keyword == "bind"
            && let Some(value) = arguments.first().and_then(|addresses| lowest_port(addresses))
            && self.lowest_port.as_ref().is_none_or(|lowest| value < lowest.value)
        {
            self.lowest_port = Some(Found { value, place: place.clone() });
        }
        let usesrc = match keyword {
            "source" | "server" | "server-template" => has("usesrc"),
            "default-server" => arguments.iter().any(|word| word == "usesrc"),
            _ => false,
        };
        if usesrc {
            self.usesrc.push(Found { value: line.certainty, place: place.clone() });
        }
        match keyword {
            "timeout" => self.timeouts.extend(timeout(arguments, place)),
            "bind" if has("transparent") && line.certainty == Certainty::Certain => {
                self.transparent_binds.push(place);
            }
            "load-server-state-from-file" => {
                self.loads_server_state |= arguments.first().is_some_and(|mode| mode != "none");
            }
            _ => {}
        }
    }
}

/// Of an address that is a unix socket with a file.
fn path(address: &str) -> Option<&str> {
    let address =
        ["stream+", "dgram+"].iter().find_map(|kind| address.strip_prefix(kind)).unwrap_or(address);
    let families = ["unix@", "uxdg@", "uxst@"];
    let path = families.iter().find_map(|family| address.strip_prefix(family)).unwrap_or(address);
    path.starts_with('/').then_some(path)
}

/// Of a list as in `10.0.0.1:80,[::]:443-450`; none for unix sockets and environment variables.
fn lowest_port(addresses: &str) -> Option<u16> {
    let port = |address: &str| {
        let (_, ports) = address.rsplit_once(':')?;
        ports.split('-').next()?.parse().ok()
    };
    addresses.split(',').filter_map(port).min()
}

/// Of a list as in `10.0.0.1:80,[::]:443-450`.
fn sockets(addresses: &str) -> u64 {
    let of_one = |address: &str| {
        let (_, ports) = address.rsplit_once(':')?;
        let (first, last) = ports.split_once('-')?;
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        Some(u64::from(last.checked_sub(first)?) + 1)
    };
    addresses.split(',').map(|address| of_one(address).unwrap_or(1)).sum()
}

fn timeout(arguments: &[String], place: Place) -> Option<Found<Timeout>> {
    let [of, value, ..] = arguments else { return None };
    let counts = ["client", "server", "tunnel"].contains(&of.as_str());
    let value = time::time(value).filter(|_| counts)?;
    Some(Found { value: Timeout { of: of.clone(), value }, place })
}

#[cfg(test)]
mod tests {
    use super::reader::{read_text as scan, reader};
    use super::*;

    fn places<'a>(places: impl IntoIterator<Item = &'a Place>) -> Vec<String> {
        places.into_iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_configuration_that_says_nothing_gives_nothing() {
        assert_eq!(scan(""), Configuration::default());
        let found = scan("global\n # user haproxy\ndefaults\n");
        let proxies = found.proxies.clone();
        assert_eq!(found, Configuration { proxies, ..Configuration::default() });
    }

    #[test]
    fn the_global_section_is_read_word_by_word() {
        let found = scan(
            "global\n  master-worker no-exit-on-failure\n  daemon\n  maxconn 4000\n  user haproxy\n  \
             group haproxy\n  chroot /var/empty\n  setcap cap_net_admin,cap_net_raw\n  \
             server-state-base /run\n  server-state-file \"/run/a b\"\n  localpeer lb1 # us\n\
             defaults\n  load-server-state-from-file global\n",
        );
        assert_eq!(found.master_worker.unwrap().line, 2);
        assert_eq!(found.daemon.unwrap().line, 3);
        assert_eq!(found.maxconn.unwrap().value, 4000);
        assert_eq!(found.user.unwrap().line, 5);
        assert_eq!(found.group.unwrap().line, 6);
        assert_eq!(found.chroot, Some("/var/empty".into()));
        assert_eq!(found.setcap, ["cap_net_admin", "cap_net_raw"]);
        assert_eq!(found.server_state_base, Some("/run".into()));
        assert_eq!(found.server_state_file, Some("/run/a b".into()));
        assert_eq!(found.local_peer.unwrap().value, "lb1");
        assert!(found.loads_server_state);
    }

    #[test]
    fn what_bounds_a_session_is_found_with_its_place() {
        let found = scan(
            "global\n hard-stop-after 30s\n grace 4s\ndefaults\n timeout connect 1d\n timeout client 1m\n \
             timeout tunnel 1h\n timeout server x\n timeout client\n",
        );
        assert_eq!(found.hard_stop_after.unwrap().value, Duration::from_secs(30));
        assert_eq!(found.grace.unwrap().value, Duration::from_secs(4));
        let timeouts: Vec<_> = found
            .timeouts
            .iter()
            .map(|found| (&*found.value.of, found.value.value.as_secs(), found.place.line))
            .collect();
        assert_eq!(timeouts, [("client", 60, 6), ("tunnel", 3600, 7)]);
    }

    #[test]
    fn the_lowest_port_of_all_is_found() {
        let lowest = |binds: &str| {
            let found = scan(&format!("frontend f\n bind {binds}\n")).lowest_port;
            found.map(|found| found.value)
        };
        assert_eq!(lowest(":8080\n bind *:443,ipv6@:::80-90 ssl\n bind [fd00::1]:99"), Some(80));
        for none in ["/run/a.sock", "abns@a", "\"$ADDRESS\"", ":${PORT}", "fd@3", ":\n bind"] {
            assert_eq!(lowest(none), None, "{none}");
        }
    }

    #[test]
    fn descriptors_are_found_wherever_they_are_named() {
        let text = "global\n log fd@8 local0\n log stdout local0\nfrontend f\n bind fd@3,:80\n\
                    backend b\n server s sockpair@12\n server abfd@9 10.0.0.1:1\n";
        let found = scan(text).descriptors;
        let has: Vec<_> = (0..20).filter(|number| found.has(*number)).collect();
        assert_eq!(has, [3, 8, 12]);
        assert!(scan("frontend f\n bind \"fd@${NOT_SET_ANYWHERE}\"\n").descriptors.has(17));
    }

    #[test]
    fn listeners_are_counted_with_their_ranges_lists_and_shards() {
        let text = "frontend f\n bind :80\n bind :1000-1599,[::]:90 shards 2\n bind abns@a\n\
                    backend b\n server bind 10.0.0.1:1-9\nlog-forward l\n dgram-bind :514\n";
        assert_eq!(scan(text).listeners, 1 + 2 * 601 + 1 + 1);
    }

    #[test]
    fn a_namespace_is_found() {
        let found = scan("listen l\n bind :80\n server namespace 10.0.0.1:1 namespace red\n");
        assert_eq!(found.namespace.unwrap().line, 3);
        assert_eq!(scan("listen l\n server namespace 10.0.0.1:1\n").namespace, None);
    }

    #[test]
    fn words_of_global_mean_something_else_elsewhere() {
        let found = scan(
            "defaults\n maxconn 10\n user x\nprogram p\n user haproxy\nresolvers r\n group x\n\
             userlist u\n user joe password x\n",
        );
        let program = found.program.clone();
        assert_eq!(program.as_ref().map(|place| place.line), Some(4));
        let proxies = found.proxies.clone();
        assert_eq!(found, Configuration { program, proxies, ..Configuration::default() });
    }

    #[test]
    fn root_as_user_is_no_change_of_user() {
        assert_eq!(scan("global\n user root\n uid 0\n").user, None);
        assert!(scan("global\n uid 99\n").user.is_some());
    }

    #[test]
    fn what_needs_transparent_proxying_is_found_with_its_place() {
        let found = scan(
            "frontend f\n  bind :80\n  bind :8080 name x transparent\n  bind transparent\n\
             backend b\n  source 0.0.0.0 usesrc clientip\n  #source 0.0.0.0 usesrc client\n  \
             server usesrc 10.0.0.1:80\n  server s 10.0.0.2:80 source :: usesrc \"hdr_ip(x, -1)\"\n  \
             source 10.0.0.9\n  default-server source 0.0.0.0 usesrc clientip\n  option transparent\n",
        );
        assert_eq!(places(&found.transparent_binds), ["h.cfg:3"]);
        let usesrc = found.usesrc.iter().map(|found| &found.place);
        assert_eq!(places(usesrc), ["h.cfg:6", "h.cfg:9", "h.cfg:11"]);
        assert_eq!(places(found.needs_the_host()), ["h.cfg:6"]);
    }

    #[test]
    fn peers_are_listed_by_section() {
        let found = scan(
            "peers one\n peer a 10.0.0.1:1024\n peer b 10.0.0.2:1024\n\
             peers two\n disabled\n bind :1024\n server c\nbackend x\n server d 10.0.0.3\n",
        );
        let seen: Vec<_> =
            found.peers.iter().map(|p| (&*p.section, p.place.line, p.disabled)).collect();
        assert_eq!(seen, [("one", 1, false), ("two", 4, true)]);
        assert_eq!(found.peers[0].names, ["a", "b"]);
        assert_eq!(found.peers[1].names, ["c"]);
    }

    #[test]
    fn a_section_ends_with_its_file() {
        let files = [
            ("first.cfg".into(), "global\n maxconn 5\n".to_owned()),
            ("second.cfg".into(), " daemon\nglobal\n maxconn 6\n".to_owned()),
        ];
        let found = reader("3.0.1", &[]).read(&files);
        assert_eq!(found.daemon, None);
        assert_eq!(found.maxconn.unwrap().place.to_string(), "second.cfg:3");
    }

    #[test]
    fn directories_of_sockets_are_found_with_the_prefix() {
        let found = scan(
            "global\n stats socket /run/haproxy/admin.sock mode 660\n stats socket ipv4@127.0.0.1:9\n \
             stats timeout 30s\n unix-bind prefix /jail mode 600\n chroot /empty\n\
             frontend f\n bind :80,unix@/a/b.sock\n bind abns@x\n bind \"$HAPROXY_TCP_LOG_FMT/x/y\"\n",
        );
        let seen: Vec<_> = found
            .directories
            .iter()
            .map(|found| (found.value.path.to_str().unwrap(), found.value.of, found.place.line))
            .collect();
        let expected =
            [("/run/haproxy", "stats socket", 2), ("/empty", "chroot", 6), ("/jail/a", "bind", 8)];
        assert_eq!(seen, expected);
    }

    #[test]
    fn every_spelling_of_dev_log_is_known() {
        let logs = |text: &str| {
            reader("3.0.1", &[("LOG", "/dev/log")])
                .read(&[("h.cfg".into(), text.to_owned())])
                .logs_to_dev_log
        };
        for text in [
            "global\n log /dev/log local0\n",
            "global\n log unix@/dev/log len 4096 local0\n",
            "global\n log \"uxdg@$LOG\" local0\n",
            "global\n log ${LOG} local0\n",
            "global\n log '$LOG' local0\n",
            "global\n log \"${NO-/dev/log}\" local0\n",
            "global\n setenv TO /dev/log\n log \"$TO\" local0\n",
            "defaults x\n log /dev/log local0\n",
            "frontend f\n log dgram+unix@/dev/log local0\n",
            "listen f from x\n log /dev/log local0\n",
            "log-forward f\n log /dev/log local0\n",
            "peers p\n log /dev/log local0\n",
            "backend b\n mode log\n server s uxdg@/dev/log\n",
            "global\n.if enabled(SPLICE)\n log /dev/log local0\n.endif\n",
        ] {
            assert!(logs(text), "{text}");
        }
        for text in [
            "global\n log 127.0.0.1 local0\n",
            "global\n log stdout format raw local0\n",
            "global\n log ring@/dev/log local0\n",
            "global\n no log /dev/log\n",
            "global\n.if 0\n log /dev/log local0\n.endif\n",
            "global\n log \"$NO\" local0\n",
        ] {
            assert!(!logs(text), "{text}");
        }
    }
}
