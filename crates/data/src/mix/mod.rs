//! In which order, and from which sources together.

pub mod concat;
pub mod shuffle;
