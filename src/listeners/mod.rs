//! What a HAProxy process listens on.
//!
//! HAProxy hands its listening sockets to its successor over its runtime socket (`-x`, HAProxy
//! management guide, "Seamless reload"). The same question, asked by us, tells what it really
//! listens on and, by the sockets' inodes, which of them two processes share; and what is fetched
//! can be held (`keeper`), so that the sockets outlive any single HAProxy.

pub mod compare;
pub mod counters;
pub mod diagnosis;
pub mod fetch;
pub mod keeper;
pub mod socket_table;
pub mod wire;
