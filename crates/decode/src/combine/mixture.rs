//! A mixture of probabilities: `out = log Σ_s w_s · p_s`, `w_s = weights[s] / Σ weights`.
//!
//! A token is likely where any source with a say finds it likely; [`super::Linear`] with weights that
//! sum to 1 is the product, where all have to. **Departures**: none, it is the formula.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Combine, expect_sources, log_z};

/// `[decode.combine.mixture]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mixture {
    /// The sources, by name.
    pub sources: Vec<String>,
    /// One weight per source, in any unit.
    pub weights: Vec<f32>,
}

impl Combine for Mixture {
    fn check(&self, n_sources: usize) -> Result<()> {
        let at = "decode.combine.mixture.weights";
        if let Some(bad) = self.weights.iter().find(|w| !w.is_finite() || **w < 0.0) {
            return Err(Error::input(at, format!("expected numbers of at least 0, got {bad}")));
        }
        if self.weights.iter().all(|w| *w == 0.0) && !self.weights.is_empty() {
            return Err(Error::input(at, "all weights are 0"));
        }
        expect_sources("mixture", self.weights.len(), n_sources)
    }

    fn combine(&self, logits_sv: &[&[f32]], out_v: &mut [f32]) {
        let total: f64 = self.weights.iter().map(|w| f64::from(*w)).sum();
        let parts: Vec<(f64, &[f32])> = (self.weights.iter().zip(logits_sv))
            .filter(|(w, _)| **w > 0.0)
            .map(|(w, logits_v)| ((f64::from(*w) / total).ln() - log_z(logits_v), *logits_v))
            .collect();
        if let [(constant, only_v)] = parts.as_slice() {
            let constant = *constant as f32;
            return out_v.iter_mut().zip(*only_v).for_each(|(out, l)| *out = l + constant);
        }
        for (v, out) in out_v.iter_mut().enumerate() {
            let log = |(constant, logits_v): &(f64, &[f32])| constant + f64::from(logits_v[v]);
            let best = parts.iter().map(log).fold(f64::NEG_INFINITY, f64::max);
            *out = match best > f64::NEG_INFINITY {
                true => {
                    (best + parts.iter().map(|p| (log(p) - best).exp()).sum::<f64>().ln()) as f32
                }
                false => f32::NEG_INFINITY,
            };
        }
    }
}
