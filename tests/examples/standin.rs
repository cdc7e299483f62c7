//! Small servers in place of the public images that a recipe names: no registry is asked, and each
//! says what the real one says, as far as the recipe's README shows it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::lab::{Namespace, SHORT};

/// What becomes of one connection.
pub(crate) type Serve = Arc<dyn Fn(TcpStream) -> std::io::Result<()> + Send + Sync>;

/// Listens until it is dropped.
pub(crate) struct Server {
    listeners: Vec<Arc<TcpListener>>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(
        namespace: &Namespace,
        addresses: &[IpAddr],
        port: u16,
        serve: &Serve,
    ) -> Self {
        let listen = |ip: &IpAddr| {
            let address = SocketAddr::new(*ip, port);
            Arc::new(namespace.enter(|| TcpListener::bind(address).unwrap()))
        };
        let listeners: Vec<_> = addresses.iter().map(listen).collect();
        let accept = |listener: &Arc<TcpListener>| {
            let (listener, serve) = (Arc::clone(listener), Arc::clone(serve));
            std::thread::spawn(move || accept(&listener, &serve))
        };
        let threads = listeners.iter().map(accept).collect();
        Self { listeners, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // wakes up who waits in accept, with an error
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

fn accept(listener: &TcpListener, serve: &Serve) {
    for stream in listener.incoming().map_while(Result::ok) {
        let serve = Arc::clone(serve);
        std::thread::spawn(move || {
            let _ = stream.set_read_timeout(Some(SHORT));
            drop(serve(stream));
        });
    }
}

/// `traefik/whoami`: repeats the request; `/health` answers with the status last posted to it.
#[derive(Clone)]
pub(crate) struct Whoami {
    name: String,
    health: Arc<AtomicU16>,
}

impl Whoami {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), health: Arc::new(AtomicU16::new(200)) }
    }

    pub(crate) fn set_health(&self, status: u16) {
        self.health.store(status, Ordering::SeqCst);
    }

    pub(crate) fn serve(&self) -> Serve {
        let whoami = self.clone();
        Arc::new(move |stream| {
            let peer = stream.peer_addr()?;
            whoami.answer(stream, peer)
        })
    }

    pub(crate) fn answer(
        &self,
        mut stream: impl Read + Write,
        peer: SocketAddr,
    ) -> std::io::Result<()> {
        let Some(head) = read_head(&mut stream)? else { return Ok(()) };
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let (status, body) = if target == "/health" {
            (self.health.load(Ordering::SeqCst), String::new())
        } else if let Some(size) = target.strip_prefix("/data?size=") {
            (200, "Somewhat compressible. ".repeat(size.parse::<usize>().unwrap_or(0) / 23))
        } else {
            (200, format!("Name: {0}\nHostname: {0}\nRemoteAddr: {peer}\n{head}", self.name))
        };
        write!(
            stream,
            "HTTP/1.1 {status} Some\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    }
}

/// An application with a session cookie of its own, as `app.conf` makes nginx be.
pub(crate) fn application(name: &str) -> Serve {
    let name = name.to_owned();
    Arc::new(move |mut stream| {
        let Some(head) = read_head(&mut stream)? else { return Ok(()) };
        let cookies = head.lines().filter_map(|line| line.strip_prefix("Cookie: "));
        let mut cookies = cookies.flat_map(|line| line.split("; "));
        let session = cookies.find_map(|cookie| cookie.strip_prefix("JSESSIONID="));
        let new = if session.is_none() { "Set-Cookie: JSESSIONID=s0\r\n" } else { "" };
        let body = format!("{name} has session {}\n", session.unwrap_or("none yet"));
        write!(
            stream,
            "HTTP/1.1 200 OK\r\n{new}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    })
}

/// `axllent/mailpit`: speaks first, and remembers whom it spoke to.
pub(crate) fn mail(name: &str, seen: Arc<Mutex<Vec<IpAddr>>>) -> Serve {
    let name = name.to_owned();
    Arc::new(move |mut stream| {
        seen.lock().unwrap().push(stream.peer_addr()?.ip());
        // Whole: HAProxy's check takes the first packet for the line, and its end for another one.
        stream.write_all(format!("220 {name} Mailpit ESMTP Service ready\r\n").as_bytes())?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        while let Some(line) = lines.next().transpose()? {
            let quit = line.eq_ignore_ascii_case("quit");
            stream.write_all(if quit { b"221 2.0.0 Bye\r\n" } else { b"250 Ok\r\n" })?;
            if quit {
                break;
            }
        }
        Ok(())
    })
}

/// A header's name as Go's programs, of which whoami is one, write it.
fn canonical(line: &str) -> String {
    let Some((name, value)) = line.split_once(": ") else { return line.to_owned() };
    let part = |part: &str| part[..1].to_uppercase() + &part[1..].to_lowercase();
    format!("{}: {value}", name.split('-').map(part).collect::<Vec<_>>().join("-"))
}

/// The request line and the headers, without the empty line; `None` for a mere connection check.
fn read_head(stream: &mut impl Read) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let count = stream.read(&mut piece)?;
        if count == 0 {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let lines: Vec<_> = head.split("\r\n").map(canonical).collect();
            return Ok(Some(lines.join("\n") + "\n"));
        }
    }
}
