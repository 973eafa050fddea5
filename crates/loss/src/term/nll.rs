//! Negative log-likelihood of the trained tokens.
//!
//! `sum = −Σ_n coefficient_n · logp(target_n)`, coefficients from the [`Normaliser`]. **Departures**:
//! none; this is weighted cross-entropy without label smoothing.

use candle_core::{DType, Device, Tensor};
use luthier_core::{Batch, Logits, Result};
use serde::{Deserialize, Serialize};

use crate::{Log, Normaliser, Objective, Terms};

/// `[train.loss.nll]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nll {
    /// What counts the same: every token, or every row.
    pub normaliser: Normaliser,
}

impl Objective for Nll {
    fn normaliser(&self, step: &[&Batch]) -> f64 {
        self.normaliser.total(step)
    }

    fn terms(&self, out: &mut dyn Logits, batch: &Batch) -> Result<Terms> {
        let index_m = batch.trained_m();
        if index_m.is_empty() {
            let sum = Tensor::zeros((), DType::F32, &Device::Cpu)?;
            return Ok(Terms { sum, logs: vec![Log { name: "nll", sum: 0.0, weight: 0.0 }] });
        }
        let pick = |i: &u32| *i as usize;
        let targets_m: Vec<u32> = index_m.iter().map(|i| batch.targets_n[pick(i)]).collect();
        let coefficients_n = self.normaliser.coefficients_n(batch)?;
        let minus_m: Vec<f32> = index_m.iter().map(|i| -coefficients_n[pick(i)]).collect();

        let logp_m = out.logp(&index_m, &targets_m)?.to_dtype(DType::F32)?;
        let minus_m = Tensor::from_vec(minus_m, index_m.len(), logp_m.device())?;
        let sum = (&logp_m * minus_m)?.sum_all()?;

        // The log always tells the token-weighted mean, whatever is minimised.
        let weighted =
            |(i, logp): (&u32, f32)| f64::from(batch.weights_n[pick(i)]) * f64::from(-logp);
        let total = index_m.iter().zip(logp_m.to_vec1::<f32>()?).map(weighted).sum();
        Ok(Terms { sum, logs: vec![Log { name: "nll", sum: total, weight: batch.weight() }] })
    }
}
