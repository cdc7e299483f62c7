//! From one generation to the next: what has to be carried over, and the receipt that says how
//! it went.

pub mod fitness;
pub mod guard;
pub mod receipt;
pub mod reload;
pub mod strategy;
