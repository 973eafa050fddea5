//! A sequence that reaches its limit ends properly.

use super::Constrain;
use crate::SoFar;

/// Leaves only end-of-sequence tokens for the last permitted token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ForceEos {
    /// How many tokens may be generated.
    pub max_new_tokens: usize,
    /// How many tokens prompt and answer may have together; 0 is no limit.
    pub max_context: usize,
    /// The end-of-sequence ids.
    pub eos: Vec<u32>,
}

impl Constrain for ForceEos {
    fn constrain(&self, so_far: &SoFar, logits_v: &mut [f32]) {
        let new = so_far.tokens.len() + 1;
        if new == self.max_new_tokens || so_far.prompt.len() + new == self.max_context {
            let ends = |id: usize| self.eos.contains(&(id as u32));
            let others = logits_v.iter_mut().enumerate().filter(|(id, _)| !ends(*id));
            others.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        }
    }
}
