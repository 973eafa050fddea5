//! What rows become.

pub mod call_turns;
pub mod deconfound;
pub mod key_tokens;
pub mod overlength;
pub mod rank;
pub mod response_only;
pub mod system;
pub mod translate;
pub mod weigh;
