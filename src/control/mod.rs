//! The socket that the other commands talk to, one JSON object a line in each direction; the door
//! to HAProxy's runtime API; and what Prometheus reads.

pub mod client;
pub mod door;
pub mod metrics;
pub mod protocol;
pub mod scrape;
pub mod server;
