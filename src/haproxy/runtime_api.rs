//! Acts: asks a generation over its runtime socket (HAProxy management guide, "Unix Socket
//! commands"). One connection for each question; HAProxy hangs up after its answer.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// HAProxy answers from its event loop; one that is stopped or stuck must not stop us.
pub const LIMIT: Duration = Duration::from_secs(2);

pub async fn ask(socket: &Path, command: &str, limit: Duration) -> Result<String> {
    tokio::time::timeout(limit, exchange(socket, command))
        .await
        .unwrap_or_else(|_| bail!("no answer within {}", humantime::format_duration(limit)))
        .with_context(|| format!("ask {} for {command:?}", socket.display()))
}

async fn exchange(socket: &Path, command: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket).await.context("connect")?;
    stream.write_all(command.as_bytes()).await.context("send")?;
    stream.write_all(b"\n").await.context("send")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.context("read the answer")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
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
