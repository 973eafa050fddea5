//! Logits to one token: penalties, then the warpers, then greedy choice or a draw.
//!
//! Order and meaning are those of transformers 5: repetition penalty, temperature, top-h, top-k, top-p,
//! min-p. Frequency and presence penalty, which transformers lacks, follow the repetition penalty.
//! Mirostat draws in its own way from what temperature leaves.

mod draw;
mod frequency;
mod min_p;
mod mirostat;
mod repetition;
mod temperature;
mod top_h;
mod top_k;
mod top_p;

use luthier_core::{Error, Result, Rng};
use luthier_kernels::math;
use serde::{Deserialize, Serialize};

use draw::quantile;
pub use draw::{draw, greedy};
pub use frequency::Frequency;
pub use min_p::MinP;
pub use mirostat::Mirostat;
pub use repetition::Repetition;
pub use temperature::Temperature;
pub use top_h::TopH;
pub use top_k::TopK;
pub use top_p::TopP;

use crate::SoFar;

/// A token that may still be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub id: u32,
    /// Its logit, as far as it is processed.
    pub logit: f32,
}

/// Narrows or reshapes the candidates, which stay in the order of their ids.
///
/// At least one candidate comes in and at least one goes out.
pub trait Warp {
    /// Edits `kept` in place.
    fn warp(&self, kept: &mut Vec<Candidate>);
}

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampler {
    /// Divides the logits; 0 chooses the most probable token.
    pub temperature: f32,
    /// Only the best tokens that together hold this share of the entropy; 0 is off.
    pub top_h: f32,
    /// Only this many best tokens; 0 is off.
    pub top_k: usize,
    /// Only the best tokens that together hold this much probability; 1 is off.
    pub top_p: f32,
    /// Only tokens at least this probable relative to the best; 0 is off.
    pub min_p: f32,
    /// Makes tokens of prompt and answer less probable; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted per occurrence of a token in the answer; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once for a token that is in the answer; 0 is off.
    pub presence_penalty: f32,
    /// The surprise, in bits, that Mirostat aims at; 0 is off.
    pub mirostat_tau: f32,
    /// How fast Mirostat follows.
    pub mirostat_eta: f32,
    /// Where the randomness comes from.
    pub seed: u64,
}

impl Default for Sampler {
    fn default() -> Self {
        Sampler {
            temperature: 0.0,
            top_h: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            mirostat_tau: 0.0,
            mirostat_eta: 0.1,
            seed: 0,
        }
    }
}

impl Sampler {
    /// Refuses numbers outside of their range; `key` is the sampler's place in the recipe.
    pub fn check(&self, key: &str) -> Result<()> {
        let rules = [
            ("temperature", self.temperature, self.temperature >= 0.0, "at least 0"),
            ("top_h", self.top_h, (0.0..=1.0).contains(&self.top_h), "between 0 and 1"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0,
                "above 0 (1 is off)",
            ),
            ("frequency_penalty", self.frequency_penalty, true, "a finite number"),
            ("presence_penalty", self.presence_penalty, true, "a finite number"),
            ("mirostat_tau", self.mirostat_tau, self.mirostat_tau >= 0.0, "at least 0"),
            ("mirostat_eta", self.mirostat_eta, self.mirostat_eta > 0.0, "above 0"),
        ];
        for (name, value, fits, range) in rules {
            if !fits || !value.is_finite() {
                let what = format!("expected a number {range}, got {value}");
                return Err(Error::input(format!("{key}.{name}"), what));
            }
        }
        if self.mirostat_tau > 0.0 && self.narrows() {
            let what = "Mirostat chooses by itself how many tokens stay";
            return Err(Error::input(format!("{key}.mirostat_tau"), what)
                .hint("leave out top_h, top_k, top_p and min_p"));
        }
        Ok(())
    }

    /// Whether a warper besides the temperature is on.
    fn narrows(&self) -> bool {
        self.top_h > 0.0 || self.top_k != 0 || self.top_p < 1.0 || self.min_p > 0.0
    }

    /// What [`Sampler::choose_after`] is to be given for the first token.
    pub fn begin(&self) -> f32 {
        2.0 * self.mirostat_tau
    }

    /// Applies the penalties to `logits_v`.
    pub fn penalise(&self, so_far: &SoFar, logits_v: &mut [f32]) {
        if self.repetition_penalty != 1.0 {
            Repetition { penalty: self.repetition_penalty }.penalise(so_far, logits_v);
        }
        if self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 {
            Frequency { per_count: self.frequency_penalty, once: self.presence_penalty }
                .penalise(so_far, logits_v);
        }
    }

