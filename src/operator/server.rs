//! Decides: which servers are meant, what each is asked to become, and whether it did. Values only.
//!
//! Format: HAProxy management guide, "show stat".

use std::collections::HashMap;
use std::fmt;

use glob::{MatchOptions, Pattern};

use crate::haproxy::server_state::{
    self, CONFIGURED_MAINTENANCE, FORCED_DRAIN, FORCED_MAINTENANCE, Health,
};

/// Bits of `srv_admin_state`: also inherited, and for want of an address.
const MAINTENANCE: u32 = FORCED_MAINTENANCE | 0x02 | CONFIGURED_MAINTENANCE | 0x20;
/// Those that `state ready` takes away.
const SET_BY_HAND: u32 = FORCED_MAINTENANCE | CONFIGURED_MAINTENANCE | FORCED_DRAIN;
/// Also inherited.
const DRAIN: u32 = FORCED_DRAIN | 0x10;
const HIGHEST_WEIGHT: u16 = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `backend/server`.
    pub name: String,
    admin: u32,
    down: bool,
    pub weight: u32,
    /// Those in use and those that wait for it.
    pub sessions: u64,
}

/// What a server is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Drain,
    Ready,
    Weight(u16),
}

/// As clap wants it.
pub fn weight(text: &str) -> Result<u16, String> {
    let weight = text.parse().ok().filter(|weight| *weight <= HIGHEST_WEIGHT);
    weight.ok_or_else(|| {
        let range = format!("a weight is a number from 0 to {HIGHEST_WEIGHT}");
        if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
            range
        } else {
            format!("{range}, and comes last: hapilot weight {text} 10")
        }
    })
}

impl Wish {
    #[must_use]
    pub fn command(self, server: &str) -> String {
        match self {
            Self::Drain => format!("set server {server} state drain"),
            Self::Ready => format!("set server {server} state ready"),
            Self::Weight(weight) => format!("set server {server} weight {weight}"),
        }
    }

    #[must_use]
    pub fn is_true_of(self, server: &Server) -> bool {
        match self {
            Self::Drain => server.admin & (FORCED_DRAIN | FORCED_MAINTENANCE) == FORCED_DRAIN,
            Self::Ready => server.admin & SET_BY_HAND == 0,
            Self::Weight(weight) => server.weight == u32::from(weight),
        }
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drain => f.write_str("draining"),
            Self::Ready => f.write_str("ready"),
            Self::Weight(weight) => write!(f, "weight {weight}"),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.admin & MAINTENANCE != 0 {
            "in maintenance"
        } else if self.admin & DRAIN != 0 {
            "draining"
        } else if self.down {
            "down"
        } else {
            "ready"
        };
        write!(f, "{}: {state}, weight {}, {} sessions", self.name, self.weight, self.sessions)
    }
}

/// Shell patterns over `backend/server`; one without a slash means that server in any backend.
#[derive(Clone, Debug)]
pub struct Patterns(Vec<(String, Pattern)>);

impl Patterns {
    pub fn parse(texts: &[String]) -> Result<Self, String> {
        let one = |text: &String| {
            let whole = if text.contains('/') { text.clone() } else { format!("*/{text}") };
            let pattern = Pattern::new(&whole).map_err(|e| format!("{text:?}: {}", e.msg))?;
            Ok((text.clone(), pattern))
        };
        texts.iter().map(one).collect::<Result<_, String>>().map(Self)
    }

    #[must_use]
    pub fn mean(&self, name: &str) -> bool {
        self.0.iter().any(|(_, pattern)| matches(pattern, name))
    }

    /// Those that mean nobody.
    #[must_use]
    pub fn idle(&self, names: &[&str]) -> Vec<&str> {
        let idle = self.0.iter().filter(|(_, p)| !names.iter().any(|name| matches(p, name)));
        idle.map(|(text, _)| &**text).collect()
    }
}

fn matches(pattern: &Pattern, name: &str) -> bool {
    let options = MatchOptions { require_literal_separator: true, ..MatchOptions::default() };
    pattern.matches_with(name, options)
}

