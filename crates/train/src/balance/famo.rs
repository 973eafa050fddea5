//! FAMO on evaluation losses, as MFTCoder's paper has it (Liu et al. 2023 and 2024, paper 30): every task's loss shall
//! fall at the same rate.
//!
//! `w = softmax(ξ)`; a step minimises `Σ c_k L_k` with `c_k = (w_k / (L_k + ε)) / Σ (w / (L + ε))`. Then, with
//! `δ_k = log L_k − log L_k'` of the evaluation losses before and after it, `ξ ← ξ − β (Jᵀ δ + γ ξ)`, where
//! `J` is the Jacobian of the softmax.
//!
//! **Departures**: (1) `L_k` in `c_k` is the evaluation loss before the step: the training loss of a whole step is known
//! only once all its passes are done; (2) both losses of `δ` are those of the same rows; (3) losses are not
//! shifted, since a negative log-likelihood is never negative; ε stands for it in the logarithm, too.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{positive, softmax};

/// FAMO's own.
const EPSILON: f64 = 1e-8;

/// `[train.balance.famo]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Famo {
    /// How fast weights follow.
    pub beta: f64,
    /// How much they are pulled back to equal ones.
    pub gamma: f64,
    /// Rows of each task that are measured before and after a step.
    pub valid_rows: usize,
}

impl Default for Famo {
    fn default() -> Self {
        Famo { beta: 0.025, gamma: 1e-3, valid_rows: 8 }
    }
}

impl Famo {
    pub(super) fn check(&self) -> Result<()> {
        positive("famo.beta", self.beta.is_finite() && self.beta > 0.0, self.beta)?;
        positive("famo.gamma", self.gamma.is_finite() && self.gamma >= 0.0, self.gamma)?;
        positive("famo.valid_rows", self.valid_rows > 0, self.valid_rows)
    }

    /// What the losses of a step are multiplied by.
    pub(super) fn weights(&self, logits: &[f64], losses: &[f64]) -> Vec<f64> {
        let shares = softmax(logits).into_iter().zip(losses);
        let shares: Vec<f64> = shares.map(|(w, loss)| w / (loss + EPSILON)).collect();
        let sum: f64 = shares.iter().sum();
        shares.into_iter().map(|share| share / sum).collect()
    }

    /// Lets the weights follow what a step did.
    pub(super) fn update(&self, logits: &mut [f64], before: &[f64], after: &[f64]) {
        let log = |loss: &f64| (loss + EPSILON).ln();
        let deltas: Vec<f64> = before.iter().zip(after).map(|(b, a)| log(b) - log(a)).collect();
        let weights = softmax(logits);
        let mean: f64 = weights.iter().zip(&deltas).map(|(w, delta)| w * delta).sum();
        for ((logit, weight), delta) in logits.iter_mut().zip(&weights).zip(&deltas) {
            // The Jacobian diag(w) − w wᵀ, applied.
            *logit -= self.beta * (weight * (delta - mean) + self.gamma * *logit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_task_that_falls_behind_gets_more() {
        let famo = Famo { beta: 0.5, gamma: 0.0, ..Famo::default() };
        let mut logits = vec![0.0, 0.0];
        famo.update(&mut logits, &[2.0, 2.0], &[1.0, 2.0]);
        // δ = (ln 2, 0), w = ½: Jᵀδ = ½ (δ − ½ ln 2) = ± ¼ ln 2.
        let want = 0.125 * 2f64.ln();
        assert!((logits[0] + want).abs() < 1e-7 && (logits[1] - want).abs() < 1e-7, "{logits:?}");
        assert!((logits[0] + logits[1]).abs() < 1e-12);
        famo.update(&mut logits, &[3.0, 1.0], &[3.0, 1.0]);
        assert!((logits[1] - want).abs() < 1e-7, "nothing moved, nothing follows");
    }

    #[test]
    fn weights_even_out_the_sizes_of_losses_and_sum_to_one() {
        let famo = Famo::default();
        let weights = famo.weights(&[0.0, 0.0], &[3.0, 1.0]);
        assert!((weights[0] - 0.25).abs() < 1e-7 && (weights[1] - 0.75).abs() < 1e-7);
        let weights = famo.weights(&[1.0, -1.0, 0.5], &[0.2, 4.0, 1.0]);
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        // A pull back to equal weights.
        let mut logits = vec![2.0, -2.0];
        Famo { beta: 1.0, gamma: 0.25, ..famo }.update(&mut logits, &[1.0, 1.0], &[1.0, 1.0]);
        assert_eq!(logits, [1.5, -1.5]);
    }
}
