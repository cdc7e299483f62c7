//! The image under Docker, by the README's commands. Needs root, an engine and the image that `HAPILOT_TEST_IMAGE` names.
//!
//! `scripts/test` builds the images and runs this with `--ignored`; a plain `cargo test` shows every test here as ignored
//! rather than green. With `cargo test`, not nextest: tests that look at the machine's own network wait for each other.

mod compose;
mod container;
mod daemon;
mod engine;
mod folder;
mod host_state;
mod image;
mod killed;
mod lifecycle;
mod network;
mod recipes;
mod takeover;
mod takeover_stock;
mod transparent;
mod world;
