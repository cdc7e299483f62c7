//! Acts: asks a running hapilot. Synchronous: a command has nothing else to do.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::protocol::{Answer, Request};

#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| {
            format!(
                "reach hapilot at {}: is it running, and is this its container (docker exec)",
                path.display()
            )
        })?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// `limit`: `None` waits for as long as it takes.
    pub fn ask(&mut self, request: &Request, limit: Option<Duration>) -> Result<Answer> {
        let stream = self.stream.get_mut();
        stream.set_read_timeout(limit).context("bound the wait for an answer")?;
        let mut line = serde_json::to_vec(request).context("write the request")?;
        line.push(b'\n');
        stream.write_all(&line).context("send the request")?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer).context("wait for the answer")?;
        if answer.is_empty() {
            bail!("hapilot ended before it answered");
        }
        match serde_json::from_str(&answer).context("understand the answer")? {
            Answer::Error { message } => bail!(message),
            answer => Ok(answer),
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
