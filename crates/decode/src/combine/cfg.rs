//! Classifier-free guidance for language models (Sanchez et al. 2023, arXiv 2306.17806), with the
//! meaning of transformers' `guidance_scale`.
//!
//! `out = unconditional + guidance_scale · (conditional − unconditional)` in log-probabilities; both are
//! mostly one model with two prompts. 1 is the conditional alone, above 1 heeds the prompt more.
//! **Departures**: none.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Combine, expect_sources, log_z};

/// `[decode.combine.cfg]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cfg {
    /// With the prompt.
    pub conditional: String,
    /// Without it, or with a negative one.
    pub unconditional: String,
    /// How much of the difference.
    pub guidance_scale: f32,
}

impl Default for Cfg {
    fn default() -> Self {
        let unconditional = "unconditional".into();
        Cfg { conditional: "policy".into(), unconditional, guidance_scale: 1.5 }
    }
}

impl Combine for Cfg {
    fn check(&self, n_sources: usize) -> Result<()> {
        if !self.guidance_scale.is_finite() {
            let what = format!("expected a finite number, got {}", self.guidance_scale);
            return Err(Error::input("decode.combine.cfg.guidance_scale", what));
        }
        expect_sources("cfg", 2, n_sources)
    }

    fn combine(&self, logits_sv: &[&[f32]], out_v: &mut [f32]) {
        let [with_v, without_v] = logits_sv else { unreachable!("two were checked for") };
        // Log-probabilities on both sides, so that penalties that look at a sign act as they do there.
        let (with, without) = (log_z(with_v) as f32, log_z(without_v) as f32);
        let scale = self.guidance_scale;
        for (v, out) in out_v.iter_mut().enumerate() {
            let conditional = with_v[v] - with;
            *out = match scale == 1.0 || conditional == f32::NEG_INFINITY {
                true => conditional,
                false => {
                    let unconditional = without_v[v] - without;
                    scale * (conditional - unconditional) + unconditional
                }
            };
        }
    }
}
