//! Acts: asks a generation over its runtime socket (HAProxy management guide, "Unix Socket
//! commands"). Every answer has a limit in time and in bytes; one that may be long is looked at line
//! by line as it comes. HAProxy hangs up after the answer to a question; a conversation goes on.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::fault::{self, Point};
use crate::host::lease;
use crate::process::patience::within;

/// HAProxy answers from its event loop; one that is stopped or stuck must not stop us.
pub const LIMIT: Duration = Duration::from_secs(2);
/// Of an answer that is kept whole.
pub const LONGEST_ANSWER: usize = 256 * 1024;
/// HAProxy puts a line together in a buffer of `tune.bufsize`, which has 16 KiB unless it was changed.
const LONGEST_LINE: usize = 64 * 1024;
/// Of an answer that is looked at line by line: 100,000 sessions or entries fill a third of it.
const MOST_STREAMED: usize = 128 * 1024 * 1024;
/// Where a line would begin, once the answer is over.
const PROMPT: &[u8] = b"> ";

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

/// Unbounded in time: the caller has the limit.
pub async fn exchange(mut stream: UnixStream, command: &str) -> Result<String> {
    send(&mut stream, command.as_bytes()).await?;
    let mut answer = String::new();
    let look = |line: &str| keep_line(&mut answer, line, LONGEST_ANSWER);
    lines(&mut BufReader::new(stream), End::HangUp, look).await?;
    Ok(answer)
}

async fn connect(socket: &Path) -> Result<UnixStream> {
    let Some(name) = socket.as_os_str().as_bytes().strip_prefix(b"@") else {
        return UnixStream::connect(socket).await.context("connect");
    };
    let mut stream = lease::enter_by(name).await?;
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
        let look = |line: &str| {
            look(line);
            Ok(())
        };
        lines(&mut BufReader::new(stream), End::HangUp, look).await
    };
    within(limit, exchange).await.with_context(|| {
        let begin: String = String::from_utf8_lossy(command).chars().take(60).collect();
        format!("ask {} for {begin:?}", socket.display())
    })
}

/// An error once it would be longer than that.
fn keep_line(text: &mut String, line: &str, most: usize) -> Result<()> {
    ensure!(text.len() + line.len() < most, "the answer is longer than {most} bytes");
    text.push_str(line);
    text.push('\n');
    Ok(())
}

/// Where an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// HAProxy hangs up behind it.
    HangUp,
    /// A prompt follows, and the connection goes on.
    Prompt,
}

/// Looks at each line up to the end of the answer.
async fn lines(
    stream: &mut BufReader<impl AsyncRead + Unpin>,
    end: End,
    mut look: impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    let (mut line, mut streamed) = (Vec::new(), 0);
    loop {
        let bytes = stream.fill_buf().await.context("read the answer")?;
        if bytes.is_empty() {
            ensure!(end == End::HangUp, "HAProxy hung up");
            return if line.is_empty() { Ok(()) } else { look(&String::from_utf8_lossy(&line)) };
        }
        // A prompt has no end of line, so what could become one is taken byte by byte.
        let most = if line.len() < PROMPT.len() { 1 } else { bytes.len() };
        let taken = std::io::BufRead::read_until(&mut &bytes[..most], b'\n', &mut line)
            .context("read the answer")?;
        stream.consume(taken);
        streamed += taken;
        if end == End::Prompt && line == PROMPT {
            return Ok(());
        }
        ensure!(line.len() <= LONGEST_LINE, "a line of the answer is longer than {LONGEST_LINE}");
        ensure!(streamed <= MOST_STREAMED, "the answer is longer than {MOST_STREAMED} bytes");
        if line.ends_with(b"\n") {
            look(String::from_utf8_lossy(&line[..line.len() - 1]).as_ref())?;
            line.clear();
        }
    }
}

/// Many commands on one connection, each with its answer. Without limits of time: the caller has them.
#[derive(Debug)]
pub struct Conversation {
    hears: BufReader<OwnedReadHalf>,
    says: OwnedWriteHalf,
}

impl Conversation {
    pub async fn begin(socket: &Path) -> Result<Self> {
        let (hears, says) = connect(socket).await?.into_split();
        let mut conversation = Self { hears: BufReader::new(hears), says };
        // Without a prompt HAProxy hangs up after its first answer.
        conversation.each_line("prompt", |_| {}).await?;
        Ok(conversation)
    }

    /// Looks at each line of the answer as it comes.
    pub async fn each_line(&mut self, command: &str, mut look: impl FnMut(&str)) -> Result<()> {
        self.says.write_all(format!("{command}\n").as_bytes()).await.context("send")?;
        let look = |line: &str| {
            look(line);
            Ok(())
        };
        lines(&mut self.hears, End::Prompt, look).await
    }

    /// The raw answer, as HAProxy would send it without a prompt.
    pub async fn ask(&mut self, command: &str) -> Result<String> {
        let mut answer = String::new();
        self.says.write_all(format!("{command}\n").as_bytes()).await.context("send")?;
        let look = |line: &str| keep_line(&mut answer, line, LONGEST_ANSWER);
        lines(&mut self.hears, End::Prompt, look).await?;
        Ok(answer)
    }

    /// All commands are sent without waiting for answers. Each is looked at with what HAProxy says to
    /// it, which is nothing where it obeys.
    pub async fn tell(
        &mut self,
        commands: &[String],
        mut look: impl FnMut(&str, &str),
    ) -> Result<()> {
        let Self { hears, says } = self;
        let send = async {
            for some in commands.chunks(64) {
                let text = some.join("\n") + "\n";
                says.write_all(text.as_bytes()).await.context("send")?;
            }
            Ok(())
        };
        let hear = async {
            for command in commands {
                let mut words = String::new();
                let look_at = |line: &str| keep_line(&mut words, line, LONGEST_LINE);
                lines(hears, End::Prompt, look_at).await?;
                look(command, words.trim());
            }
            Ok(())
        };
        tokio::try_join!(send, hear).map(|((), ())| ())
    }
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
