//! The life of the container: `lifecycle` decides, `run` acts, `boot` is what comes before.

pub mod boot;
mod census;
pub mod deadlines;
mod drift;
mod generations;
pub mod guarding;
pub mod lifecycle;
mod neighbours;
mod orphan;
pub mod reaper;
mod relief;
mod reports;
mod restart;
mod room;
pub mod run;
mod saving;
mod sessions;
pub mod signals;
mod status;
mod stopping;
pub mod takeover;
mod worker;
