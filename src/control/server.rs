//! Acts: listens on the control socket. Only peers with our own user are served; a slow or silent
//! one holds up nobody but itself.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::protocol::{Answer, LONGEST_REQUEST, Request};
use crate::fault::{self, Point};
use crate::process::visitors::{self, Heard, Visitors, accepted, refusal};

/// Each has a descriptor, and a reload needs some as well.
const MOST_AT_ONCE: usize = 100;
const PATIENCE: Duration = Duration::from_secs(5);

/// A request and where its answer goes; who asked may have left by then.
#[derive(Debug)]
pub struct Asked {
    pub request: Request,
    pub answer: oneshot::Sender<Answer>,
}

#[derive(Debug)]
pub struct Server {
    path: PathBuf,
}

impl Server {
    /// Fails when another hapilot serves this run directory; a socket that nobody serves is left
    /// over from a killed one and is replaced.
    pub fn open(path: &Path, asked: mpsc::UnboundedSender<Asked>) -> Result<Self> {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => bail!(
                "another hapilot answers on {}: give each its own run directory (in a container \
                 of its own, or with its own mount of /run)",
                path.display()
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(_) => {
                std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        let listener = fault::at(Point::ControlSocket).and_then(|()| visitors::open(path));
        let listener = listener.with_context(|| format!("open {}", path.display()))?;
        tokio::task::spawn_local(accept(listener, asked));
        Ok(Self { path: path.to_owned() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, asked: mpsc::UnboundedSender<Asked>) {
    let mut visitors = Visitors::new(MOST_AT_ONCE);
    loop {
        let stream = accepted("of a command", || listener.accept()).await;
        let asked = asked.clone();
        let visit = async move |heard: Heard| {
            if let Err(error) = serve(stream, &asked, &heard).await {
                tracing::debug!(error = format!("{error:#}"), "control connection");
            }
        };
        visitors.admit(visit).await;
    }
}

async fn serve(
    mut stream: UnixStream,
    asked: &mpsc::UnboundedSender<Asked>,
    heard: &Heard,
) -> Result<()> {
    if let Some(message) = refusal(&stream)? {
        return send(&mut stream, &Answer::Error { message }).await;
    }
    let request = match tokio::time::timeout(PATIENCE, read_request(&mut stream)).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => {
            let message = format!("{error:#}");
            return send(&mut stream, &Answer::Error { message }).await;
        }
        Err(_) => bail!("no request within {PATIENCE:?}"),
    };
    heard.note();
    let (answer, receiver) = oneshot::channel();
    asked.send(Asked { request, answer }).ok().context("hapilot is ending")?;
    let answer = receiver.await.unwrap_or_else(|_| Answer::Error {
        message: "hapilot ended before it could answer".to_owned(),
    });
    let stopping = matches!(answer, Answer::Stopping);
    send(&mut stream, &answer).await?;
    if stopping {
        // Whoever asked for the stop waits for the end of this connection: it ends with us.
        let _ = stream.read(&mut [0]).await;
    }
    Ok(())
}

async fn read_request(stream: &mut UnixStream) -> Result<Request> {
    let mut line = String::new();
    let limit = u64::try_from(LONGEST_REQUEST).unwrap_or(u64::MAX);
    BufReader::new(stream.take(limit)).read_line(&mut line).await.context("read a request")?;
    serde_json::from_str(&line).with_context(|| format!("understand the request {line:?}"))
}

async fn send(stream: &mut UnixStream, answer: &Answer) -> Result<()> {
    let mut line = serde_json::to_vec(answer).context("write an answer")?;
    line.push(b'\n');
    tokio::time::timeout(PATIENCE, stream.write_all(&line))
        .await
        .context("the peer does not read its answer")?
        .context("send an answer")
}
