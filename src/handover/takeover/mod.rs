//! Taking over from the HAProxy of other containers, and being relieved by one.
//!
//! A *predecessor* is whoever serves before us: another hapilot (`hapilot`), which is asked over the
//! abstract socket that is its lease too (`door`, `protocol`), or a HAProxy without one (`plain`).
//! `find` says who they are, `predecessor` what can be done with each, `choice` which of the
//! hapilots are meant; `marks` is how a relieved one knows it after a restart.

pub mod choice;
pub mod door;
pub mod find;
pub mod hapilot;
pub mod marks;
pub mod plain;
pub mod predecessor;
pub mod protocol;
pub mod receipt;
pub mod separate;
