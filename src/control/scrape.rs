//! Acts: answers Prometheus over HTTP (`HAPROXY_METRICS`).
//!
//! However many ask and however slowly they read, the loop is asked once a second at most and
//! never waits: each connection is a task with an end, and there are only so many of them.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, mpsc, oneshot};

use super::protocol::{Answer, Request};
use super::server::Asked;
use crate::fault::{self, Point};
use crate::process::visitors::accepted;

/// Whoever comes while as many are served waits in the kernel's queue.
const MOST_AT_ONCE: usize = 32;
/// For the head of a request, which comes in one piece from anybody who means it.
const HEAD_LIMIT: Duration = Duration::from_secs(2);
/// For one connection, from the first byte to the last. Prometheus itself gives up after 10 s.
const PATIENCE: Duration = Duration::from_secs(10);
/// Whoever asks again sooner gets the same answer: counting sessions costs time.
const FRESH: Duration = Duration::from_secs(1);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// hyper's own lower bound.
const LONGEST_HEAD: usize = 8192;
const FORMAT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Before anything is changed: an address that is taken is a reason not to start.
pub fn listen(address: SocketAddr) -> io::Result<StdListener> {
    fault::at(Point::Metrics)?;
    let listener = StdListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[derive(Debug)]
struct Scraper {
    asked: mpsc::UnboundedSender<Asked>,
    last: Mutex<Option<(Instant, Bytes)>>,
}

/// Serves until the end of the program.
pub fn serve(listener: StdListener, asked: mpsc::UnboundedSender<Asked>) -> Result<()> {
    let listener = TcpListener::from_std(listener).context("listen for Prometheus")?;
    let scraper = Rc::new(Scraper { asked, last: Mutex::new(None) });
    tokio::task::spawn_local(accept(listener, scraper));
    Ok(())
}

/// Whom we take over from may still answer at that address, and no event tells when it does not.
pub async fn serve_when_free(address: SocketAddr, asked: mpsc::UnboundedSender<Asked>) {
    loop {
        match listen(address) {
            Ok(listener) => match serve(listener, asked) {
                Ok(()) => return tracing::info!(%address, "Prometheus is answered"),
                Err(error) => return tracing::error!("{error:#}"),
            },
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tokio::time::sleep(TRY_AGAIN).await;
            }
            Err(error) => return tracing::error!(%address, %error, "no answer for Prometheus"),
        }
    }
}

async fn accept(listener: TcpListener, scraper: Rc<Scraper>) {
    let places = Arc::new(Semaphore::new(MOST_AT_ONCE));
    // It is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let stream = accepted("for metrics", || listener.accept()).await;
        let scraper = Rc::clone(&scraper);
        tokio::task::spawn_local(async move {
            let served = tokio::time::timeout(PATIENCE, scraper.connection(stream)).await;
            tracing::trace!(?served, "scrape");
            drop(place);
        });
    }
}

impl Scraper {
    async fn connection(&self, stream: TcpStream) -> hyper::Result<()> {
        hyper::server::conn::http1::Builder::new()
            // A place is not kept for one who may come again.
            .keep_alive(false)
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .max_buf_size(LONGEST_HEAD)
            .serve_connection(
                TokioIo::new(stream),
                service_fn(async |request| Ok::<_, Infallible>(self.respond(&request).await)),
            )
            .await
    }

    async fn respond(&self, request: &HttpRequest<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/metrics" {
            return plain(StatusCode::NOT_FOUND, "hapilot: the metrics are at /metrics\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "hapilot: metrics are only read\n");
        }
        match self.text().await {
            Ok(text) => response(StatusCode::OK, FORMAT, text),
            Err(error) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("hapilot: {error:#}\n")),
        }
    }

    /// Who comes while somebody else asks gets that one's answer.
    async fn text(&self) -> Result<Bytes> {
        let mut last = self.last.lock().await;
        if let Some((at, text)) = &*last
            && at.elapsed() < FRESH
        {
            return Ok(text.clone());
        }
        let (answer, receiver) = oneshot::channel();
        let asked = Asked { request: Request::Metrics, answer };
        self.asked.send(asked).ok().context("hapilot is ending")?;
        let answer = tokio::time::timeout(ANSWER_LIMIT, receiver).await;
        let text = match answer.context("hapilot is busy")?.context("hapilot is ending")? {
            Answer::Metrics { text } => Bytes::from(text),
            Answer::Error { message } => bail!(message),
            other => bail!("an answer to another question: {other:?}"),
        };
        *last = Some((Instant::now(), text.clone()));
        Ok(text)
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, PLAIN, text.into())
}

fn response(status: StatusCode, kind: HeaderValue, text: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
