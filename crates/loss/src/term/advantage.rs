//! Signed advantages of steps (Setlur et al. 2024, paper 55): a step that raises the chance of a right end becomes
//! likelier than the model as it was finds it, one that lowers it unlikelier.
//!
//! A step is a run of tokens of a row with one weight, its advantage `A_i` (`step_weights = { by = "signed" }`
//! writes them); a weight of 0 is no step. With `r_i = Σ_n (logp_n − base_n)` over its tokens,
//!
//! `sum = Σ_i −|A_i|·log σ(sign(A_i)·beta·r_i)`, divided by the rows of the step with a trained token.
//!
//! Signed weights may sum to nothing, so their sum can divide nothing; rows can, however a step is cut. Where
//! policy and model as it was are one, the gradient is `−beta/2·Σ_i A_i·∇logp_i` over rows, that of `nll` with
//! `normaliser = "batch"` times `beta/2`. Unlike that one the loss is bounded below: a step that has become
//! unlikely is let go. **Departures**: (1) the paper proves the equivalence for pairs and gives no loss of this
//! form; (2) neighbouring steps of one advantage are one step; (3) the reference is the model without what is
//! tuned: what is fine-tuned first is folded, or merged, before this begins.

use std::ops::Range;

use candle_core::{DType, Tensor};
use luthier_core::{Batch, Error, Result};
use serde::{Deserialize, Serialize};

use crate::{
    Normaliser, Objective, Seen, Teacher, Terms,
    pair::{
        answers::{nothing, tell, tell_weighted},
        dual::Dual,
    },
};

/// `[train.loss.advantage]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Advantage {
    /// How hard it is to leave the model as it was.
    pub beta: f64,
}

impl Default for Advantage {
    fn default() -> Self {
        Advantage { beta: 0.1 }
    }
}

/// The steps of a batch by their tokens, with their advantages.
fn steps(batch: &Batch) -> Vec<(Range<usize>, f64)> {
    let mut steps = Vec::new();
    for row in 0..batch.rows.b() {
        let range = batch.rows.range(row);
        let mut from = range.start;
        for run in batch.weights_n[range].chunk_by(|a, b| a == b) {
            let step = from..from + run.len();
            from = step.end;
            if run[0] != 0.0 {
                steps.push((step, f64::from(run[0])));
            }
        }
    }
    steps
}

impl Objective for Advantage {
    fn check(&self) -> Result<()> {
        if self.beta.is_finite() && self.beta > 0.0 {
            return Ok(());
        }
        let what = format!("expected a number above 0, got {}", self.beta);
        Err(Error::input("train.loss.advantage.beta", what))
    }

    fn teacher(&self) -> Teacher {
        Teacher::Base
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        Normaliser::Batch.total(step)
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        let Seen { out, teacher, batch, .. } = seen;
        let index_m = batch.trained_m();
        if index_m.is_empty() {
            return nothing();
        }
        let Some(base) = teacher else {
            return Err(Error::failed(
                "train.loss.advantage",
                "the model as it was is not at hand",
            ));
        };
        let targets_m: Vec<u32> = index_m.iter().map(|i| batch.targets_n[*i as usize]).collect();
        let base_m: Vec<f32> = base.logp(&index_m, &targets_m)?.to_dtype(DType::F32)?.to_vec1()?;
        let logp_m = out.logp(&index_m, &targets_m)?.to_dtype(DType::F32)?;
        let said: Vec<f32> = logp_m.to_vec1()?;
        let (mut total, mut slopes, mut logs) = (0.0, Vec::with_capacity(said.len()), Vec::new());
        for (tokens, advantage) in steps(batch) {
            // Trained tokens are those of steps, in the same order.
            let at = slopes.len()..slopes.len() + tokens.len();
            let apart = said[at.clone()].iter().zip(&base_m[at]);
            let apart: f64 = apart.map(|(logp, base)| f64::from(*logp) - f64::from(*base)).sum();
            let reward = Dual::logp(apart, 0) * self.beta;
            let cost = -(reward * advantage.signum()).log_sigmoid() * advantage.abs();
            total += cost.v;
            slopes.extend(std::iter::repeat_n(cost.d[0] as f32, tokens.len()));
            let name = if advantage > 0.0 { "rewards/better" } else { "rewards/worse" };
            tell(&mut logs, name, reward.v);
            let moved = f64::from(u8::from(reward.v * advantage > 0.0));
            tell_weighted(&mut logs, "rewards/accuracies", moved, advantage.abs());
        }
        let slopes_m = Tensor::from_vec(slopes, said.len(), logp_m.device())?;
        let moves = ((&logp_m - logp_m.detach())? * slopes_m)?.sum_all()?;
        Ok(Terms { sum: (moves + total)?, logs })
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Row;

    use super::*;

    #[test]
    fn a_step_is_a_run_of_one_weight_within_a_row() {
        let row = |weights: &[f32]| Row {
            ids: vec![0; weights.len()],
            targets: vec![0; weights.len()],
            weights: weights.to_vec(),
            ..Row::default()
        };
        let rows = [row(&[0.0, 0.5, 0.5, -0.25, 0.0, -0.25, 0.5]), row(&[0.5, 0.5]), row(&[0.0])];
        let found = steps(&Batch::from_rows(&rows));
        let want = [(1..3, 0.5), (3..4, -0.25), (5..6, -0.25), (6..7, 0.5), (7..9, 0.5)];
        assert_eq!(found, want);
    }

    #[test]
    fn beta_is_above_0() {
        Advantage::default().check().unwrap();
        for beta in [0.0, -1.0, f64::NAN] {
            let error = Advantage { beta }.check().unwrap_err().to_string();
            assert!(error.starts_with("train.loss.advantage.beta: "), "{error}");
        }
    }
}
