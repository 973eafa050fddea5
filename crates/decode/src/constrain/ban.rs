//! Tokens that are never chosen.

use super::Constrain;
use crate::SoFar;

/// Forbids `ids`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ban {
    /// The forbidden ids; ids the vocabulary lacks are forbidden anyway.
    pub ids: Vec<u32>,
}

impl Constrain for Ban {
    fn constrain(&self, _so_far: &SoFar, logits_v: &mut [f32]) {
        for id in &self.ids {
            if let Some(logit) = logits_v.get_mut(*id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}
