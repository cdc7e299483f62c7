//! Acts: logs what HAProxy says, line by line, and remembers its words until it is ready.
//!
//! HAProxy blocks when its output is not read, so reading never waits for anything else: not for
//! the log (see `logging`), not for the supervisor.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::generation::GenerationId;

/// A longer line is logged in pieces.
const LONGEST_LINE: usize = 64 * 1024;
/// The first words say what is wrong; a configuration with a thousand mistakes is cut here.
const MOST_WORDS: usize = 200;

/// What HAProxy said while it was starting.
#[derive(Clone, Debug, Default)]
pub struct Words(Rc<RefCell<Option<Vec<String>>>>);

impl Words {
    #[must_use]
    pub fn listen() -> Self {
        Self(Rc::new(RefCell::new(Some(Vec::new()))))
    }

    pub fn hear(&self, line: &str) {
        if let Some(lines) = self.0.borrow_mut().as_mut()
            && lines.len() < MOST_WORDS
        {
            lines.push(line.to_owned());
        }
    }

    /// What was said so far; nothing more is remembered.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        self.0.borrow_mut().take().unwrap_or_default()
    }
}

/// Reads until HAProxy and everything that inherited its output is gone.
pub fn follow(output: OwnedFd, id: GenerationId, pid: i32, words: Words) -> Result<JoinHandle<()>> {
    let receiver = pipe::Receiver::from_owned_fd(output).context("watch HAProxy's output")?;
    let mut reader = BufReader::new(receiver);
    Ok(tokio::task::spawn_local(async move {
        let mut line = Vec::new();
        while read_line(&mut reader, &mut line).await {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end();
            if !text.is_empty() {
                words.hear(text);
                log(id, pid, text);
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
    fn words_are_remembered_until_they_are_taken() {
        let words = Words::listen();
        words.hear("[ALERT] no");
        assert_eq!(words.take(), ["[ALERT] no"]);
        words.hear("[NOTICE] later");
        assert!(words.take().is_empty());
    }
}
