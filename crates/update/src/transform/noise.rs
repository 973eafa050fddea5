//! Annealed gradient noise (Neelakantan et al. 2015).
//!
//! `g ← g + N(0, σ²)`, `σ² = eta / t^gamma` with `t = 1` for the first step.
//! **Departures**: none (the paper writes `(1 + t)` and counts from 0).

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{Need, Place, Transform, Turn, pieces};
use crate::optimizer::check_rate;

/// `[train.update.noise]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Noise {
    /// Variance of the first step's noise.
    pub eta: f64,
    /// How fast the variance falls.
    pub gamma: f64,
}

impl Default for Noise {
    fn default() -> Self {
        // The smallest of the paper's three values of eta, and its gamma.
        Noise { eta: 0.01, gamma: 0.55 }
    }
}

impl Transform for Noise {
    fn check(&self, at: &str) -> Result<Need> {
        check_rate(at, "eta", self.eta)?;
        check_rate(at, "gamma", self.gamma)?;
        Ok(Need::default())
    }

    fn apply(&self, now: &Turn, place: &Place, grad: &mut [f32]) -> Result<()> {
        let sigma = (self.eta / (now.step as f64).powf(self.gamma)).sqrt();
        let seed = now.seed.split(place.name).at(now.step);
        pieces(grad, |range, grad| {
            let mut rng = seed.at(range.start as u64).rng();
            grad.iter_mut().for_each(|g| *g += (sigma * rng.normal()) as f32);
        });
        Ok(())
    }
}
