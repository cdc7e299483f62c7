//! Promise: whatever step of a start, a reload, a take-over or a stop fails, hangs, or is the last
//! one before hapilot is killed, the host is soon as it was before.
//!
//! Each life is lived once to learn its steps (`HAPILOT_FAULT`, see `src/fault.rs`), and then once
//! for each step and each fault. `HAPILOT_FAULTS=all` leaves nothing out: `tests/README.md`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test says so by panicking, and how often it was tried in its output"
)]

mod left;
mod life;
mod moments;
mod seats;
mod verdict;
mod walk;
