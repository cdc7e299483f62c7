//! Decides: how sessions look to people. Values only.

use std::fmt::Write as _;
use std::time::Duration;

use crate::control::protocol::{GenerationSessions, SessionStatus};

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
        let row = |client: &str, frontend: &str, server: &str, age: &str| {
            format!("  {age:>9}  {client:<28} {frontend:<16} {server}").trim_end().to_owned()
        };
        let _ = writeln!(text, "{}", row("client", "frontend", "server", "age"));
        for session in one.oldest.iter().take(most) {
            let SessionStatus { client, frontend, server, age_s } = session;
            let age = humantime::format_duration(Duration::from_secs(*age_s)).to_string();
            let server = server.as_deref().unwrap_or("(none yet)");
            let _ = writeln!(text, "{}", row(client, frontend, server, &age.replace(' ', "")));
        }
        if one.count > most {
            let _ = writeln!(text, "  and {} younger ones", one.count - most);
        }
    }
    text
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
            deadline: Some("2026-11-21T10:00:00Z".to_owned()),
        };
        let oldest = vec![session("10.1.0.2:4711", 7384), session("[fd00::2]:9", 3)];
        let one = GenerationSessions { generation, count: 2, oldest, unknown: None };
        assert_eq!(
            picture(&[one], 1),
            "generation 3, draining, pid 42: 2 sessions on 2 connections, cut at \
             2026-11-21T10:00:00Z at the latest\n\
             \x20       age  client                       frontend         server\n\
             \x20    2h3m4s  10.1.0.2:4711                web              app/a1\n\
             \x20 and 1 younger ones\n"
        );
    }
}
