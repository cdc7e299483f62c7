//! The image under Docker, by the README's commands. Needs root, an engine and the image that `HAPILOT_TEST_IMAGE` names.
//!
//! `scripts/test` builds the images and runs this with `--ignored`; a plain `cargo test` shows every test here as ignored
//! rather than green. One at a time: the host's own rules are compared before and after.

mod container;
mod host_state;
mod image;
mod lifecycle;
mod transparent;
mod world;
