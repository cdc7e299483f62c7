//! A client of HTTP/3, with a QUIC connection of its own for each request.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use hyper::body::Buf;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, VarInt};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{LONG, Namespace, SHORT, until};

#[derive(Clone)]
pub struct Http3 {
    config: ClientConfig,
    client: Namespace,
    server: SocketAddr,
    name: String,
}

impl Http3 {
    /// Trusts what is in that file only, and a server of that name.
    pub fn new(client: &Namespace, server: &str, name: &str, trusted: &Path) -> Self {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(trusted).unwrap() {
            roots.add(root.unwrap()).unwrap();
        }
        let mut tls =
            rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        let tls = QuicClientConfig::try_from(tls).unwrap();
        Self {
            config: ClientConfig::new(Arc::new(tls)),
            client: client.clone(),
            server: server.parse().unwrap(),
            name: name.to_owned(),
        }
    }

    /// Connects, asks for that path, and says the status and the body, or what went wrong.
    pub fn get(&self, path: &str) -> Result<(u16, String), String> {
        self.ask(path, &AtomicUsize::new(0))
    }

    /// The same beside us; returns when a part of the body has come.
    pub fn begin(&self, path: &str) -> JoinHandle<Result<(u16, String), String>> {
        let came = Arc::new(AtomicUsize::new(0));
        let (http3, path, count) = (self.clone(), path.to_owned(), Arc::clone(&came));
        let download = thread::spawn(move || http3.ask(&path, &count));
        until(SHORT, "the download has begun", || (came.load(Ordering::SeqCst) > 0).then_some(()));
        download
    }

    fn ask(&self, path: &str, came: &AtomicUsize) -> Result<(u16, String), String> {
        let url = format!("https://{}{path}", self.name);
        self.client.enter(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let asking = async {
                let (endpoint, connection) = self.connect().await?;
                let answer = ask(&connection, &url, came).await;
                // else the server keeps the session until it has been silent for long
                connection.close(VarInt::from_u32(0), b"");
                endpoint.wait_idle().await;
                answer
            };
            let limited = async { tokio::time::timeout(LONG, asking).await };
            runtime.block_on(limited).map_err(|_| format!("no answer in {LONG:?}"))?
        })
    }

    async fn connect(&self) -> Result<(Endpoint, Connection), String> {
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let endpoint = Endpoint::client(any).map_err(|error| error.to_string())?;
        let connecting = endpoint
            .connect_with(self.config.clone(), self.server, &self.name)
            .map_err(|error| error.to_string())?;
        let connection = connecting.await.map_err(|error| format!("no connection: {error}"))?;
        Ok((endpoint, connection))
    }
}

async fn ask(
    connection: &Connection,
    url: &str,
    came: &AtomicUsize,
) -> Result<(u16, String), String> {
    let transport = h3_quinn::Connection::new(connection.clone());
    let (mut driver, mut requests) =
        h3::client::new(transport).await.map_err(|error| format!("no HTTP/3: {error}"))?;
    let exchange = async {
        let request = hyper::Request::get(url).body(()).unwrap();
        let mut stream = requests.send_request(request).await?;
        stream.finish().await?;
        let status = stream.recv_response().await?.status().as_u16();
        let mut body = Vec::new();
        while let Some(mut part) = stream.recv_data().await? {
            let part = part.copy_to_bytes(part.remaining());
            body.extend_from_slice(&part);
            came.fetch_add(part.len(), Ordering::SeqCst);
        }
        Ok::<_, h3::error::StreamError>((status, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer.map_err(|error| format!("no answer: {error}")),
        // A server that drains closes the connection right behind the last answer's last byte.
        closed = std::future::poll_fn(|context| driver.poll_close(context)) => {
            exchange.await.map_err(|error| format!("closed: {closed}; no answer: {error}"))
        }
    }
}
