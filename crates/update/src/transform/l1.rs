//! A pull of constant strength to where a parameter began (Ansell et al. 2022, LT-SFT).
//!
//! `g ← g + lambda / N · sign(θ − θ0)`, the gradient of `lambda · Σ|θ − θ0| / N` with `N` all
//! parameters of the model, learned or not; nothing at `θ = θ0`. **Departures**: none.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{Need, Place, Transform, Turn, pieces};
use crate::optimizer::check_rate;

/// `[train.update.l1]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct L1 {
    /// Strength.
    pub lambda: f64,
}

impl Default for L1 {
    fn default() -> Self {
        // What the paper uses for its language pieces.
        L1 { lambda: 0.1 }
    }
}

impl Transform for L1 {
    fn check(&self, at: &str) -> Result<Need> {
        check_rate(at, "lambda", self.lambda)?;
        Ok(Need { origin: true, size: true, ..Need::default() })
    }

    fn apply(&self, now: &Turn, place: &Place, grad: &mut [f32]) -> Result<()> {
        let pull = (self.lambda / now.model_params as f64) as f32;
        let (values, origin) = (place.learned(place.values), place.origin);
        pieces(grad, |range, grad| {
            let apart = values[range.clone()].iter().zip(&origin[range]).map(|(x, x0)| x - x0);
            for (g, apart) in grad.iter_mut().zip(apart) {
                // `signum` of 0 is 1; at the origin there is no pull.
                *g += if apart == 0.0 { 0.0 } else { pull * apart.signum() };
            }
        });
        Ok(())
    }
}
