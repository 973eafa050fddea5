//! Emulated fine-tuning (Mitchell et al. 2024, arXiv 2310.12962): what tuning did to small models, on
//! top of a large one.
//!
//! `out = base + Σ_i beta_i · (tuned_i − untuned_i)` in log-probabilities, whose constants the softmax
//! takes away, so that logits do. `top_p` keeps the deltas to the nucleus of `base` (the fewest tokens
//! that hold so much probability): outside of it a small model's ratio is noise. `outside = "mask"`
//! forbids the others, `"keep"` leaves them as `base` has them. A negative `beta` reverses a
//! behaviour, one above 1 amplifies it.
//! **Departures**: (1) the paper does not say which set its filter keeps; this is the nucleus of the
//! large base; (2) with `keep`, the deltas inside are taken of log-probabilities, not of logits: an
//! arbitrary constant of one model must not move the nucleus as a whole.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Combine, expect_sources, log_z};
use crate::choose::{Candidate, TopP, Warp};

/// `[decode.combine.emulate]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Emulate {
    /// The large model, untuned.
    pub base: String,
    /// What tuning did, each time to a pair of small models.
    pub deltas: Vec<Delta>,
    /// Probability that the nucleus of `base` holds, to which deltas are kept; 1 is off.
    pub top_p: f32,
    /// What becomes of the tokens outside of the nucleus.
    pub outside: Outside,
}

/// A behaviour: a tuned model and the very model it was tuned from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// The tuned model.
    pub tuned: String,
    /// The same before.
    pub untuned: String,
    /// On the difference.
    #[serde(default = "one")]
    pub beta: f32,
}

fn one() -> f32 {
    1.0
}

/// What becomes of tokens outside of the nucleus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outside {
    /// They are never chosen.
    #[default]
    Mask,
    /// They stay as likely, next to each other, as the large model has them.
    Keep,
}

impl Default for Emulate {
    fn default() -> Self {
        let delta = Delta { tuned: "tuned".into(), untuned: "untuned".into(), beta: 1.0 };
        Emulate { base: "policy".into(), deltas: vec![delta], top_p: 1.0, outside: Outside::Mask }
    }
}

impl Emulate {
    /// The names in the order in which logits are given: the base, then each delta's two.
    pub fn names(&self) -> Vec<&str> {
        let pairs = self.deltas.iter().flat_map(|d| [d.tuned.as_str(), d.untuned.as_str()]);
        std::iter::once(self.base.as_str()).chain(pairs).collect()
    }

    /// Whether each token is in the nucleus of `base_v`.
    fn nucleus(&self, base_v: &[f32]) -> Vec<bool> {
        let all = (0u32..).zip(base_v).map(|(id, logit)| Candidate { id, logit: *logit });
        let mut kept: Vec<Candidate> = all.filter(|c| c.logit > f32::NEG_INFINITY).collect();
        TopP { p: self.top_p }.warp(&mut kept);
        let mut inside = vec![false; base_v.len()];
        kept.iter().for_each(|c| inside[c.id as usize] = true);
        inside
    }
}

impl Combine for Emulate {
    fn check(&self, n_sources: usize) -> Result<()> {
        let at = "decode.combine.emulate";
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            let what = format!("expected a number above 0 and at most 1, got {}", self.top_p);
            return Err(Error::input(format!("{at}.top_p"), what));
        }
        if let Some(delta) = self.deltas.iter().find(|d| !d.beta.is_finite()) {
            let what = format!("expected a finite number, got {}", delta.beta);
            return Err(Error::input(format!("{at}.deltas.beta"), what));
        }
        expect_sources("emulate", 1 + 2 * self.deltas.len(), n_sources)
    }

    fn combine(&self, logits_sv: &[&[f32]], out_v: &mut [f32]) {
        let base_v = logits_sv[0];
        out_v.copy_from_slice(base_v);
        let inside = (self.top_p < 1.0).then(|| self.nucleus(base_v));
        for (delta, pair) in self.deltas.iter().zip(logits_sv[1..].chunks(2)) {
            let (tuned_v, untuned_v) = (pair[0], pair[1]);
            if delta.beta == 0.0 {
                continue;
            }
            let constant = match (&inside, self.outside) {
                (Some(_), Outside::Keep) => (log_z(tuned_v) - log_z(untuned_v)) as f32,
                _ => 0.0,
            };
            for (v, out) in out_v.iter_mut().enumerate() {
                let adds = inside.as_ref().is_none_or(|inside| inside[v]);
                let ratio = tuned_v[v] - untuned_v[v] - constant;
                // What the base never says, no delta makes it say: −∞ stays. A ratio to nothing is none.
                if adds && *out > f32::NEG_INFINITY && ratio < f32::INFINITY {
                    *out += delta.beta * ratio;
                }
            }
        }
        if let (Some(inside), Outside::Mask) = (inside, self.outside) {
            let outside = out_v.iter_mut().zip(inside).filter(|(_, inside)| !inside);
            outside.for_each(|(out, _)| *out = f32::NEG_INFINITY);
        }
    }
}
