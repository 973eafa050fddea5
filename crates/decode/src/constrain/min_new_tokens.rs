//! No early end.

use super::Constrain;
use crate::SoFar;

/// Forbids the end-of-sequence tokens until `n` tokens are there. Stop strings are not affected.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MinNewTokens {
    /// Tokens that must come first.
    pub n: usize,
    /// The end-of-sequence ids.
    pub eos: Vec<u32>,
}

impl Constrain for MinNewTokens {
    fn constrain(&self, so_far: &SoFar, logits_v: &mut [f32]) {
        if so_far.tokens.len() < self.n {
            for id in &self.eos {
                if let Some(logit) = logits_v.get_mut(*id as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}
