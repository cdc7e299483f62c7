//! TLS for clients and servers, with a demonstration's certificates.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};

use crate::lab::Outcome;
use crate::standin::{Serve, Whoami};
use crate::visitor::Request;

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).unwrap().map(Result::unwrap).collect()
}

/// A client that trusts that authority only.
pub(crate) fn client(authority: &Path) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for root in certificates(authority) {
        roots.add(root).unwrap();
    }
    ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}

/// The request over TLS, to a server that must be `www.example.com`.
pub(crate) fn talk(
    config: ClientConfig,
    request: &Request,
) -> impl Fn(TcpStream) -> Outcome + Clone + Send + 'static {
    let (config, request) = (Arc::new(config), request.clone());
    move |stream| {
        let name = ServerName::try_from("www.example.com").unwrap();
        let tls = ClientConnection::new(Arc::clone(&config), name).unwrap();
        request.say(StreamOwned::new(tls, stream))
    }
}

/// That whoami with `--cert` and `--key`.
pub(crate) fn serve(whoami: &Whoami, certificate: &Path, key: &Path) -> Serve {
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let config = ServerConfig::builder().with_no_client_auth();
    let config = Arc::new(config.with_single_cert(certificates(certificate), key).unwrap());
    let whoami = whoami.clone();
    Arc::new(move |stream| {
        let peer = stream.peer_addr()?;
        let tls = ServerConnection::new(Arc::clone(&config)).map_err(std::io::Error::other)?;
        let mut stream = StreamOwned::new(tls, stream);
        whoami.answer(&mut stream, peer)?;
        stream.conn.send_close_notify();
        std::io::Write::flush(&mut stream)
    })
}
