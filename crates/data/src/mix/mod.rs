//! In which order, and from which sources together.

pub mod blocks;
pub mod concat;
pub mod interleave;
pub mod shuffle;
