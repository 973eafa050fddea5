//! What rows become.

pub mod overlength;
pub mod system;
