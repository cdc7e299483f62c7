//! Promise: with nothing set, nothing mounted and no right, the page is served.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lab::client::connect;
use lab::network::{BALANCER4, BALANCER6};
use lab::{LONG, Lab, Outcome, get};

#[test]
fn with_no_configuration_no_right_and_no_setting_the_page_is_served_with_one_clear_warning() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = lab.balancer.container("hapilot").without_net_admin().start().serving();
    for address in [BALANCER4, BALANCER6] {
        for port in [80, 443] {
            let outcome = get(&lab.client, &format!("{address}:{port}"), "/");
            assert!(outcome.body().contains("<html"), "{outcome:?}");
        }
    }
    let text = hapilot.log.text();
    let warnings = text.lines().filter(|line| line.to_lowercase().contains("warn"));
    let transparent: Vec<_> = warnings.filter(|line| line.contains("transparent")).collect();
    assert_eq!(transparent.len(), 1, "one clear line: {text}");
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
    assert_eq!(get(&lab.client, &format!("{BALANCER4}:80"), "/"), Outcome::Refused);
}

#[test]
fn the_default_page_is_served_on_every_port_asked_for() {
    let lab = Lab::new();
    let spec = lab.balancer.container("hapilot").env("HAPROXY_PORTS", "8081, 8082");
    let mut hapilot = spec.start().serving();
    for port in [8081, 8082] {
        assert!(get(&lab.client, &format!("{BALANCER4}:{port}"), "/").body().contains("<html"));
    }
    assert_eq!(get(&lab.client, &format!("{BALANCER4}:80"), "/"), Outcome::Refused);
    hapilot.stop();
}

/// The next answer over this connection, if there is one, and whether it is the last.
fn answer(stream: &mut BufReader<TcpStream>) -> Option<bool> {
    stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n").ok()?;
    let (mut length, mut is_last) = (0, false);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        is_last |= line == "connection: close";
    }
    stream.read_exact(&mut vec![0; length]).ok()?;
    Some(is_last)
}

#[test]
fn busy_keep_alive_clients_of_the_default_page_lose_no_request_in_reloads() {
    const CLIENTS: usize = 20;
    let lab = Lab::new();
    let mut hapilot = lab.balancer.container("hapilot").start().serving();
    assert!(!hapilot.log.text().contains("idle-close-on-response"), "it needs no advice");
    let over = Arc::new(AtomicBool::new(false));
    let ask = |over: Arc<AtomicBool>| {
        move || {
            let (mut answered, mut closed, mut told) = (0, 0, 0);
            'connections: while !over.load(Ordering::SeqCst) {
                let stream = connect(&format!("{BALANCER4}:80"), LONG).unwrap();
                let mut stream = BufReader::new(stream);
                while let Some(is_last) = answer(&mut stream) {
                    answered += 1;
                    told += usize::from(is_last);
                    if is_last || over.load(Ordering::SeqCst) {
                        continue 'connections;
                    }
                }
                closed += 1;
            }
            (answered, closed, told)
        }
    };
    let client = |_| {
        let (namespace, ask) = (lab.client.clone(), ask(Arc::clone(&over)));
        std::thread::spawn(move || namespace.enter(ask))
    };
    let clients: Vec<_> = (0..CLIENTS).map(client).collect();
    for _ in 0..8 {
        let old = hapilot.current();
        hapilot.reload();
        lab::versions::await_gone(&mut hapilot, &old, LONG);
    }
    over.store(true, Ordering::SeqCst);
    let tallies: Vec<(usize, usize, usize)> =
        clients.into_iter().map(|client| client.join().unwrap()).collect();
    let closed: usize = tallies.iter().map(|(_, closed, _)| closed).sum();
    assert_eq!(closed, 0, "{tallies:?}");
    let told: usize = tallies.iter().map(|(.., told)| told).sum();
    assert!(told >= 8 * CLIENTS, "each was busy in each reload: {tallies:?}");
    hapilot.stop();
}
