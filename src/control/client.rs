//! Acts: asks a running hapilot. Synchronous: a command has nothing else to do.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::protocol::{Answer, Request};

const SEND_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    /// As much of the answer as has come.
    answer: Vec<u8>,
}

impl Client {
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| {
            format!(
                "reach hapilot at {}: is it running, and is this its container (docker exec)",
                path.display()
            )
        })?;
        Ok(Self { stream: BufReader::new(stream), answer: Vec::new() })
    }

    /// `limit`: `None` waits for as long as it takes.
    pub fn ask(&mut self, request: &Request, limit: Option<Duration>) -> Result<Answer> {
        self.send(request)?;
        let limit_told = humantime::format_duration(limit.unwrap_or_default());
        self.answer(limit)?.with_context(|| format!("hapilot did not answer within {limit_told}"))
    }

    pub fn send(&mut self, request: &Request) -> Result<()> {
        let stream = self.stream.get_mut();
        stream.set_write_timeout(Some(SEND_LIMIT)).context("bound the sending")?;
        let mut line = serde_json::to_vec(request).context("write the request")?;
        line.push(b'\n');
        stream.write_all(&line).context("send the request")
    }

    /// `None` if it has not come within the limit; it can be waited for again.
    pub fn answer(&mut self, limit: Option<Duration>) -> Result<Option<Answer>> {
        let stream = self.stream.get_mut();
        stream.set_read_timeout(limit).context("bound the wait for an answer")?;
        // What has come stays in there, also when the rest is late.
        match self.stream.read_until(b'\n', &mut self.answer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            read => read.context("wait for the answer")?,
        };
        if self.answer.is_empty() {
            bail!("hapilot ended before it answered");
        }
        match serde_json::from_slice(&self.answer).context("understand the answer")? {
            Answer::Error { message } => bail!(message),
            answer => Ok(Some(answer)),
        }
    }

    /// Waits until hapilot has ended.
    pub fn wait_for_end(mut self) -> Result<()> {
        self.stream.get_mut().set_read_timeout(None).context("wait without a limit")?;
        // Killed, it ends the connection with a reset: an end all the same.
        let _ = self.stream.read_to_end(&mut Vec::new());
        Ok(())
    }
}
