//! From one generation to the next: what has to be carried over, and the receipt that says how
//! it went.

pub mod fitness;
pub mod guard;
pub mod pace;
pub mod receipt;
pub mod reload;
pub mod saved;
pub mod strategy;
pub mod takeover;
