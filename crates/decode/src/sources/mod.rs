//! Where logits come from.

mod policy;

use std::sync::Arc;

use luthier_core::{Result, Rows};

pub use policy::PolicySource;

/// The new tokens of every live sequence, laid end to end.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    /// New token ids: a whole prompt for a sequence that has just entered, else one.
    pub ids_n: &'a [u32],
    /// Bounds of each sequence's new tokens, and their positions.
    pub rows: Arc<Rows>,
    /// Which sequence each row extends.
    pub slots_b: &'a [usize],
}

/// Gives logits for the token after each row of a step, remembering the tokens it has seen.
pub trait Source {
    /// Number of tokens it knows.
    fn vocab(&self) -> usize;

    /// Reads the step's tokens and replaces `logits_bv` by the logits at the last token of each
    /// row, flat `(b, v)`.
    fn step(&mut self, step: &Step, logits_bv: &mut Vec<f32>) -> Result<()>;

    /// Forgets the sequence in `slot`.
    fn free(&mut self, slot: usize);
}
