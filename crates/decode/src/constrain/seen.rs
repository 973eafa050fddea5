//! Tokens that are there already get less likely, once: a rule of the adapter by rules of Hewitt et al.
//! 2024 (arXiv 2409.14254).
//!
//! `logit − penalty` for every token that occurs after the last `after` in the prompt (the mark of the
//! user's turn; everywhere where there is no such mark), or in the answer, however often it does; its
//! probability is multiplied by `e^−penalty` before all are normalised. End-of-sequence tokens never
//! count: their presence in the prompt is the template's. **Departures**: none.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::Constrain;
use crate::SoFar;

/// `[decode.constrain.seen]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Seen {
    /// What is subtracted.
    pub penalty: f32,
    /// Text behind whose last occurrence the prompt counts; empty for the whole prompt.
    pub after: String,
    /// The tokens of `after`; filled in from the tokenizer.
    #[serde(skip)]
    pub mark: Vec<u32>,
    /// The end-of-sequence ids; filled in from the tokenizer.
    #[serde(skip)]
    pub eos: Vec<u32>,
}

impl Default for Seen {
    fn default() -> Self {
        Seen { penalty: 1.5, after: String::new(), mark: Vec::new(), eos: Vec::new() }
    }
}

impl Seen {
    /// Refuses a penalty that is no number.
    pub fn check(&self) -> Result<()> {
        match self.penalty.is_finite() {
            true => Ok(()),
            false => Err(Error::input("decode.constrain.seen.penalty", "expected a finite number")),
        }
    }

    /// The part of the prompt that counts.
    fn counted<'p>(&self, prompt: &'p [u32]) -> &'p [u32] {
        let n = self.mark.len();
        let found = match n {
            0 => None,
            _ => prompt.windows(n).rposition(|window| window == self.mark),
        };
        &prompt[found.map_or(0, |at| at + n)..]
    }
}

impl Constrain for Seen {
    fn constrain(&self, so_far: &SoFar, logits_v: &mut [f32]) {
        let mut seen: Vec<u32> = [self.counted(so_far.prompt), so_far.tokens].concat();
        seen.sort_unstable();
        seen.dedup();
        for id in seen.into_iter().filter(|id| !self.eos.contains(id)) {
            if let Some(logit) = logits_v.get_mut(id as usize) {
                *logit -= self.penalty;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_counts_once_and_the_end_never() {
        let rule = Seen { mark: vec![7, 8], eos: vec![3], ..Seen::default() };
        let mut logits = [0.0; 10];
        let prompt = [5, 7, 8, 4, 3, 7, 8, 1, 3, 7];
        rule.constrain(&SoFar { prompt: &prompt, tokens: &[2, 2, 2, 2, 2, 3] }, &mut logits);
        let expected = [0.0, -1.5, -1.5, 0.0, 0.0, 0.0, 0.0, -1.5, 0.0, 0.0];
        assert_eq!(logits, expected);
        // e^−1.5 times its weight, however often it was seen.
        let weight = f64::from(logits[2]).exp() / f64::from(logits[0]).exp();
        assert!((weight - 0.22313).abs() < 1e-5);
    }

    #[test]
    fn without_its_mark_the_whole_prompt_counts() {
        let mut logits = [0.0; 3];
        let rule = Seen { mark: vec![9, 9], ..Seen::default() };
        rule.constrain(&SoFar { prompt: &[0, 1], tokens: &[] }, &mut logits);
        assert_eq!(logits, [-1.5, -1.5, 0.0]);
    }
}
