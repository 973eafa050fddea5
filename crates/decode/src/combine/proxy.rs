//! Proxy tuning (Liu et al. 2024, arXiv 2401.08565), DExperts (Liu et al. 2021, arXiv 2105.03023):
//! `out = base + alpha · (expert − anti)` in logits. **Departures**: none.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Combine, expect_sources};

/// `[decode.combine.proxy]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Proxy {
    /// What is steered.
    pub base: String,
    /// Steered towards.
    pub expert: String,
    /// Steered away from: the expert before tuning, or one tuned to what is not wanted.
    pub anti: String,
    /// How far.
    pub alpha: f32,
}

impl Default for Proxy {
    fn default() -> Self {
        let (expert, anti) = ("expert".into(), "anti".into());
        Proxy { base: "policy".into(), expert, anti, alpha: 1.0 }
    }
}

impl Combine for Proxy {
    fn check(&self, n_sources: usize) -> Result<()> {
        if !self.alpha.is_finite() {
            let what = format!("expected a finite number, got {}", self.alpha);
            return Err(Error::input("decode.combine.proxy.alpha", what));
        }
        expect_sources("proxy", 3, n_sources)
    }

    fn combine(&self, logits_sv: &[&[f32]], out_v: &mut [f32]) {
        let [base_v, expert_v, anti_v] = logits_sv else { unreachable!("three were checked for") };
        for (v, out) in out_v.iter_mut().enumerate() {
            let difference = expert_v[v] - anti_v[v];
            // −∞ of the base stays, and a difference to −∞ says nothing.
            let steered = base_v[v] > f32::NEG_INFINITY && difference < f32::INFINITY;
            let steered = steered && self.alpha != 0.0;
            *out = base_v[v] + if steered { self.alpha * difference } else { 0.0 };
        }
    }
}
