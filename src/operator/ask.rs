//! Acts: one command for HAProxy, and its answer. Synchronous: a command has nothing else to do.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::control::door;
use crate::haproxy::answer::{Answer, PREFIX};
use crate::host::preflight::RUN_DIRECTORY;

/// For a piece of an answer; longer than the door itself waits for a HAProxy.
const PATIENCE: Duration = Duration::from_secs(40);

/// Where whoever serves is reached.
#[must_use]
pub fn door() -> PathBuf {
    Path::new(RUN_DIRECTORY).join(door::SOCKET)
}

pub fn ask(socket: &Path, command: &str) -> Result<Answer> {
    ask_within(socket, command, PATIENCE)
}

pub fn ask_within(socket: &Path, command: &str, limit: Duration) -> Result<Answer> {
    let raw = exchange(socket, command, limit)
        .with_context(|| format!("ask HAProxy at {} for {command:?}", socket.display()))?;
    Ok(Answer::read(&raw))
}

fn exchange(socket: &Path, command: &str, limit: Duration) -> Result<String> {
    let mut stream = UnixStream::connect(socket).context("connect")?;
    stream.set_read_timeout(Some(limit)).context("bound the wait for an answer")?;
    stream.set_write_timeout(Some(limit)).context("bound the wait for an answer")?;
    let command = command.trim_end_matches('\n');
    // A blank line ends what was begun with `<<`.
    let end = if command.contains('\n') { "\n\n" } else { "\n" };
    stream.write_all(format!("{PREFIX}{command}{end}").as_bytes()).context("send")?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(0) => bail!("it hung up without an answer"),
        Ok(_) => Ok(String::from_utf8_lossy(&answer).into_owned()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            bail!("no answer within {}", humantime::format_duration(limit))
        }
        Err(error) => Err(error).context("read the answer"),
    }
}
