//! Decides: what in a configuration will probably not work here. Warnings, each with its place.

use super::environment::is_known;
use super::{Certainty, Configuration, Found, Peers};
use crate::haproxy::launch::OWN_QUESTIONS;
use crate::haproxy::version::Version;
use crate::problem::Problem;

/// What 2.6 asks for with one listener and two threads. More threads and listeners need more, but
/// a warning that cries wolf is worse than none: HAProxy refuses by itself what cannot work.
const LEAST_BESIDES: u64 = 17;
/// Room for listeners, checks, and some descriptors for each of many threads.
const ROOM: u64 = 1000;
/// Sockets of commands, of clients of the doors, and pipes, as many as there may be at once.
const OF_OURS: u64 = 200;

/// What HAProxy allows where nothing is said.
const FEWEST_QUESTIONS: u64 = 10;
/// Names in one warning.
const SHOWN: usize = 3;

/// What a configuration is held against.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    pub version: &'a Version,
    pub hostname: &'a str,
    /// `-L` of HAProxy's arguments.
    pub local_peer: Option<&'a str>,
    /// `-n` of HAProxy's arguments.
    pub maxconn: Option<u64>,
    /// The hard limit of descriptors; `None` when it is no limit, or may be raised.
    pub descriptors: Option<u64>,
    /// hapilot's own hard limit.
    pub own_descriptors: Option<u64>,
    /// Whether transparent proxying is set up.
    pub transparent: bool,
    /// Whether a socket may be made transparent (`CAP_NET_RAW` or `CAP_NET_ADMIN`).
    pub may_be_transparent: bool,
    /// Whether `no_new_privs` is set, which nothing takes back.
    pub no_new_privs: bool,
    /// Ports from this one on may be bound without a right.
    pub open_from: u16,
}

#[must_use]
pub fn judge(configuration: &Configuration, facts: &Facts<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(master_worker(configuration));
    problems.extend(grace(configuration));
    problems.extend(switched_off(configuration, facts));
    problems.extend(closed_to_transparent(configuration, facts));
    problems.extend(user_with_usesrc(configuration, facts.version));
    problems.extend(descriptors(configuration, facts));
    problems.extend(listeners(configuration, facts));
    problems.extend(void(configuration, facts));
    problems.extend(few_questions(configuration));
    problems.extend(keep_alive(configuration));
    if let Some(lowest) = &configuration.lowest_port {
        problems.extend(closed_port(&lowest.place.to_string(), lowest.value, facts.open_from));
    }
    problems.extend(configuration.unset.iter().map(unset_variable));
    let peers = configuration.peers.iter();
    problems.extend(peers.filter_map(|peers| stranger(peers, configuration, facts)));
    problems
}

/// HAProxy puts in nothing for it, and complains of something else, if of anything.
fn unset_variable(found: &Found<String>) -> Problem {
    let Found { value: name, place } = found;
    Problem {
        what: format!("{place}: the environment variable {name} is not set"),
        mend: format!(
            "docker run -e {name}=…, or write \"${{{name}-VALUE}}\" for a value to stand in"
        ),
    }
}

fn master_worker(configuration: &Configuration) -> Option<Problem> {
    let place = configuration.master_worker.as_ref()?;
    Some(Problem {
        what: format!("{place}: master-worker puts a second supervisor under this one"),
        mend: match &configuration.program {
            None => "remove that line; hapilot does what the master process would do".into(),
            Some(program) => format!(
                "HAProxy refuses the program section ({program}) without it: run that program in a \
                 container of its own, then remove both"
            ),
        },
    })
}

fn grace(configuration: &Configuration) -> Option<Problem> {
    let Found { value, place } =
        configuration.grace.as_ref().filter(|grace| !grace.value.is_zero())?;
    let grace = humantime::format_duration(*value);
    Some(Problem {
        what: format!(
            "{place}: because of `grace` a HAProxy that was told to stop accepts for {grace} more: in a \
             reload new connections meet the old or the new configuration until then, and only then \
             `hapilot reload` comes back"
        ),
        mend: "remove that line, unless something in front must first notice that this one stops"
            .into(),
    })
}

