//! Contrastive decoding (Li et al. 2023, arXiv 2210.15097): what an expert finds likelier than an
//! amateur does, among what the expert finds plausible.
//!
//! `out = log p_expert − beta · log p_amateur` where `p_expert ≥ alpha · max p_expert`, −∞ elsewhere;
//! the amateur's logits are divided by `amateur_temperature` before its softmax.
//! **Departures**: (1) the paper searches with beams over this score; here it is the next token's
//! logit, for any choice; (2) `beta` is 1 in the paper.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Combine, expect_sources, log_z};

/// `[decode.combine.contrastive]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Contrastive {
    /// The better model.
    pub expert: String,
    /// The worse one: smaller, less trained, or the same with less of a prompt.
    pub amateur: String,
    /// Least probability of a token, relative to the expert's best; 0 is off.
    pub alpha: f32,
    /// On the amateur's log-probabilities.
    pub beta: f32,
    /// Below 1 the amateur says louder what it prefers.
    pub amateur_temperature: f32,
}

impl Default for Contrastive {
    fn default() -> Self {
        Contrastive {
            expert: "policy".into(),
            amateur: "amateur".into(),
            // The paper's own values; its temperature is 0.5 for GPT-2 and 1 for OPT.
            alpha: 0.1,
            beta: 1.0,
            amateur_temperature: 1.0,
        }
    }
}

impl Combine for Contrastive {
    fn check(&self, n_sources: usize) -> Result<()> {
        let rules = [
            ("alpha", self.alpha, (0.0..=1.0).contains(&self.alpha), "between 0 and 1"),
            ("beta", self.beta, self.beta.is_finite(), "that is finite"),
            (
                "amateur_temperature",
                self.amateur_temperature,
                self.amateur_temperature > 0.0 && self.amateur_temperature.is_finite(),
                "above 0",
            ),
        ];
        if let Some((name, value, _, range)) = rules.into_iter().find(|rule| !rule.2) {
            let what = format!("expected a number {range}, got {value}");
            return Err(Error::input(format!("decode.combine.contrastive.{name}"), what));
        }
        expect_sources("contrastive", 2, n_sources)
    }

    fn combine(&self, logits_sv: &[&[f32]], out_v: &mut [f32]) {
        let [expert_v, amateur_v] = logits_sv else { unreachable!("two were checked for") };
        let best = expert_v.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // The constants of both softmaxes are dropped: they change no probability.
        let least = best + self.alpha.ln();
        for (v, out) in out_v.iter_mut().enumerate() {
            let plausible = expert_v[v] >= least && expert_v[v] > f32::NEG_INFINITY;
            let against = if self.beta == 0.0 { 0.0 } else { self.beta * amateur_v[v] };
            *out = match plausible {
                true => expert_v[v] - against / self.amateur_temperature,
                false => f32::NEG_INFINITY,
            };
        }
        // A token that the amateur forbids would be infinitely good; the expert alone judges it.
        if out_v.contains(&f32::INFINITY) {
            let z = (log_z(expert_v) - f64::from(best)) as f32;
            for (v, out) in out_v.iter_mut().enumerate().filter(|(_, out)| **out == f32::INFINITY) {
                *out = expert_v[v] - z;
            }
        }
    }
}
