//! What every take-over is to come to.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use serde_json::Value;

use super::{HalfOpen, Instance, LONG, Load, Outcome};

/// The receipt, once somebody was relieved.
pub fn receipt(instance: &mut Instance) -> Value {
    let status = instance.await_status("a take-over is written down", |status| {
        status["state"] == "serving" && !status["last_takeover"].is_null()
    });
    status["last_takeover"].clone()
}

pub fn assert_ends_with_0(old: &mut Instance) {
    let status = old.wait(LONG);
    assert_eq!(status.code(), Some(0), "{}", old.log.text());
}

/// How long the slowest took.
pub fn assert_none_lost(load: Load) -> Duration {
    let tally = load.finish();
    assert!(tally.failed.is_empty(), "of {}: {:?}", tally.answered, tally.failed);
    assert!(tally.answered > 0);
    tally.slowest
}

pub fn assert_all_answered(half_open: HalfOpen) {
    let outcomes = half_open.finish();
    assert!(outcomes.iter().all(Outcome::is_answered), "{outcomes:?}");
}

/// Shows a hapilot at whose door we are that we have `CAP_NET_ADMIN`.
pub fn introduce(door: &mut BufReader<UnixStream>) {
    let knock = r#"{"say":"knock","protocol":2,"nonce":"00","number":null}"#;
    writeln!(door.get_mut(), "{knock}").unwrap();
    let mut line = String::new();
    door.read_line(&mut line).unwrap();
    let asked: Value = serde_json::from_str(&line).unwrap();
    let number = usize::try_from(asked["number"].as_u64().unwrap()).unwrap();
    set_socket_recv_buffer_size_force(door.get_ref(), number).unwrap();
    writeln!(door.get_mut(), r#"{{"say":"proof","proof":null}}"#).unwrap();
    line.clear();
    door.read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), r#"{"answer":"welcome"}"#);
}
