//! Advantage-weighted steps (Setlur et al. 2024, arXiv 2406.14532): what per-step DPO is equal to.
//!
//! Every step of a solution has a weight by its advantage `A(i)`, which comes from the values of the
//! prefixes around it (see [`super::rollout`]); the token that ends the answer has the last step's.
//!
//! | `by` | weight of a step |
//! |---|---|
//! | `exp` | `min(exp(A(i) / beta), clip)`; as `beta` grows all become 1, imitation of everything |
//! | `signed` | `A(i)` within `±clip`: below 0 for a step that lowers the chance of a right end |
//!
//! Signed weights are meant for `[train.loss.advantage]`, which is bounded; with `nll` they give the policy
//! gradient `Σ A(i)·log p`, which makes bad steps unlikely without end. Right solutions of which nothing else
//! is known have the weight 1 throughout, signed as if nothing had been right from the empty prefix.
//! **Departures**: (1) the weight of a step is that of its tokens, so with the normaliser `token` the
//! step's loss is a weighted mean.

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
    /// From advantage to weight.
    pub by: By,
    /// Divides advantages, with `exp`.
    pub beta: f64,
    /// The largest weight, and with `signed` the largest below 0.
    pub clip: f64,
}

impl Default for StepWeights {
    fn default() -> Self {
        let (step_split, estimator) = ("\n".to_owned(), Estimator::default());
        StepWeights { step_split, k: 5, estimator, by: By::Exp, beta: 0.1, clip: 20.0 }
    }
}

/// From advantage to weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Above 0, and larger for better steps.
    #[default]
    Exp,
    /// The advantage itself.
    Signed,
}

impl StepWeights {
    /// The weight of every step, from the values of all prefixes.
    pub fn weights(&self, values: &[f64]) -> Vec<f64> {
        let weight = |advantage: f64| match self.by {
            By::Exp => (advantage / self.beta).exp().min(self.clip),
            By::Signed => advantage.clamp(-self.clip, self.clip),
        };
        advantages(values).into_iter().map(weight).collect()
    }
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
            let weights = self.weights(&rollout.values);
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
        let weights = |beta| StepWeights { beta, ..StepWeights::default() }.weights(&values);
        assert!(weights(1e9).iter().all(|w| (w - 1.0).abs() < 1e-8));
        let sharp = weights(0.01);
        assert!(sharp[0] == 20.0 && sharp[2] < 1e-20, "{sharp:?}");
        let some = weights(0.5);
        assert!((some[2] - (-1.2f64).exp()).abs() < 1e-12);
        let signed =
            |clip| StepWeights { by: By::Signed, clip, ..StepWeights::default() }.weights(&values);
        let close = |got: Vec<f64>, want: [f64; 4]| {
            got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-12)
        };
        assert!(close(signed(20.0), [0.05, -0.1, -0.6, -0.1]));
        assert!(close(signed(0.08), [0.05, -0.08, -0.08, -0.08]));
    }
}
