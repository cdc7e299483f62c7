//! Acts: `hapilot runtime`: a command of HAProxy's own runtime API, for whoever serves or for all.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::ask::{PATIENCE, ask_within, door, each_line};
use crate::control::protocol::{GenerationStatus, Status};
use crate::haproxy::answer::{Answer, Lines};
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

/// Whether a line of an answer belongs to a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Answer,
    Refusal,
}

/// Each line is shown as it comes, however many there are. The answer is whether HAProxy refused.
pub fn serving(command: &str, mut show: impl FnMut(Line, &str)) -> Result<bool> {
    let mut lines = Lines::default();
    each_line(&door(), command, PATIENCE, |raw| {
        let mut shown = Vec::new();
        lines.read(raw, |line| shown.push(line.to_owned()));
        let kind = if lines.refused { Line::Refusal } else { Line::Answer };
        for line in &shown {
            show(kind, line);
        }
        Ok(())
    })?;
    Ok(lines.refused)
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
