//! hapilot supervises the stock HAProxy as PID 1 of its container.
//!
//! Each folder is a chapter: `host` is what we change in the kernel and how it is taken back,
//! `haproxy` is one HAProxy process, `listeners` what it listens on, `supervisor` decides and acts,
//! `control` is the socket that the other commands talk to. `docs/architecture.md` has the map.

pub mod cli;
pub mod control;
pub mod fault;
pub mod handover;
pub mod haproxy;
pub mod host;
pub mod listeners;
pub mod logging;
pub mod operator;
pub mod printable;
pub mod problem;
pub mod process;
pub mod settings;
pub mod supervisor;
pub mod syslog;
pub mod watch;
