//! The life of the container: `lifecycle` decides, `run` acts.

pub mod lifecycle;
