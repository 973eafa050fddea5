//! A weighted sum of logits: `out = Σ_s coefficients[s] · logits[s]`.
//!
//! The result is the distribution proportional to `Π_s p_s ^ coefficients[s]`; a negative
//! coefficient steers away from a source. **Departures**: none, it is the formula.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Combine, expect_sources};

/// Weighted sum of the sources' logits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Linear {
    /// The sources, by name.
    pub sources: Vec<String>,
    /// One coefficient per source.
    pub coefficients: Vec<f32>,
}

impl Combine for Linear {
    fn check(&self, n_sources: usize) -> Result<()> {
        if let Some(bad) = self.coefficients.iter().find(|c| !c.is_finite()) {
            let what = format!("expected finite numbers, got {bad}");
            return Err(Error::input("decode.combine.linear.coefficients", what));
        }
        expect_sources("linear", self.coefficients.len(), n_sources)
    }

    fn combine(&self, logits_sv: &[&[f32]], out_v: &mut [f32]) {
        let mut parts = self.coefficients.iter().zip(logits_sv).filter(|(c, _)| **c != 0.0);
        // The first part is written, not added to zero, which keeps `1 · x` equal to `x` to the
        // sign of a zero. A coefficient of 0 leaves its source out even where that is −∞.
        match parts.next() {
            None => out_v.fill(0.0),
            Some((c, logits_v)) => out_v.iter_mut().zip(*logits_v).for_each(|(o, l)| *o = c * l),
        }
        for (c, logits_v) in parts {
            out_v.iter_mut().zip(*logits_v).for_each(|(o, l)| *o += c * l);
        }
    }
}
