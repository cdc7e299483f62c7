//! One HAProxy process: how it is started, when it is ready, what it says.

pub mod generation;
