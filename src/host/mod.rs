//! What we change on the host, and how every bit of it is taken back.
//!
//! `plan` says what is changed, as a list of `step`s, each with its undo; `tproxy` chooses the
//! numbers; `applied` runs steps and remembers the undos; `linux` is the kernel that does them, by
//! `iptables` or `nftables` (`backend`), `routing` and `sysctl`. The first thing in the kernel is a
//! `record` of all the rest, in the comment of a chain or of a table; the `lease` says that its
//! instance lives; `sweep` removes what an instance that lives no more left behind.
//! `watch` hears when others remove something, by what `notice` reads in the kernel's words, and
//! `mend` makes it whole. `barrier` is the
//! chain that stops SYNs during a hand-over, and `debts` what of it is still to be taken back. `preflight` looks before anything is changed,
//! and `surroundings` for what of the host's own breaks transparent proxying (`reverse_path`).
//! `Host` is all of it, and `orders` the door for the loop, which must not wait.

pub mod applied;
pub mod backend;
pub mod barrier;
pub mod debts;
mod facade;
pub mod instance;
pub mod introduction;
pub mod iptables;
pub mod lease;
pub mod linux;
pub mod mark;
pub mod mend;
pub mod net_admin;
pub mod netlink;
pub mod nftables;
pub mod notice;
pub mod orders;
pub mod plan;
pub mod preflight;
pub mod record;
pub mod reverse_path;
pub mod routing;
pub mod saved;
pub mod secret;
pub mod step;
pub mod surroundings;
pub mod survey;
pub mod sweep;
pub mod sysctl;
pub mod tproxy;
pub mod watch;

pub use facade::{Host, Owned, TearDownError, Wanted, plan as plan_for};
