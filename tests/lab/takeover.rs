//! What every take-over is to come to.

use std::time::Duration;

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
