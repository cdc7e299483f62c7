//! Processes: how they end, how they are signalled, what `/proc` says of them.
//!
//! A process is a pidfd, never a bare PID: a PID may belong to somebody else by the time that a
//! signal is sent. PIDs are for logs and for matching what the kernel reports.

pub mod abstract_name;
pub mod aside;
pub mod birth;
pub mod descriptors;
pub mod exit;
pub mod file;
pub mod handle;
pub mod last_resort;
pub mod limits;
pub mod memory;
pub mod panicked;
pub mod patience;
pub mod private;
pub mod procfs;
pub mod program;
pub mod readiness;
pub mod rights;
pub mod threads;
pub mod together;
pub mod visitors;
