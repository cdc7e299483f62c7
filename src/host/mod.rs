//! What we change on the host, and how every bit of it is taken back.
//!
//! `plan` says what is changed, as a list of `step`s, each with its undo; `tproxy` chooses the
//! numbers; `applied` runs steps and remembers the undos; `linux` is the kernel that does them, by
//! `iptables`, `routing` and `sysctl`. The first thing in the kernel is a chain whose comment
//! carries a `record` of all the rest; the `lease` says that its instance lives; `sweep` removes
//! what an instance that lives no more left behind. `barrier` is the chain that stops SYNs during a
//! hand-over. `preflight` looks before anything is changed.
//! `Host` is the door for the rest of the crate.
//!
//! Another backend (nftables) would be another `Place` of steps and another caller beside
//! `iptables`; record, lease and sweep stay.

pub mod applied;
pub mod barrier;
mod bounded;
mod facade;
pub mod instance;
pub mod iptables;
pub mod lease;
pub mod linux;
pub mod mark;
pub mod plan;
pub mod preflight;
pub mod record;
pub mod routing;
pub mod saved;
pub mod step;
pub mod survey;
pub mod sweep;
pub mod sysctl;
pub mod tproxy;

pub use facade::{Host, Owned, TearDownError, Wanted, plan as plan_for};