fn switched_off(configuration: &Configuration, facts: &Facts<'_>) -> Option<Problem> {
    let Found { value: certainty, place } =
        configuration.usesrc.first().filter(|_| !facts.transparent)?;
    let if_read = match certainty {
        Certainty::Certain => "",
        Certainty::Possible => "if HAProxy reads this line, ",
    };
    Some(Problem {
        what: format!("{place}: {if_read}this needs transparent proxying, which is not set up"),
        mend: "unless something else does it, run with --cap-add=NET_ADMIN and \
               HAPROXY_TRANSPARENT=on"
            .into(),
    })
}

fn closed_to_transparent(configuration: &Configuration, facts: &Facts<'_>) -> Option<Problem> {
    let place = configuration.transparent_binds.first().filter(|_| !facts.may_be_transparent)?;
    Some(Problem {
        what: format!("{place}: transparent needs the capability NET_RAW, which is missing"),
        mend: "docker run --cap-add=NET_RAW".into(),
    })
}

/// Keywords that come to nothing under hapilot.
fn void(configuration: &Configuration, facts: &Facts<'_>) -> Vec<Problem> {
    let pidfile = configuration.pidfile.as_ref().map(|place| Problem {
        what: format!("{place}: pidfile is not written: HAProxy stays in front"),
        mend: "remove that line; hapilot status shows the PIDs".into(),
    });
    let setuid = configuration.insecure_setuid_wanted.as_ref().filter(|_| facts.no_new_privs);
    let setuid = setuid.map(|place| Problem {
        what: format!("{place}: insecure-setuid-wanted has no effect: no_new_privs is set already"),
        mend: "restart the container, and run it without --security-opt no-new-privileges".into(),
    });
    [pidfile, setuid].into_iter().flatten().collect()
}

/// All stats sockets share it, hapilot's own included.
fn few_questions(configuration: &Configuration) -> Option<Problem> {
    let found =
        configuration.stats_maxconn.as_ref().filter(|found| found.value < FEWEST_QUESTIONS)?;
    Some(Problem {
        what: format!(
            "{}: stats maxconn {} is shared by all runtime sockets, hapilot's own included: it is \
             raised by {OWN_QUESTIONS}, so that clients that stay connected delay no reload",
            found.place, found.value
        ),
        mend: format!("remove that line, or allow {FEWEST_QUESTIONS} or more"),
    })
}

fn keep_alive(configuration: &Configuration) -> Option<Problem> {
    let all = configuration.proxies.unprepared();
    let first = all.first()?;
    let names: Vec<_> = all.iter().take(SHOWN).map(|found| found.value.as_str()).collect();
    let others = match all.len().saturating_sub(SHOWN) {
        0 => String::new(),
        others => format!(" and {others} more"),
    };
    Some(Problem {
        what: format!(
            "{}: without option idle-close-on-response ({}{others}), a reload closes idle keep-alive \
             connections at once: a request that is on its way then meets a closed connection",
            first.place,
            names.join(", ")
        ),
        mend:
            "add option idle-close-on-response to defaults; an old generation then waits for each \
               client's next request, HAPROXY_DRAIN_DEADLINE at most"
                .into(),
    })
}

/// Binding to the client's address takes a capability that goes away with root.
fn user_with_usesrc(configuration: &Configuration, version: &Version) -> Option<Problem> {
    let (usesrc, user) = (&configuration.usesrc.first()?.place, configuration.user.as_ref()?);
    let what = format!("{usesrc}: usesrc needs a capability that {user} gives away with root");
    if !version.at_least(2, 9) {
        let mend = format!("HAProxy {version} must run without user and uid: remove {user}");
        return Some(Problem { what, mend });
    }
    let kept = |capability: &String| ["cap_net_admin", "cap_net_raw"].contains(&&**capability);
    (!configuration.setcap.iter().any(kept))
        .then(|| Problem { what, mend: "add setcap cap_net_admin to the global section".into() })
}

