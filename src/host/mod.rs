//! What we change on the host, and how every bit of it is taken back.
pub mod mark;
