//! Which rows stay.

pub mod dedup;
pub mod filter;
pub mod limit;
pub mod sample;
pub mod split;
