//! Acts: `hapilot runtime`: a command of HAProxy's own runtime API, for whoever serves or for all.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::ask::{ask, ask_within, door};
use crate::control::protocol::{GenerationStatus, Status};
use crate::haproxy::answer::Answer;
use crate::host::preflight::RUN_DIRECTORY;
use crate::supervisor::lifecycle::Phase;

/// One that does not serve may be stuck.
const LIMIT: Duration = Duration::from_secs(2);

/// What is to be printed, and whether HAProxy refused, or did not answer.
#[derive(Debug)]
pub struct Told {
    pub text: String,
    pub refused: bool,
}

pub fn serving(command: &str) -> Result<Told> {
    let answer = ask(&door(), command)?;
    Ok(Told { text: answer.text, refused: answer.refused })
}

/// Every generation that is alive, under a heading each. `inside` asks hapilot to ask one that drains.
#[must_use]
pub fn all(command: &str, status: &Status, inside: impl Fn(u32, &str) -> Result<String>) -> Told {
    let mut told = Told { text: String::new(), refused: false };
    for generation in &status.generations {
        let (text, refused) = match one(command, generation, &inside) {
            Ok(answer) => (answer.text, answer.refused),
            Err(error) => (format!("(no answer: {error:#})"), true),
        };
        // Cannot fail on a string.
        let _ = writeln!(told.text, "{}{}", heading(generation), text.trim_end());
        told.refused |= refused;
    }
    told.text.truncate(told.text.trim_end().len());
    told
}

fn heading(generation: &GenerationStatus) -> String {
    let pid = generation.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
    format!("# generation {}, {}{pid}\n", generation.id, generation.state)
}

/// Whoever drains is asked by hapilot.
pub fn one(
    command: &str,
    generation: &GenerationStatus,
    inside: impl Fn(u32, &str) -> Result<String>,
) -> Result<Answer> {
    if generation.state == Phase::Draining.as_str() {
        return inside(generation.id, command).map(|raw| Answer::read(&raw));
    }
    let socket = Path::new(RUN_DIRECTORY).join(format!("generation-{}.sock", generation.id));
    ask_within(&socket, command, LIMIT)
}
