//! Two-pass steps: sharpness-aware minimisation (Foret et al. 2021), and its scale-free form ASAM
//! (Kwon et al. 2021).
//!
//! `θ ← θ + ε` before the second pass, `θ ← θ − ε` after it, and a step with the second pass's
//! gradient. `ε = rho · g / ‖g‖` with the norm over everything that learns; adaptive
//! `ε = rho · T² g / ‖T g‖`, `T = |θ| + eta`. **Departures**: (1) `T` holds for every number alike
//! (ASAM's code leaves biases at 1); (2) the weights are put back by copy, not by subtraction, so
//! that they are the same bits.

use luthier_core::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::optimizer::check_rate;

/// `[train.update.sam]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sam {
    /// Length of the way up.
    pub rho: f64,
    /// Whether it is measured in units of each parameter (ASAM; `rho` is then about ten times
    /// larger).
    pub adaptive: bool,
    /// Added to each parameter's size, when adaptive.
    pub eta: f64,
}

impl Default for Sam {
    fn default() -> Self {
        Sam { rho: 0.05, adaptive: false, eta: 0.01 }
    }
}

/// Numbers per task; the norm's order of summation follows from it.
const CHUNK: usize = 1 << 14;

impl Sam {
    pub(crate) fn check(&self, at: &str) -> Result<()> {
        check_rate(at, "rho", self.rho)?;
        check_rate(at, "eta", self.eta)?;
        if self.rho == 0.0 {
            return Err(Error::input(format!("{at}.rho"), "expected a number above 0, got 0")
                .hint("leave the table out for steps of one pass"));
        }
        Ok(())
    }

    fn unit(&self, weight: f32) -> f32 {
        if self.adaptive { weight.abs() + self.eta as f32 } else { 1.0 }
    }

    /// Σ (T g)² over one variable.
    pub(crate) fn sum_of_squares(&self, weights: &[f32], grad: &[f32]) -> f64 {
        let of = |(weights, grad): (&[f32], &[f32])| -> f64 {
            let scaled = weights.iter().zip(grad).map(|(w, g)| f64::from(self.unit(*w) * g));
            scaled.map(|x| x * x).sum()
        };
        let parts: Vec<f64> =
            weights.par_chunks(CHUNK).zip(grad.par_chunks(CHUNK)).map(of).collect();
        parts.iter().sum()
    }

    /// Goes up by `T² g · scale`.
    pub(crate) fn lift(&self, weights: &mut [f32], grad: &[f32], scale: f32) {
        let lift = |(weights, grad): (&mut [f32], &[f32])| {
            for (w, g) in weights.iter_mut().zip(grad) {
                let unit = self.unit(*w);
                *w += unit * unit * g * scale;
            }
        };
        weights.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).for_each(lift);
    }
}
