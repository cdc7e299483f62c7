//! Connections in the middle of their handshake: what a round trip makes of every new one.
//!
//! On a wire without delay a handshake lasts microseconds, and a reload that kills half-open
//! connections goes unnoticed. Here the client's ACKs to one address get lost until the test lets
//! them pass: the client thinks it is connected, the balancer's kernel still waits.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::client::{Outcome, connect, finish};
use super::network::BALANCER4_OTHER;
use super::{Namespace, SHORT};

const LOST: &str = "OUTPUT -d 10.1.0.11 -p tcp -m tcp --tcp-flags SYN,RST,ACK ACK -j DROP -m comment --comment lost";

#[derive(Debug)]
pub struct HalfOpen {
    client: Namespace,
    streams: Vec<TcpStream>,
}

impl HalfOpen {
    pub fn connect(client: &Namespace, port: u16, count: usize) -> Self {
        client.run(&format!("iptables -w -A {LOST}"));
        let address = format!("{BALANCER4_OTHER}:{port}");
        let limit = SHORT + Duration::from_secs(5);
        let streams = client
            .enter(|| (0..count).map(|_| connect(&address, limit).unwrap()).collect::<Vec<_>>());
        Self { client: client.clone(), streams }
    }

    /// Lets the handshakes finish and makes one request on each connection.
    pub fn finish(self) -> Vec<Outcome> {
        self.client.run(&format!("iptables -w -D {LOST}"));
        let finish = |stream| std::thread::spawn(move || finish(stream, "/", Instant::now()));
        let requests: Vec<_> = self.streams.into_iter().map(finish).collect();
        requests.into_iter().map(|request| request.join().unwrap()).collect()
    }
}
