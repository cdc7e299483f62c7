//! The laboratory: three network namespaces, a real HAProxy, a real kernel, and the real binary.
//!
//! ```text
//! client 10.1.0.2, fd00:1::2 ── 10.1.0.1, fd00:1::1 balancer 10.2.0.1, fd00:2::1 ── 10.2.0.2, fd00:2::2 server
//! ```
//!
//! The namespaces have no name and no process: they live as long as somebody holds a descriptor of
//! them, so tests run side by side and nothing is left over, whatever happens to the test.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "each test file uses its own part of the lab, and a lab that breaks should say so loudly"
)]

pub mod bounded;
pub mod certificate;
pub mod cgroup;
pub mod client;
pub mod finished;
pub mod generation;
pub mod half_open;
pub mod haproxy_cfg;
pub mod host_state;
pub mod http3;
pub mod instance;
pub mod log;
pub mod monitor;
pub mod mounts;
pub mod namespace;
pub mod network;
pub mod origin;
pub mod plain;
pub mod process;
pub mod reborn;
pub mod spec;
pub mod takeover;
pub mod turnstile;
pub mod versions;

pub use bounded::{LONG, SHORT, until};
pub use certificate::certificate;
pub use client::{Download, Load, Outcome, get};
pub use finished::Finished;
pub use generation::{Generation, generations};
pub use half_open::HalfOpen;
pub use host_state::HostState;
pub use http3::Http3;
pub use instance::Instance;
pub use monitor::{Happened, Monitor};
pub use namespace::Namespace;
pub use network::{Host, Lab};
pub use origin::Origin;
pub use plain::Plain;
pub use spec::Pid;
