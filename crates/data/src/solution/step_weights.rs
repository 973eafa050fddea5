//! Advantage-weighted steps (Setlur et al. 2024, arXiv 2406.14532): what per-step DPO is equal to.
//!
//! Every step of a solution is learned with the weight `min(exp(A(i) / beta), clip)`, its advantage
//! from the values of the prefixes around it (see [`super::rollout`]); the token that ends the answer
//! has the last step's. As `beta` grows all weights become 1, imitation of everything. Right solutions
//! of which nothing else is known have the weight 1 throughout. **Departures**: (1) the weight of a
//! step is that of its tokens, so with the normaliser `token` the step's loss is a weighted mean.

use luthier_core::{Error, Result, Seed, Table};
use serde::{Deserialize, Serialize};

use super::{Estimator, advantages, chars, rollout::Rollout};
use crate::{Step, parts::AnswerWeights};

/// `step_weights = { beta = 0.1 }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepWeights {
    /// What ends a step.
    pub step_split: String,
    /// A prefix is worth the chance that the best of so many continuations is right.
    pub k: usize,
    /// How that is estimated.
    pub estimator: Estimator,
    /// Divides advantages.
    pub beta: f64,
    /// The largest weight.
    pub clip: f64,
}

impl Default for StepWeights {
    fn default() -> Self {
        let (step_split, estimator) = ("\n".to_owned(), Estimator::default());
        StepWeights { step_split, k: 5, estimator, beta: 0.1, clip: 20.0 }
    }
}

/// `min(exp(A / beta), clip)` for every step.
pub fn weights(values: &[f64], beta: f64, clip: f64) -> Vec<f64> {
    advantages(values).into_iter().map(|a| (a / beta).exp().min(clip)).collect()
}

impl Step for StepWeights {
    fn apply(&self, mut table: Table, _seed: Seed) -> Result<Table> {
        for (key, x) in [("beta", self.beta), ("clip", self.clip)] {
            if x.is_nan() || x <= 0.0 {
                let what = format!("expected a number above 0, got {x}");
                return Err(Error::input(format!("step_weights.{key}"), what));
            }
        }
        if self.k == 0 || self.step_split.is_empty() {
            let key = if self.k == 0 { "k" } else { "step_split" };
            return Err(Error::input(format!("step_weights.{key}"), "expected more than nothing"));
        }
        for example in &mut table.examples {
            let rollout = Rollout::of(example, &self.step_split, self.k, self.estimator)?;
            if rollout.values.is_empty() {
                if rollout.right {
                    continue;
                }
                let what = "a wrong solution without the columns values or rollouts";
                return Err(Error::input(example.origin.to_string(), what)
                    .hint("without them it would be learned as a whole"));
            }
            let weights = weights(&rollout.values, self.beta, self.clip);
            let mut parts = Vec::with_capacity(weights.len());
            let mut from = 0;
            for (step, weight) in rollout.steps.iter().zip(&weights) {
                let to = from + chars(step);
                parts.push((from, to, *weight as f32));
                from = to;
            }
            let end = weights.last().map(|w| *w as f32);
            AnswerWeights::put(&[Some(AnswerWeights { parts, end })], example);
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_beta_is_imitation_and_a_small_one_is_clipped() {
        let values = [0.75, 0.8, 0.7, 0.1, 0.0];
        assert!(weights(&values, 1e9, 20.0).iter().all(|w| (w - 1.0).abs() < 1e-8));
        let sharp = weights(&values, 0.01, 20.0);
        assert!(sharp[0] == 20.0 && sharp[2] < 1e-20, "{sharp:?}");
        let some = weights(&values, 0.5, 20.0);
        assert!((some[2] - (-1.2f64).exp()).abs() < 1e-12);
    }
}
