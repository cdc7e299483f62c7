//! Acts: one command for HAProxy, and its answer. Synchronous: a command has nothing else to do.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::control::door;
use crate::haproxy::answer::{Answer, PREFIX};
use crate::host::preflight::RUN_DIRECTORY;

/// For a piece of an answer; longer than the door itself waits for a HAProxy.
pub(super) const PATIENCE: Duration = Duration::from_secs(40);

/// Of an answer that is kept whole: the state of 100,000 servers has a third of it.
const LONGEST_ANSWER: usize = 64 * 1024 * 1024;
/// What is longer is shown in pieces.
const LONGEST_LINE: u64 = 1024 * 1024;

/// Where whoever serves is reached.
#[must_use]
pub fn door() -> PathBuf {
    Path::new(RUN_DIRECTORY).join(door::SOCKET)
}

pub fn ask(socket: &Path, command: &str) -> Result<Answer> {
    ask_within(socket, command, PATIENCE)
}

pub fn ask_within(socket: &Path, command: &str, limit: Duration) -> Result<Answer> {
    let mut raw = String::new();
    each_line(socket, command, limit, |line| {
        ensure!(
            raw.len() + line.len() < LONGEST_ANSWER,
            "it is longer than {LONGEST_ANSWER} bytes"
        );
        raw.push_str(line);
        raw.push('\n');
        Ok(())
    })?;
    Ok(Answer::read(&raw))
}

/// Looks at each raw line of the answer as it comes, for answers that may be long.
pub fn each_line(
    socket: &Path,
    command: &str,
    limit: Duration,
    look: impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    exchange(socket, command, limit, look)
        .with_context(|| format!("ask HAProxy at {} for {command:?}", socket.display()))
}

fn exchange(
    socket: &Path,
    command: &str,
    limit: Duration,
    mut look: impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    let mut stream = UnixStream::connect(socket).context("connect")?;
    stream.set_read_timeout(Some(limit)).context("bound the wait for an answer")?;
    stream.set_write_timeout(Some(limit)).context("bound the wait for an answer")?;
    let command = command.trim_end_matches('\n');
    // A blank line ends what was begun with `<<`.
    let end = if command.contains('\n') { "\n\n" } else { "\n" };
    stream.write_all(format!("{PREFIX}{command}{end}").as_bytes()).context("send")?;
    let (mut answer, mut line, mut answered) = (BufReader::new(stream), Vec::new(), false);
    loop {
        line.clear();
        match (&mut answer).take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) if answered => return Ok(()),
            Ok(0) => bail!("it hung up without an answer"),
            Ok(_) => {
                answered = true;
                let text = String::from_utf8_lossy(&line);
                look(text.strip_suffix('\n').unwrap_or(&text))?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                bail!("no answer within {}", humantime::format_duration(limit))
            }
            Err(error) => return Err(error).context("read the answer"),
        }
    }
}
