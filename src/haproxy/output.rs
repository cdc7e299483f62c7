//! Acts: logs what HAProxy says, line by line, with what to do about it where we know that, and
//! remembers both until it is ready.
//!
//! HAProxy blocks when its output is not read, so reading never waits for anything else: not for
//! the log (see `logging`), not for the supervisor.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::generation::GenerationId;
use super::hint::hint;
use super::taken::taken_port;
use crate::fault::{self, Point};

/// A longer line is logged in pieces.
const LONGEST_LINE: usize = 64 * 1024;
/// The first words say what is wrong; a configuration with a thousand mistakes is cut here.
const MOST_WORDS: usize = 200;
/// Of each line that is remembered.
const LONGEST_WORDS: usize = 4096;

/// What HAProxy said while it was starting.
#[derive(Clone, Debug, Default)]
pub struct Words {
    lines: Rc<RefCell<Option<Vec<String>>>>,
    /// What to do about a port that is taken, kept back until it is known who has it.
    kept_back: Rc<RefCell<Option<BTreeSet<&'static str>>>>,
}

impl Words {
    #[must_use]
    pub fn listen() -> Self {
        Self { lines: Rc::new(RefCell::new(Some(Vec::new()))), kept_back: Rc::default() }
    }

    /// Whoever has the ports may yet make room: until `advise` nobody is told to end him.
    #[must_use]
    pub fn without_advice_on_ports(self) -> Self {
        *self.kept_back.borrow_mut() = Some(BTreeSet::new());
        self
    }

    pub fn hear(&self, line: &str) {
        if let Some(lines) = self.lines.borrow_mut().as_mut()
            && lines.len() < MOST_WORDS
        {
            lines.push(line.chars().take(LONGEST_WORDS).collect());
        }
    }

    /// What was said so far; nothing more is remembered.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        self.lines.borrow_mut().take().unwrap_or_default()
    }

    /// Nobody makes room: logs what was kept back.
    pub fn advise(&self, id: GenerationId) {
        for hint in self.kept_back.borrow_mut().take().into_iter().flatten() {
            self.say(id, hint);
        }
    }

    fn hint(&self, id: GenerationId, line: &str, hint: &'static str) {
        match self.kept_back.borrow_mut().as_mut() {
            Some(kept) if taken_port(line).is_some() => drop(kept.insert(hint)),
            _ => self.say(id, hint),
        }
    }

    fn say(&self, id: GenerationId, hint: &str) {
        self.hear(&format!("hapilot: {hint}"));
        tracing::warn!(generation = id.number(), "what to do: {hint}");
    }
}

/// Reads until HAProxy and everything that inherited its output is gone.
pub fn follow(output: OwnedFd, id: GenerationId, pid: i32, words: Words) -> Result<JoinHandle<()>> {
    let receiver = fault::at(Point::Output).and_then(|()| pipe::Receiver::from_owned_fd(output));
    let receiver = receiver.context("watch HAProxy's output")?;
    let mut reader = BufReader::new(receiver);
    Ok(tokio::task::spawn_local(async move {
        let mut line = Vec::new();
        let mut hinted = BTreeSet::new();
        while read_line(&mut reader, &mut line).await {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end();
            if text.is_empty() {
                continue;
            }
            words.hear(text);
            log(id, pid, text);
            // A thousand lines may have the same mistake.
            if let Some(hint) = hint(text).filter(|hint| hinted.insert(*hint)) {
                words.hint(id, text, hint);
            }
        }
    }))
}

/// False at the end; an error is an end too.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> bool {
    line.clear();
    loop {
        let Ok(bytes) = reader.fill_buf().await else {
            return !line.is_empty();
        };
        if bytes.is_empty() {
            return !line.is_empty();
        }
        let end = bytes.iter().position(|b| *b == b'\n').map(|at| at + 1);
        let used = end.unwrap_or(bytes.len());
        line.extend_from_slice(&bytes[..used]);
        reader.consume(used);
        if end.is_some() || line.len() >= LONGEST_LINE {
            return true;
        }
    }
}

fn log(generation: GenerationId, pid: i32, line: &str) {
    let generation = generation.number();
    if line.starts_with("[ALERT]") {
        tracing::error!(target: "haproxy", generation, pid, "{line}");
    } else if line.starts_with("[WARNING]") {
        tracing::warn!(target: "haproxy", generation, pid, "{line}");
    } else {
        tracing::info!(target: "haproxy", generation, pid, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines_of(bytes: &[u8]) -> Vec<usize> {
        let mut reader = BufReader::new(bytes);
        let (mut line, mut lengths) = (Vec::new(), Vec::new());
        while read_line(&mut reader, &mut line).await {
            lengths.push(line.len());
        }
        lengths
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_last_line_without_an_end_is_a_line() {
        assert_eq!(lines_of(b"one\ntwo").await, [4, 3]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_endless_line_comes_in_pieces() {
        let endless = vec![b'x'; 3 * LONGEST_LINE];
        let pieces = lines_of(&endless).await;
        assert!(pieces.len() >= 3 && pieces.iter().all(|len| *len < 2 * LONGEST_LINE));
        assert_eq!(pieces.iter().sum::<usize>(), endless.len());
    }

    #[test]
    fn what_to_do_about_a_taken_port_waits_until_it_is_known_who_has_it() {
        let taken = "[ALERT] cannot bind socket (Address already in use) for [0.0.0.0:80]";
        let id = GenerationId::FIRST;
        let words = Words::listen();
        words.hint(id, taken, "at once");
        assert_eq!(words.take(), ["hapilot: at once"]);
        let words = Words::listen().without_advice_on_ports();
        words.hint(id, taken, "later");
        words.hint(id, "[ALERT] no such file", "at once");
        words.advise(id);
        words.advise(id);
        assert_eq!(words.take(), ["hapilot: at once", "hapilot: later"]);
    }

    #[test]
    fn words_are_remembered_until_they_are_taken() {
        let words = Words::listen();
        words.hear("[ALERT] no");
        assert_eq!(words.take(), ["[ALERT] no"]);
        words.hear("[NOTICE] later");
        assert!(words.take().is_empty());
    }
}
