//! The life of the container: `lifecycle` decides, `run` acts, `boot` is what comes before.

pub mod boot;
pub mod lifecycle;
pub mod reaper;
pub mod run;
pub mod signals;
pub mod status;
