//! The other firewall: nftables, spoken to over netlink instead of by a program.
//!
//! `change` says what is changed, in the words of `nft` and in the kernel's; `expression` is what
//! rules are made of; `ruleset` what an instance has; `socket` sends it, and `answer` reads what
//! comes back. The `nft` program cannot be the owner of a table: it ends, and the table with it.

pub mod answer;
pub mod change;
mod expression;
pub mod ruleset;
pub mod socket;

pub use answer::Seen;
pub use change::{Chain, Change, Kind, Rule, Table};
pub use ruleset::Ruleset;
pub use socket::Nftables;