    /// The candidates a draw is made from, after all warpers; at temperature 0 the best token.
    pub fn candidates(&self, logits_v: &[f32]) -> Result<Vec<Candidate>> {
        let best = greedy(logits_v)?;
        if self.temperature == 0.0 {
            return Ok(vec![best]);
        }
        let all = (0u32..).zip(logits_v).map(|(id, logit)| Candidate { id, logit: *logit });
        let mut kept: Vec<Candidate> =
            all.filter(|candidate| candidate.logit > f32::NEG_INFINITY).collect();
        Temperature { t: self.temperature }.warp(&mut kept);
        if self.top_h > 0.0 {
            TopH { h: self.top_h }.warp(&mut kept);
        }
        if self.top_k != 0 {
            TopK { k: self.top_k }.warp(&mut kept);
        }
        if self.top_p < 1.0 {
            TopP { p: self.top_p }.warp(&mut kept);
        }
        if self.min_p > 0.0 {
            MinP { p: self.min_p }.warp(&mut kept);
        }
        Ok(kept)
    }

    /// Chooses a token and leaves anything in `logits_v`. Greedy choice takes nothing from `rng`.
    pub fn choose(&self, so_far: &SoFar, logits_v: &mut [f32], rng: &mut Rng) -> Result<u32> {
        self.choose_after(so_far, logits_v, rng, &mut self.begin())
    }

    /// The same with what choosing remembers of a sequence ([`Sampler::begin`]).
    pub fn choose_after(
        &self,
        so_far: &SoFar,
        logits_v: &mut [f32],
        rng: &mut Rng,
        memory: &mut f32,
    ) -> Result<u32> {
        self.penalise(so_far, logits_v);
        if self.temperature == 0.0 {
            return Ok(greedy(logits_v)?.id);
        }
        if self.mirostat_tau > 0.0 {
            let rule = Mirostat { tau: self.mirostat_tau, eta: self.mirostat_eta };
            return Ok(rule.draw(self.candidates(logits_v)?, rng.uniform(), memory));
        }
        if self.narrows() {
            return Ok(draw(&self.candidates(logits_v)?, rng.uniform()));
        }
        // The same without a list of candidates, since that is the whole vocabulary.
        let best = math::max(logits_v);
        if !best.is_finite() || logits_v.iter().fold(false, |found, x| found | x.is_nan()) {
            greedy(logits_v)?;
        }
        logits_v.iter_mut().for_each(|logit| *logit = (*logit - best) / self.temperature);
        Ok(quantile(logits_v, 0.0, rng.uniform()) as u32)
    }
}

/// The largest logit among `kept`.
fn best_logit(kept: &[Candidate]) -> f32 {
    kept.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
pub(crate) mod tests {
    use luthier_core::Seed;

    use super::*;

    /// Random candidates with a few equal logits among them.
    pub(crate) fn some_candidates(n: usize, seed: u64) -> Vec<Candidate> {
        let mut rng = Seed(seed).rng();
        let logit = |rng: &mut Rng| (rng.normal() * 8.0).round() as f32 / 4.0;
        (0..n as u32).map(|id| Candidate { id: id * 2 + 1, logit: logit(&mut rng) }).collect()
    }

    pub(crate) fn ids(kept: &[Candidate]) -> Vec<u32> {
        kept.iter().map(|c| c.id).collect()
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        let cases = [
            (Sampler { temperature: -1.0, ..Sampler::default() }, "s.temperature"),
            (Sampler { top_p: 0.0, ..Sampler::default() }, "s.top_p"),
            (Sampler { min_p: 1.5, ..Sampler::default() }, "s.min_p"),
            (Sampler { repetition_penalty: 0.0, ..Sampler::default() }, "s.repetition_penalty"),
            (Sampler { presence_penalty: f32::NAN, ..Sampler::default() }, "s.presence_penalty"),
        ];
        for (sampler, name) in cases {
            let err = sampler.check("s").unwrap_err();
            assert!(err.to_string().starts_with(name) && err.exit_code() == 2, "{err}");
        }
        assert!(Sampler::default().check("s").is_ok());
    }

    #[test]
    fn a_draw_from_all_tokens_is_that_from_all_candidates() {
        let logits: Vec<f32> = some_candidates(900, 5).iter().map(|c| c.logit).collect();
        let so_far = SoFar { prompt: &[], tokens: &[] };
        for temperature in [0.3, 1.0, 2.5] {
            let all = Sampler { temperature, ..Sampler::default() };
            let listed = Sampler { top_k: 900, ..all };
            for seed in 0..200 {
                let choose = |sampler: Sampler| {
                    let mut rng = Seed(seed).rng();
                    sampler.choose(&so_far, &mut logits.clone(), &mut rng).unwrap()
                };
                assert_eq!(choose(all), choose(listed));
            }
        }
        for bad in [f32::NAN, f32::INFINITY] {
            let sampler = Sampler { temperature: 1.0, ..Sampler::default() };
            assert!(sampler.choose(&so_far, &mut [0.0, bad], &mut Seed(1).rng()).is_err());
        }
    }

    #[test]
    fn a_misspelt_key_is_refused() {
        let err = serde_json::from_str::<Sampler>(r#"{"topk": 3}"#).unwrap_err();
        assert!(err.to_string().contains("topk"), "{err}");
    }
}
