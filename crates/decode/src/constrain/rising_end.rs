//! The end of an answer grows likelier with its length: the first rule of the adapter by rules of
//! Hewitt et al. 2024 (arXiv 2409.14254).
//!
//! With `n` tokens of the answer so far, the logit of every end-of-sequence token rises by
//! `bias · n / over` for `n < over`, by `bias` from there on, and by `forced` once `n > limit`.
//! **Departures**: (1) the published code adds nothing from 250 tokens on, and the 100 of the paper
//! beyond 1024 is computed there but not added; both are added here.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::Constrain;
use crate::SoFar;

/// `[decode.constrain.rising_end]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RisingEnd {
    /// What is added in the end.
    pub bias: f32,
    /// After so many tokens.
    pub over: usize,
    /// What is added beyond `limit`.
    pub forced: f32,
    /// Tokens that an answer should never pass.
    pub limit: usize,
    /// The end-of-sequence ids; filled in from the tokenizer.
    #[serde(skip)]
    pub eos: Vec<u32>,
}

impl Default for RisingEnd {
    fn default() -> Self {
        RisingEnd { bias: 15.0, over: 250, forced: 100.0, limit: 1024, eos: Vec::new() }
    }
}

impl RisingEnd {
    /// Refuses numbers that mean nothing.
    pub fn check(&self) -> Result<()> {
        let at = "decode.constrain.rising_end";
        if self.over == 0 {
            return Err(Error::input(format!("{at}.over"), "expected at least 1, got 0"));
        }
        if !self.bias.is_finite() || !self.forced.is_finite() {
            return Err(Error::input(at, "expected finite numbers"));
        }
        Ok(())
    }

    /// What is added with `n` tokens so far.
    pub fn bias_at(&self, n: usize) -> f32 {
        match n {
            n if n > self.limit => self.forced,
            n => self.bias * n.min(self.over) as f32 / self.over as f32,
        }
    }
}

impl Constrain for RisingEnd {
    fn constrain(&self, so_far: &SoFar, logits_v: &mut [f32]) {
        let bias = self.bias_at(so_far.tokens.len());
        for id in &self.eos {
            if let Some(logit) = logits_v.get_mut(*id as usize) {
                *logit += bias;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bias_rises_along_a_line_and_then_stays() {
        let rule = RisingEnd { eos: vec![1], ..RisingEnd::default() };
        for (n, bias) in
            [(0, 0.0), (100, 6.0), (249, 14.94), (250, 15.0), (1024, 15.0), (1025, 100.0)]
        {
            assert!((rule.bias_at(n) - bias).abs() < 1e-6, "{n}");
        }
        let mut logits = [0.5, -1.0, 2.0];
        rule.constrain(&SoFar { prompt: &[0; 9], tokens: &[2; 100] }, &mut logits);
        assert_eq!(logits, [0.5, 5.0, 2.0]);
    }
}
