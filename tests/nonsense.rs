//! Promise: a HAProxy that does not say what it listens on costs nobody a connection, only a warning.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use lab::haproxy_cfg::proxy;
use lab::versions::{end, via, web};
use lab::{Instance, LONG, Lab, Load};
use serde_json::Value;

/// What is answered to `_getsocks`, before the connection is closed.
const GARBAGE: &[u8] = b"\x01\0\0\0HTTP/1.1 200 OK\r\n\r\n";
const TOO_MANY: &[u8] = b"\xff\xff\xff\xff";
/// It does not even hang up.
const SILENCE: &[u8] = b"";
const HALF_A_COUNT: &[u8] = b"\x02\0\0\0\0\0";

/// Sits on the runtime socket of a generation, and passes on all but that one question.
struct Impostor {
    asked: Arc<AtomicUsize>,
}

impl Impostor {
    /// Before HAProxy answers: it still reads its configuration when its socket is there.
    fn await_socket(socket: PathBuf, answer: &'static [u8]) -> thread::JoinHandle<Self> {
        thread::spawn(move || {
            let (real, own) = (socket.with_extension("real"), socket.with_extension("own"));
            let listener = UnixListener::bind(&own).unwrap();
            until_at_once(|| fs::hard_link(&socket, &real).is_ok());
            fs::rename(&own, &socket).unwrap();
            let asked = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&asked);
            thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let (real, count) = (real.clone(), Arc::clone(&count));
                    thread::spawn(move || pass_on(stream, &real, answer, &count));
                }
            });
            Self { asked }
        })
    }
}

/// The lab's own waits look again too late for this.
fn until_at_once(mut done: impl FnMut() -> bool) {
    let limit = std::time::Instant::now() + LONG;
    while !done() {
        assert!(std::time::Instant::now() < limit, "in vain: a runtime socket");
        thread::sleep(Duration::from_micros(200));
    }
}

fn pass_on(mut stream: UnixStream, real: &Path, answer: &[u8], asked: &AtomicUsize) {
    let mut line = String::new();
    let mut client = BufReader::new(stream.try_clone().unwrap());
    client.read_line(&mut line).unwrap();
    if line == "_getsocks\n" {
        asked.fetch_add(1, Ordering::SeqCst);
        let _ = stream.write_all(answer);
        if answer == SILENCE {
            // Until hapilot has waited for long enough.
            let _ = io::copy(&mut client, &mut io::sink());
        }
        return;
    }
    let mut haproxy = UnixStream::connect(real).unwrap();
    let _ = haproxy.write_all(line.as_bytes());
    let mut to_haproxy = haproxy.try_clone().unwrap();
    // An open conversation would keep a HAProxy alive that drains.
    thread::spawn(move || {
        let _ = io::copy(&mut client, &mut to_haproxy);
        let _ = to_haproxy.shutdown(Shutdown::Both);
    });
    let _ = io::copy(&mut haproxy, &mut stream);
    let _ = stream.shutdown(Shutdown::Both);
}

/// A reload whose HAProxy answers so; its receipt.
fn reload(lab: &Lab, hapilot: &mut Instance, answer: &'static [u8], option: &str) -> Value {
    let old = hapilot.current();
    lab.balancer.write("haproxy.cfg", &config(option));
    let next = format!("generation-{}.sock", old.id + 1);
    let impostor = Impostor::await_socket(hapilot.run_directory().join(next), answer);
    hapilot.reload();
    let new = hapilot.await_successor(&old);
    assert_eq!(new.id, old.id + 1, "taken at the first attempt");
    assert!(impostor.join().unwrap().asked.load(Ordering::SeqCst) > 0, "nobody was deceived");
    let receipt = hapilot.status()["last_reload"].clone();
    assert!(!receipt["warnings"].as_array().unwrap().is_empty(), "{receipt}");
    assert!(!receipt["doubts"].as_array().unwrap().is_empty(), "{receipt}");
    receipt
}

/// With `transparent` the same address gets a socket of its own. Many servers take HAProxy a while.
fn config(option: &str) -> String {
    let more = (0..3000).map(|n| format!("  server more-{n} 10.2.0.2:8000 disabled\n"));
    proxy(&format!(":80 {option}"), "v1") + &more.collect::<String>()
}

#[test]
fn a_haproxy_that_does_not_say_what_it_listens_on_is_guarded_by_what_the_kernel_says() {
    let (lab, mut hapilot, before) = Lab::serving(&config(""), &[]);
    let load = Load::start(&lab.client, &web());
    let receipt = reload(&lab, &mut hapilot, GARBAGE, "");
    assert_eq!(receipt["strategy"], "shared", "{receipt}");
    for (answer, option) in
        [(TOO_MANY, "transparent"), (HALF_A_COUNT, ""), (GARBAGE, "transparent"), (SILENCE, "")]
    {
        let receipt = reload(&lab, &mut hapilot, answer, option);
        assert_eq!(receipt["strategy"], "separate", "{receipt}");
        assert_ne!(receipt["guard"], "none", "{receipt}");
        // nobody waits at a socket that the keeper holds and nobody serves
        (0..30).for_each(|_| assert_eq!(via(&lab), "v1"));
        // The next one says it again.
        let old = hapilot.current();
        hapilot.reload();
        hapilot.await_successor(&old);
        assert_eq!(hapilot.status()["listeners"].as_array().unwrap().len(), 1);
    }
    let tally = load.finish();
    assert_eq!(tally.failed, [], "{} were answered", tally.answered);
    end(&lab, hapilot, &before);
}