#[must_use]
pub fn closed_port(place: &str, port: u16, open_from: u16) -> Option<Problem> {
    (port < open_from).then(|| Problem {
        what: format!(
            "{place}: port {port} needs the capability NET_BIND_SERVICE, which is missing"
        ),
        mend: format!(
            "docker run --cap-add=NET_BIND_SERVICE, or sysctl \
             net.ipv4.ip_unprivileged_port_start={port} on the host"
        ),
    })
}

fn descriptors(configuration: &Configuration, facts: &Facts<'_>) -> Option<Problem> {
    let limit = facts.descriptors?;
    let (maxconn, place) = match (facts.maxconn, &configuration.maxconn) {
        (Some(maxconn), _) => (maxconn, "the argument -n".to_owned()),
        (None, Some(found)) => (found.value, found.place.to_string()),
        (None, None) => return None,
    };
    let needed = maxconn.saturating_mul(2).saturating_add(LEAST_BESIDES);
    (needed > limit).then(|| Problem {
        what: format!(
            "{place}: maxconn {maxconn} needs at least {needed} file descriptors, the limit is {limit}"
        ),
        mend: format!(
            "docker run --ulimit nofile={}, or a smaller maxconn",
            needed.saturating_add(ROOM)
        ),
    })
}

/// The keeper holds each, and the next generation's a second time while the two are compared.
fn listeners(configuration: &Configuration, facts: &Facts<'_>) -> Option<Problem> {
    let (limit, count) = (facts.own_descriptors?, configuration.listeners);
    let needed = count.saturating_mul(2).saturating_add(OF_OURS);
    (needed > limit).then(|| Problem {
        what: format!(
            "the configuration listens at {count} addresses, which hapilot holds twice in a reload: \
             that needs {needed} file descriptors, and the limit is {limit}, so a reload may not \
             share them and a crash may refuse clients"
        ),
        mend: format!("docker run --ulimit nofile={0}:{0}", needed.next_power_of_two()),
    })
}

