//! Acts: asks a generation over its runtime socket (HAProxy management guide, "Unix Socket
//! commands"). One connection for each question; HAProxy hangs up after its answer.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::fault::{self, Point};
use crate::host::lease;
use crate::process::patience::within;

/// HAProxy answers from its event loop; one that is stopped or stuck must not stop us.
pub const LIMIT: Duration = Duration::from_secs(2);

/// What a hapilot's door is told first that is to lead to its HAProxy. `@hapilot/INSTANCE` in place of
/// a path means this.
pub const THROUGH: &str = "_runtime\n";

pub async fn ask(socket: &Path, command: &str, limit: Duration) -> Result<String> {
    let exchanged = async {
        fault::within(Point::Ask).await?;
        exchange(connect(socket).await?, command).await
    };
    within(limit, exchanged)
        .await
        .with_context(|| format!("ask {} for {command:?}", socket.display()))
}

/// Unbounded: whoever asks has the limit.
pub async fn exchange(mut stream: UnixStream, command: &str) -> Result<String> {
    send(&mut stream, command.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.context("read the answer")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn connect(socket: &Path) -> Result<UnixStream> {
    let Some(name) = socket.as_os_str().as_bytes().strip_prefix(b"@") else {
        return UnixStream::connect(socket).await.context("connect");
    };
    let mut stream = lease::enter(name).await?;
    stream.write_all(THROUGH.as_bytes()).await.context("send")?;
    Ok(stream)
}

async fn send(stream: &mut UnixStream, command: &[u8]) -> Result<()> {
    stream.write_all(command).await.context("send")?;
    stream.write_all(b"\n").await.context("send")
}

/// Asks and looks at each line of the answer as it comes, for answers that may be long. `command`
/// need not be UTF-8.
pub async fn each_line(
    socket: &Path,
    command: &[u8],
    limit: Duration,
    mut look: impl FnMut(&str),
) -> Result<()> {
    let exchange = async {
        let mut stream = connect(socket).await?;
        send(&mut stream, command).await?;
        let mut answer = BufReader::new(stream);
        let mut line = Vec::new();
        while answer.read_until(b'\n', &mut line).await.context("read the answer")? > 0 {
            look(String::from_utf8_lossy(&line).trim_end_matches('\n'));
            line.clear();
        }
        Ok(())
    };
    within(limit, exchange).await.with_context(|| {
        let begin: String = String::from_utf8_lossy(command).chars().take(60).collect();
        format!("ask {} for {begin:?}", socket.display())
    })
}

/// The value of a line `Name: value` of `show info`.
#[must_use]
pub fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let info = "Name: HAProxy\nPid: 42\nPidX: 7\nCurrConns: 3\n";
        assert_eq!(field(info, "Pid"), Some("42"));
        assert_eq!(field(info, "CurrConns"), Some("3"));
        assert_eq!(field(info, "Conns"), None);
    }
}
