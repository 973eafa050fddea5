//! What rows become.

pub mod overlength;
pub mod response_only;
pub mod system;