/// Without a peer of its own name a section is dropped, and stick tables are lost on reload.
fn stranger(peers: &Peers, configuration: &Configuration, facts: &Facts<'_>) -> Option<Problem> {
    let set = configuration.local_peer.as_ref().map(|found| found.value.as_str());
    let name = facts.local_peer.or(set).unwrap_or(facts.hostname);
    let unknown = |name: &str| !is_known(name);
    if peers.disabled
        || peers.names.is_empty()
        || unknown(name)
        || peers.names.iter().any(|peer| peer == name || unknown(peer))
    {
        return None;
    }
    Some(Problem {
        what: format!(
            "{}: no peer in section {} has our name, {name}: stick tables are lost on each reload",
            peers.place, peers.section
        ),
        mend: format!(
            "put localpeer {} into the global section, or pass -L, or docker run --hostname",
            peers.names[0]
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::reader::read_text;
    use super::*;

    fn version(minor: u16, major: u16) -> Version {
        Version { major, minor, full: format!("{major}.{minor}.1") }
    }

    fn judged(text: &str, version: &Version, change: impl Fn(&mut Facts<'_>)) -> Vec<String> {
        let configuration = read_text(text);
        let mut facts = Facts {
            version,
            hostname: "host",
            local_peer: None,
            maxconn: None,
            descriptors: Some(1024),
            own_descriptors: Some(1024),
            transparent: true,
            may_be_transparent: true,
            no_new_privs: false,
            open_from: 0,
        };
        change(&mut facts);
        judge(&configuration, &facts).iter().map(ToString::to_string).collect()
    }

    fn asis(text: &str) -> Vec<String> {
        judged(text, &version(0, 3), |_| {})
    }

    #[test]
    fn an_ordinary_configuration_is_fine() {
        let text = "global\n maxconn 400\n user haproxy\n daemon\nfrontend f\n bind :80\n";
        assert_eq!(asis(text), [""; 0]);
    }

    #[test]
    fn keywords_that_come_to_nothing_are_named() {
        assert!(
            asis("global\n pidfile /run/x\n")[0].starts_with("h.cfg:2: pidfile is not written")
        );
        let text = "global\n insecure-setuid-wanted\n";
        assert_eq!(asis(text), [""; 0]);
        let told = judged(text, &version(0, 3), |facts| facts.no_new_privs = true);
        assert!(told[0].starts_with("h.cfg:2: insecure-setuid-wanted has no effect"), "{told:?}");
        let few = asis("global\n stats maxconn 1\n");
        assert!(few[0].starts_with("h.cfg:2: stats maxconn 1 is shared"), "{few:?}");
        assert_eq!(asis("global\n stats maxconn 10\n"), [""; 0]);
    }

    #[test]
    fn frontends_whose_keep_alive_clients_lose_requests_are_named_in_one_line() {
        let front = |name: &str| format!("frontend {name}\n bind :80\n");
        let text: String = ["a", "b", "c", "d", "e"].into_iter().map(front).collect();
        let told = asis(&format!("defaults\n mode http\n{text}"));
        assert_eq!(told.len(), 1);
        let begins =
            "h.cfg:3: without option idle-close-on-response (a, b, c and 2 more), a reload";
        assert!(told[0].starts_with(begins), "{told:?}");
    }

    #[test]
    fn a_grace_is_told_with_its_length() {
        let problems = asis("global\n grace 4s\n");
        assert!(problems[0].starts_with("h.cfg:2: because of `grace`"), "{}", problems[0]);
        assert!(problems[0].contains("accepts for 4s more"), "{}", problems[0]);
        assert!(asis("global\n grace 0\n").is_empty());
    }

    #[test]
    fn a_master_under_us_is_one_too_many() {
        let problems = asis("global\n master-worker\nprogram p\n command true\n");
        assert!(problems[0].contains("program section (h.cfg:3)"), "{}", problems[0]);
        let problems = asis("global\n master-worker\n");
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("h.cfg:2: master-worker"), "{}", problems[0]);
    }

    #[test]
    fn transparent_directives_with_transparent_proxying_off_are_named() {
        let text = "backend b\n source 0.0.0.0 usesrc clientip\nfrontend f\n bind :1 transparent\n";
        assert_eq!(asis(text), [""; 0]);
        let raw = judged(text, &version(0, 3), |facts| facts.may_be_transparent = false);
        assert!(raw[0].starts_with("h.cfg:4: transparent needs the capability NET_RAW"), "{raw:?}");
        let problems = judged(text, &version(0, 3), |facts| facts.transparent = false);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("h.cfg:2: this needs transparent proxying"));
    }

    #[test]
    fn usesrc_with_a_user_must_keep_its_capability() {
        let text = "global\n user haproxy\nbackend b\n source 0.0.0.0 usesrc clientip\n";
        let with = |setcap: &str| text.replace("global", &format!("global\n setcap {setcap}"));
        for (minor, major) in [(6, 2), (8, 2)] {
            let problems = judged(text, &version(minor, major), |_| {});
            assert_eq!(problems.len(), 1);
            assert!(problems[0].contains("must run without user"), "{}", problems[0]);
        }
        assert!(asis(text)[0].ends_with("add setcap cap_net_admin to the global section"));
        assert_eq!(asis(&with("cap_net_bind_service")).len(), 1);
        assert_eq!(asis(&with("cap_net_bind_service,cap_net_admin")), [""; 0]);
        assert_eq!(asis(&with("cap_net_raw")), [""; 0]);
        let binds = "global\n user haproxy\nfrontend f\n bind :1 transparent\n";
        assert_eq!(judged(binds, &version(6, 2), |_| {}), [""; 0]);
    }

    #[test]
    fn maxconn_beyond_the_descriptors_is_named_with_the_flag_that_mends_it() {
        let text = "global\n maxconn 4000\n";
        let problems = asis(text);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("h.cfg:2: maxconn 4000 needs at least 8017"));
        assert!(problems[0].contains("--ulimit nofile=9017"), "{}", problems[0]);
        let limit = |limit| judged(text, &version(0, 3), |facts| facts.descriptors = limit);
        assert_eq!(limit(Some(8017)), [""; 0]);
        assert_eq!(limit(None), [""; 0]);
        let wins = judged(text, &version(0, 3), |facts| facts.maxconn = Some(u64::MAX));
        assert!(wins[0].starts_with("the argument -n: maxconn"), "{}", wins[0]);
    }

    #[test]
    fn listeners_that_do_not_fit_twice_are_named_with_the_flag_that_mends_it() {
        let text = "frontend f\n bind :1000-1599\n";
        let problems = asis(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].starts_with("the configuration listens at 600 addresses"),
            "{problems:?}"
        );
        assert!(problems[0].contains("--ulimit nofile=2048:2048"), "{problems:?}");
        let limit = |limit| judged(text, &version(0, 3), |facts| facts.own_descriptors = limit);
        assert_eq!(limit(Some(2048)), [""; 0]);
        assert_eq!(limit(None), [""; 0]);
    }

    #[test]
    fn a_port_that_may_not_be_bound_is_named_with_the_flag_that_mends_it() {
        let text = "frontend f\n bind :443\n bind :80\n";
        assert_eq!(asis(text), [""; 0]);
        let closed = judged(text, &version(0, 3), |facts| facts.open_from = 1024);
        assert_eq!(closed.len(), 1);
        assert!(closed[0].starts_with("h.cfg:3: port 80 needs"), "{closed:?}");
        assert!(closed[0].contains("--cap-add=NET_BIND_SERVICE"), "{closed:?}");
        assert_eq!(judged(text, &version(0, 3), |facts| facts.open_from = 80), [""; 0]);
    }

    #[test]
    fn a_variable_that_is_not_set_is_named_once_unless_it_is_asked_for() {
        let text = "global\n setenv SET x\nlisten l\n bind \":$PORT\"\n bind \"[::]:$PORT\"\n \
                    server \"$SET\" \"$ME:80\"\n.if defined(X)\n maxconn \"$X\"\n.endif\n";
        let problems = asis(text);
        assert_eq!(problems.len(), 1, "{problems:?}");
        let expected =
            "h.cfg:4: the environment variable PORT is not set; docker run -e PORT=…, or";
        assert!(problems[0].starts_with(expected), "{}", problems[0]);
    }

    #[test]
    fn peers_without_our_name_are_named_with_the_way_out() {
        let text = "peers p\n peer a 10.0.0.1:1\n peer b 10.0.0.2:1\n";
        let problems = asis(text);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("h.cfg:1: no peer in section p has our name, host"));
        assert!(problems[0].contains("localpeer a"), "{}", problems[0]);
        let renamed = |name| judged(text, &version(0, 3), move |facts| facts.local_peer = name);
        assert_eq!(renamed(Some("b")), [""; 0]);
        assert_eq!(renamed(Some("c")).len(), 1);
        assert_eq!(asis(&format!("global\n localpeer b\n{text}")), [""; 0]);
        for silent in [
            "peers p\n bind :1\n",
            "peers p\n disabled\n peer a 10.0.0.1:1\n",
            "peers p\n peer \"${HOSTNAME}\" 10.0.0.1:1\n",
            "global\n localpeer \"$ME\"\npeers p\n peer a 10.0.0.1:1\n",
            "peers p\n peer host 10.0.0.1:1\n",
        ] {
            assert_eq!(asis(silent), [""; 0], "{silent}");
        }
    }
}
