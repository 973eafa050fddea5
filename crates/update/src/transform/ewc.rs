//! Elastic weight consolidation (Kirkpatrick et al. 2017): a spring to where a parameter began, as
//! stiff as the parameter mattered there.
//!
//! `g ← g + lambda · F ∘ (θ − θ0)`, the gradient of `lambda / 2 · Σ F (θ − θ0)²`, with `F` the
//! diagonal of the Fisher information on the old task. **Departures**: none.

use std::path::PathBuf;

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Need, Place, Transform, Turn, pieces};
use crate::optimizer::check_rate;

/// `[train.update.ewc]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ewc {
    /// Strength.
    pub lambda: f64,
    /// A safetensors file with the Fisher values of every learned variable, under its name and in
    /// its shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fisher: Option<PathBuf>,
}

impl Default for Ewc {
    fn default() -> Self {
        Ewc { lambda: 1.0, fisher: None }
    }
}

impl Transform for Ewc {
    fn check(&self, at: &str) -> Result<Need> {
        check_rate(at, "lambda", self.lambda)?;
        if self.fisher.is_none() {
            return Err(Error::input(format!("{at}.fisher"), "is missing")
                .hint("name the safetensors file that a Fisher probe wrote"));
        }
        Ok(Need { origin: true, fisher: true, ..Need::default() })
    }

    fn apply(&self, _now: &Turn, place: &Place, grad: &mut [f32]) -> Result<()> {
        let lambda = self.lambda as f32;
        let (values, origin) = (place.learned(place.values), place.origin);
        let fisher = place.learned(place.fisher);
        pieces(grad, |range, grad| {
            let pairs = values[range.clone()].iter().zip(&origin[range.clone()]);
            for ((g, (x, x0)), f) in grad.iter_mut().zip(pairs).zip(&fisher[range]) {
                *g += lambda * f * (x - x0);
            }
        });
        Ok(())
    }
}