/// All servers, from `show servers state` and `show stat`.
#[must_use]
pub fn servers(state: &str, stat: &str) -> Vec<Server> {
    let sessions = sessions(stat);
    let with_sessions = |server: server_state::Server| {
        let name = format!("{}/{}", server.backend, server.name);
        let sessions = sessions.get(&name).copied().unwrap_or_default();
        Server {
            name,
            admin: server.admin,
            down: server.health == Health::Down,
            weight: server.weight,
            sessions,
        }
    };
    server_state::servers(state).all.into_iter().map(with_sessions).collect()
}

fn sessions(stat: &str) -> HashMap<String, u64> {
    let mut lines = stat.lines();
    let head = lines.find_map(|line| line.strip_prefix("# ")).unwrap_or_default();
    let columns: Vec<&str> = head.split(',').collect();
    lines
        .filter_map(|line| {
            let values: HashMap<_, _> = columns.iter().copied().zip(line.split(',')).collect();
            let number = |name| values.get(name).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
            let name = format!("{}/{}", values.get("pxname")?, values.get("svname")?);
            Some((name, number("scur") + number("qcur")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state \
                         srv_uweight srv_iweight\n\
                         3 web 1 a 192.0.2.1 2 0 1 1\n3 web 2 b 192.0.2.2 2 8 5 10\n\
                         4 api 1 a 192.0.2.3 0 0 1 1\n4 api 2 c 192.0.2.4 2 9 1 1\n\n";
    const STAT: &str = "# pxname,svname,qcur,qmax,scur,smax,\nweb,a,1,0,2,9,\nweb,b,0,0,7,9,\n";

    fn all() -> Vec<Server> {
        servers(STATE, STAT)
    }

    #[test]
    fn servers_read_as_an_operator_thinks_of_them() {
        let texts: Vec<_> = all().iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "web/a: ready, weight 1, 3 sessions",
                "web/b: draining, weight 5, 7 sessions",
                "api/a: down, weight 1, 0 sessions",
                "api/c: in maintenance, weight 1, 0 sessions",
            ]
        );
    }

    #[test]
    fn a_wish_is_true_of_whom_it_has_come_true_of() {
        let is = |wish: Wish| all().iter().map(|s| wish.is_true_of(s)).collect::<Vec<_>>();
        assert_eq!(is(Wish::Drain), [false, true, false, false]);
        assert_eq!(is(Wish::Ready), [true, false, true, false]);
        assert_eq!(is(Wish::Weight(5)), [false, true, false, false]);
    }

    #[test]
    fn a_pattern_is_over_backend_and_server() {
        let meant = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(|t| (*t).to_owned()).collect();
            let patterns = Patterns::parse(&texts).unwrap();
            let all = all();
            let names: Vec<_> = all.iter().map(|s| &*s.name).collect();
            let idle = patterns.idle(&names).join(" ");
            (names.into_iter().filter(|n| patterns.mean(n)).collect::<Vec<_>>().join(" "), idle)
        };
        let none = String::new;
        assert_eq!(meant(&["a"]), ("web/a api/a".into(), none()));
        assert_eq!(meant(&["web/*"]), ("web/a web/b".into(), none()));
        assert_eq!(meant(&["*"]), ("web/a web/b api/a api/c".into(), none()));
        assert_eq!(meant(&["[wx]eb/?", "api/c"]), ("web/a web/b api/c".into(), none()));
        assert_eq!(meant(&["a", "nobody"]), ("web/a api/a".into(), "nobody".into()));
        assert!(Patterns::parse(&["[".to_owned()]).unwrap_err().starts_with("\"[\": "));
    }

    #[test]
    fn a_weight_is_at_most_what_haproxy_takes() {
        assert_eq!(weight("256"), Ok(256));
        for wrong in ["257", "300", "-1", "much", "50%"] {
            assert!(weight(wrong).unwrap_err().contains("0 to 256"), "{wrong}");
        }
        assert!(weight("app/a1").unwrap_err().ends_with("comes last: hapilot weight app/a1 10"));
    }
}
