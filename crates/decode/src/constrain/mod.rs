//! What may come next, and where a sequence ends.

mod ban;
mod dry;
mod force_eos;
mod grammar;
mod logit_bias;
mod min_new_tokens;
mod rising_end;
mod seen;
mod stop;

use std::sync::Arc;

pub use ban::Ban;
pub use dry::Dry;
pub use force_eos::ForceEos;
pub use grammar::{Format, Grammar, Vocabulary};
pub use logit_bias::LogitBias;
pub use min_new_tokens::MinNewTokens;
pub use rising_end::RisingEnd;
pub use seen::Seen;
pub use stop::Stops;

use crate::SoFar;

/// Changes the logits of the next token before it is chosen; −∞ forbids a token.
pub trait Constrain: Send + Sync {
    /// Edits `logits_v` in place.
    fn constrain(&self, so_far: &SoFar, logits_v: &mut [f32]);
}

/// A shared constraint is one.
impl Constrain for Arc<dyn Constrain> {
    fn constrain(&self, so_far: &SoFar, logits_v: &mut [f32]) {
        self.as_ref().constrain(so_far, logits_v);
    }
}

/// Constraints applied one after the other are a constraint.
impl Constrain for [Box<dyn Constrain>] {
    fn constrain(&self, so_far: &SoFar, logits_v: &mut [f32]) {
        self.iter().for_each(|part| part.constrain(so_far, logits_v));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: f32 = f32::NEG_INFINITY;

    fn after(tokens: &[u32], rule: &dyn Constrain) -> Vec<f32> {
        let mut logits = vec![0.5, 1.5, -2.0, 0.0];
        rule.constrain(&SoFar { prompt: &[0], tokens }, &mut logits);
        logits
    }

    #[test]
    fn each_rule_touches_only_its_tokens() {
        assert_eq!(after(&[], &Ban { ids: vec![1, 3] }), [0.5, NONE, -2.0, NONE]);
        let bias = LogitBias { bias: [(0, 2.0), (2, -1.0)].into_iter().collect() };
        assert_eq!(after(&[], &bias), [2.5, 1.5, -3.0, 0.0]);
    }

    #[test]
    fn an_end_is_forbidden_early_and_forced_late() {
        let early = MinNewTokens { n: 2, eos: vec![3] };
        assert_eq!(after(&[1], &early), [0.5, 1.5, -2.0, NONE]);
        assert_eq!(after(&[1, 1], &early), [0.5, 1.5, -2.0, 0.0]);
        // The prompt of these tests has one token.
        for (max_new_tokens, max_context) in [(2, 0), (9, 3)] {
            let late = ForceEos { max_new_tokens, max_context, eos: vec![2, 3] };
            assert_eq!(after(&[1], &late), [NONE, NONE, -2.0, 0.0]);
            assert_eq!(after(&[], &late), [0.5, 1.5, -2.0, 0.0]);
        }
    }

    #[test]
    fn a_chain_is_its_parts_in_order() {
        let chain: Vec<Box<dyn Constrain>> = vec![
            Box::new(LogitBias { bias: [(1, 5.0)].into_iter().collect() }),
            Box::new(Ban { ids: vec![1] }),
        ];
        let mut logits = vec![0.5, 1.5];
        chain[..].constrain(&SoFar { prompt: &[], tokens: &[] }, &mut logits);
        assert_eq!(logits, [0.5, NONE]);
    }
}
