//! The socket that the other commands talk to: one JSON object a line in each direction.

pub mod client;
pub mod protocol;
pub mod server;
