//! Numbers added to chosen tokens' logits.

use std::collections::BTreeMap;

use super::Constrain;
use crate::SoFar;

/// Adds a number to each named token's logit; −100 all but forbids, 100 all but forces.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogitBias {
    /// What to add, by token id.
    pub bias: BTreeMap<u32, f32>,
}

impl Constrain for LogitBias {
    fn constrain(&self, _so_far: &SoFar, logits_v: &mut [f32]) {
        for (id, bias) in &self.bias {
            if let Some(logit) = logits_v.get_mut(*id as usize) {
                *logit += bias;
            }
        }
    }
}
