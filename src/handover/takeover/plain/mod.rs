//! A HAProxy that runs without hapilot, in another container or on the host.
//!
//! It is found by its PID (`find`), looked at behind a pidfd (`process`, `identity`), with all the
//! processes that are one HAProxy (`family`). How its listening sockets come over is a ladder
//! (`ladder`): from its own stats socket (`reach`, `runtime`), or straight out of its table of
//! descriptors (`descriptors`), or not at all; then ours get ports of their own beside them, under a
//! guard. Nothing is sent to it before ours is ready; from then on SIGUSR1, and we watch it drain.
//! One that must leave its ports to ours is paused for that long, which is noted first (`paused`).

pub mod borrow;
mod descriptors;
pub mod family;
pub mod find;
pub mod haproxy;
pub mod identity;
pub mod ladder;
pub mod paused;
pub mod process;
mod reach;
pub mod relief;
mod runtime;
pub mod tables;
mod view;

pub use find::unseen;
pub use relief::{Plain, find};
