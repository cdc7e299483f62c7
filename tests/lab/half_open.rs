//! Connections in the middle of their handshake: what a round trip makes of every new one.
//!
//! On a wire without delay a handshake lasts microseconds, and a reload that kills half-open
//! connections goes unnoticed. Here the client's ACKs to one address get lost until the test lets
//! them pass: the client thinks it is connected, the balancer's kernel still waits.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::client::{Outcome, connect, finish};
use super::network::BALANCER4_OTHER;
use super::{Namespace, SHORT};

#[derive(Debug)]
pub struct HalfOpen {
    client: Namespace,
    /// The rule by which the ACKs get lost, to be added and removed.
    lost: [String; 2],
    streams: Vec<TcpStream>,
}

impl HalfOpen {
    pub fn connect(client: &Namespace, port: u16, count: usize) -> Self {
        let address = SocketAddr::new(BALANCER4_OTHER.parse().unwrap(), port);
        Self::connect_to(client, address, count)
    }

    /// To an address that nothing else connects to meanwhile.
    pub fn connect_to(client: &Namespace, address: SocketAddr, count: usize) -> Self {
        let program = if address.is_ipv4() { "iptables" } else { "ip6tables" };
        let rule = format!(
            "OUTPUT -d {} -p tcp -m tcp --tcp-flags SYN,RST,ACK ACK -j DROP -m comment --comment lost",
            address.ip()
        );
        let lost = ["-A", "-D"].map(|verb| format!("{program} -w {verb} {rule}"));
        client.run(&lost[0]);
        let address = address.to_string();
        let limit = SHORT + Duration::from_secs(5);
        let streams = client
            .enter(|| (0..count).map(|_| connect(&address, limit).unwrap()).collect::<Vec<_>>());
        Self { client: client.clone(), lost, streams }
    }

    /// Lets the handshakes finish and makes one request on each connection.
    pub fn finish(self) -> Vec<Outcome> {
        self.finish_with(|stream| finish(stream, "/", Instant::now()))
    }

    /// Lets the handshakes finish and says that on each connection.
    pub fn finish_with(
        self,
        talk: impl Fn(TcpStream) -> Outcome + Clone + Send + 'static,
    ) -> Vec<Outcome> {
        self.client.run(&self.lost[1]);
        let finish = |stream| {
            let talk = talk.clone();
            std::thread::spawn(move || talk(stream))
        };
        let requests: Vec<_> = self.streams.into_iter().map(finish).collect();
        requests.into_iter().map(|request| request.join().unwrap()).collect()
    }
}
