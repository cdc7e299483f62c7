//! The life of the container: `lifecycle` decides, `run` acts, `boot` is what comes before.

pub mod boot;
mod generations;
pub mod guarding;
pub mod lifecycle;
pub mod reaper;
mod reports;
pub mod run;
pub mod signals;
mod status;
