//! Decides: how sessions look to people, and which one is meant. Values only.

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::control::protocol::{GenerationSessions, SessionStatus};

/// One of them, as `picture` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Which {
    pub generation: u32,
    /// HAProxy's, which is an address: another generation may have it as well.
    id: String,
}

impl Which {
    /// As clap wants it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(generation, id)| {
            let digits = id.strip_prefix("0x")?;
            let good = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
            good.then_some(Self { generation: generation.parse().ok()?, id: id.to_owned() })
        });
        parsed.ok_or_else(|| {
            "a session is called as hapilot sessions shows it, for example 3/0x7f360e281000"
                .to_owned()
        })
    }

    #[must_use]
    pub fn end(&self) -> String {
        format!("shutdown session {}", self.id)
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.generation, self.id)
    }
}

/// Each generation with its oldest sessions, `most` of them.
#[must_use]
pub fn picture(generations: &[GenerationSessions], most: usize) -> String {
    let mut text = String::new();
    for one in generations {
        // Cannot fail on a string.
        let _ = writeln!(text, "{}", head(one));
        if one.oldest.is_empty() {
            continue;
        }
        let row = |[id, age, idle, client, frontend, server]: [&str; 6]| {
            format!("  {id:<18} {age:>9} {idle:>9}  {client:<28} {frontend:<16} {server}")
        };
        let head = ["id", "age", "idle", "client", "frontend", "server"];
        let _ = writeln!(text, "{}", row(head));
        for session in one.oldest.iter().take(most) {
            let SessionStatus { id, client, frontend, server, age_s, idle_s } = session;
            let idle = idle_s.map_or("-".to_owned(), time);
            let server = server.as_deref().unwrap_or("(none yet)");
            let _ = writeln!(text, "{}", row([id, &time(*age_s), &idle, client, frontend, server]));
        }
        if one.count > most {
            let _ = writeln!(text, "  and {} younger ones", one.count - most);
        }
    }
    text
}

fn time(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string().replace(' ', "")
}

fn head(one: &GenerationSessions) -> String {
    let generation = &one.generation;
    let mut text = format!("generation {}, {}", generation.id, generation.state);
    // Cannot fail on a string.
    if let Some(pid) = generation.pid {
        let _ = write!(text, ", pid {pid}");
    }
    let _ = match &one.unknown {
        Some(why) => write!(text, ": sessions not known: {why}"),
        None if one.count == 1 => write!(text, ": 1 session"),
        None => write!(text, ": {} sessions", one.count),
    };
    // The kernel may know of some that HAProxy's list does not have: between two requests.
    if let Some(connections) = generation.connections {
        let plural = if connections == 1 { "" } else { "s" };
        let _ = write!(text, " on {connections} connection{plural}");
    }
    if let Some(deadline) = &generation.deadline {
        let _ = write!(text, ", cut at {deadline} at the latest");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::GenerationStatus;

    #[test]
    fn the_oldest_come_first_and_the_rest_is_counted() {
        let session = |client: &str, age_s| SessionStatus {
            id: "3/0x7f360e281000".to_owned(),
            idle_s: Some(61),
            client: client.to_owned(),
            frontend: "web".to_owned(),
            server: Some("app/a1".to_owned()),
            age_s,
        };
        let generation = GenerationStatus {
            id: 3,
            pid: Some(42),
            state: "draining".to_owned(),
            since: String::new(),
            connections: Some(2),
            connections_age_s: None,
            deadline: Some("2026-11-21T10:00:00Z".to_owned()),
        };
        let oldest = vec![session("10.1.0.2:4711", 7384), session("[fd00::2]:9", 3)];
        let one = GenerationSessions { generation, count: 2, oldest, unknown: None };
        assert_eq!(
            picture(&[one], 1),
            "generation 3, draining, pid 42: 2 sessions on 2 connections, cut at \
             2026-11-21T10:00:00Z at the latest\n\
             \x20 id                       age      idle  client                       frontend         server\n\
             \x20 3/0x7f360e281000      2h3m4s      1m1s  10.1.0.2:4711                web              app/a1\n\
             \x20 and 1 younger ones\n"
        );
    }

    #[test]
    fn a_session_is_named_with_its_generation() {
        let which = Which::parse("3/0x7f360e281000").unwrap();
        assert_eq!((which.generation, which.end()), (3, "shutdown session 0x7f360e281000".into()));
        assert_eq!(which.to_string(), "3/0x7f360e281000");
        for wrong in ["0x7f360e281000", "3/7f360e281000", "3/0x", "x/0x1", "3/0x1;quit", ""] {
            assert!(Which::parse(wrong).unwrap_err().contains("for example 3/0x"), "{wrong}");
        }
    }
}
