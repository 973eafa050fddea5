//! Beam sampling of a contrast: what a tuned model says that its base would not (CGE, contrastive
//! generative exploration; Isonuma and Titov 2025, paper 17).
//!
//! A token `w` of a beam is worth `s(w) = log p_tuned(w) − gamma · log p_base(w)` if
//! `p_tuned(w) ≥ alpha · max p_tuned`, else it is left out. `total ← total + s(w)`, never normalised: at
//! `gamma = 1` a beam's total is the log-likelihood ratio of its text. Of all tokens of all beams,
//! `2 · num_beams` are drawn in proportion to `exp(total)`, without replacement; the best `num_beams` of
//! them go on. All beams begin alike, with 0. A text has exactly `length` tokens; the best is kept.
//!
//! **Departures**: (1) banned tokens (ends of text, padding) are left out before the largest
//! probability is looked for, and the probabilities of the others are those of the whole vocabulary.

use std::sync::Arc;

use luthier_core::{Error, Policy, Result, Rng, Rows, Seed};
use luthier_kernels::threads;
use serde::{Deserialize, Serialize};

use crate::{
    Source,
    combine::log_z,
    sources::{PolicySource, Step},
};

/// What a beam is worth that only fills a place.
const FILL: f64 = -1e9;

/// How the contrast of two models is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BeamSampling {
    /// Beams that go on after each token.
    pub num_beams: usize,
    /// Tokens of a text.
    pub length: usize,
    /// Tokens less probable than this share of the likeliest, for the tuned model, are left out.
    pub alpha: f64,
    /// Weight of the base; 0 samples the tuned model alone.
    pub gamma: f64,
}

/// A text and what it is worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contrasted {
    /// Its tokens behind the prompt.
    pub tokens: Vec<u32>,
    /// `Σ s`.
    pub total: f64,
}

impl Default for BeamSampling {
    fn default() -> Self {
        BeamSampling { num_beams: 4, length: 256, alpha: 0.1, gamma: 1.0 }
    }
}

/// A text while it grows.
#[derive(Clone, Debug)]
struct Beam {
    /// Where the models are to keep what they know of it.
    slot: usize,
    /// Where they have what came before its last token.
    past: usize,
    tokens: Vec<u32>,
    total: f64,
}

/// A token that may follow a beam.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Next {
    beam: usize,
    id: u32,
    total: f64,
}

impl BeamSampling {
    /// Refuses settings without a meaning; `at` is where they were given.
    pub fn check(&self, at: &str) -> Result<()> {
        for (key, n) in [("num_beams", self.num_beams), ("length", self.length)] {
            if n == 0 {
                return Err(Error::input(format!("{at}.{key}"), "expected at least 1, got 0"));
            }
        }
        if !(0.0..=1.0).contains(&self.alpha) {
            let what = format!("expected a number between 0 and 1, got {}", self.alpha);
            return Err(Error::input(format!("{at}.alpha"), what));
        }
        if !self.gamma.is_finite() || self.gamma < 0.0 {
            let what = format!("expected a number of at least 0, got {}", self.gamma);
            return Err(Error::input(format!("{at}.gamma"), what));
        }
        Ok(())
    }

    /// The tokens that may come next, in the order of their ids, and what each is worth.
    pub fn scores(&self, tuned_v: &[f32], base_v: &[f32], banned: &[u32]) -> Vec<(u32, f64)> {
        let allowed = |id: u32| !banned.contains(&id);
        let each = || (0u32..).zip(tuned_v).filter(|(id, _)| allowed(*id));
        let best = each().map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max);
        let floor = f64::from(best) + self.alpha.ln();
        let tuned_z = log_z(tuned_v);
        let base_z = if self.gamma == 0.0 { 0.0 } else { log_z(base_v) };
        let worth = |(id, logit): (u32, &f32)| {
            let tuned = f64::from(*logit);
            if *logit == f32::NEG_INFINITY || tuned < floor {
                return None;
            }
            let base = match self.gamma {
                0.0 => 0.0,
                gamma => gamma * (f64::from(base_v[id as usize]) - base_z),
            };
            Some((id, tuned - tuned_z - base))
        };
        each().filter_map(worth).collect()
    }

    /// One text behind `prompt`, which both models read with a beginning-of-sequence token of their
    /// own or none; `banned` tokens are never said.
    pub fn sample(
        &self,
        tuned: &Policy,
        base: &Policy,
        prompt: &[u32],
        banned: &[u32],
        seed: Seed,
    ) -> Result<Contrasted> {
        self.check("decode.beam_sampling")?;
        let vocab = tuned.model.vocab();
        if vocab != base.model.vocab() {
            let what = format!("has {} tokens, the tuned model {vocab}", base.model.vocab());
            return Err(Error::input("the base", what).hint("both must have the same tokenizer"));
        }
        if prompt.is_empty() {
            return Err(Error::input("prompt", "has no token")
                .hint("begin with the model's beginning-of-sequence token"));
        }
        // A token is hundreds of small operations: the threads stay awake for all of them.
        threads::together(|| self.run([tuned, base], prompt, banned, seed, vocab))
    }

    fn run(
        &self,
        [tuned, base]: [&Policy; 2],
        prompt: &[u32],
        banned: &[u32],
        seed: Seed,
        vocab: usize,
    ) -> Result<Contrasted> {
        let mut readers = vec![Reader::new(tuned, self.num_beams)];
        if self.gamma != 0.0 {
            readers.push(Reader::new(base, self.num_beams));
        }
        // The prompt is read once: all beams have their past in the first slot.
        let first = Beam { slot: 0, past: 0, tokens: Vec::new(), total: 0.0 };
        for reader in &mut readers {
            reader.read(prompt, std::slice::from_ref(&first), 0)?;
        }
        let beam = |slot| Beam { slot, ..first.clone() };
        let mut beams: Vec<Beam> = (0..self.num_beams).map(beam).collect();
        for step in 0..self.length {
            let mut all: Vec<Next> = Vec::new();
            for (beam, so_far) in beams.iter().enumerate() {
                let row = |reader: &Reader| beam.min(reader.rows(vocab) - 1) * vocab;
                let logits = |reader: &'_ Reader| row(reader)..row(reader) + vocab;
                let tuned_v = &readers[0].logits_bv[logits(&readers[0])];
                let base_v = match readers.get(1) {
                    Some(reader) => &reader.logits_bv[logits(reader)],
                    None => &[],
                };
                finite(tuned_v)
                    .and_then(|()| finite(base_v))
                    .map_err(|e| Error::within(format!("token {}", step + 1), e))?;
                let worth = self.scores(tuned_v, base_v, banned);
                let next = |(id, s)| Next { beam, id, total: so_far.total + s };
                all.extend(worth.into_iter().map(next));
            }
            if all.is_empty() {
                return Err(Error::input("decode.ban", "leaves no token to say"));
            }
            let mut chosen = draw(&all, 2 * self.num_beams, &mut seed.at(step as u64).rng());
            chosen.sort_by(|a, b| b.total.total_cmp(&a.total));
            chosen.truncate(self.num_beams);
            while chosen.len() < self.num_beams {
                chosen.push(Next { total: FILL, ..chosen[0] });
            }
            beams = grow(&beams, &chosen);
            if step + 1 < self.length {
                let ids: Vec<u32> = chosen.iter().map(|next| next.id).collect();
                for reader in &mut readers {
                    reader.read(&ids, &beams, prompt.len() + step)?;
                }
                beams.iter_mut().for_each(|beam| beam.past = beam.slot);
            }
        }
        let Beam { tokens, total, .. } = beams.swap_remove(0);
        Ok(Contrasted { tokens, total })
    }
}

fn finite(logits_v: &[f32]) -> Result<()> {
    match logits_v.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
        None => Ok(()),
        Some(id) => {
            let what = format!("token {id} has the logit {}", logits_v[id]);
            Err(Error::failed("logits", what)
                .hint("the weights or a hook produced a number that is not finite"))
        }
    }
}

/// Up to `n` of `all` in proportion to `exp(total)`, without replacement: those with the largest sums
/// of total and Gumbel noise, which are distributed just so.
fn draw(all: &[Next], n: usize, rng: &mut Rng) -> Vec<Next> {
    let noisy = |next: &Next| (next.total - (-rng.uniform().ln()).ln(), *next);
    let mut noisy: Vec<(f64, Next)> = all.iter().map(noisy).collect();
    noisy.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    noisy.into_iter().take(n).map(|(_, next)| next).collect()
}

/// The beams with their next tokens. A beam's first successor keeps its slot, others get the slot of
/// a beam without one.
fn grow(beams: &[Beam], chosen: &[Next]) -> Vec<Beam> {
    let heirs = |beam: usize| chosen.iter().any(|next| next.beam == beam);
    let mut free = (0..beams.len()).filter(|beam| !heirs(*beam)).map(|beam| beams[beam].slot);
    let mut kept = vec![false; beams.len()];
    let heir = |next: &Next| {
        let parent = &beams[next.beam];
        let slot = match std::mem::replace(&mut kept[next.beam], true) {
            false => parent.slot,
            true => free.next().expect("there are as many slots as beams"),
        };
        let tokens = parent.tokens.iter().copied().chain([next.id]).collect();
        Beam { slot, past: parent.past, tokens, total: next.total }
    };
    chosen.iter().map(heir).collect()
}

/// A model that reads the beams.
struct Reader<'a> {
    source: PolicySource<'a>,
    logits_bv: Vec<f32>,
}

impl<'a> Reader<'a> {
    fn new(policy: &'a Policy, beams: usize) -> Self {
        Reader { source: PolicySource::new(policy, beams), logits_bv: Vec::new() }
    }

    /// How many beams there are logits of: one, while all are alike.
    fn rows(&self, vocab: usize) -> usize {
        self.logits_bv.len() / vocab
    }

    /// Reads `ids`, as many for each beam, which stand at `position` of its text.
    fn read(&mut self, ids: &[u32], beams: &[Beam], position: usize) -> Result<()> {
        let (slots_b, from_b): (Vec<usize>, Vec<usize>) =
            beams.iter().map(|beam| (beam.slot, beam.past)).unzip();
        let lengths = vec![ids.len() / beams.len(); beams.len()];
        let step = Step {
            ids_n: ids,
            rows: Arc::new(Rows::new(&lengths, |_| position)),
            slots_b: &slots_b,
            from_b: &from_b,
            prompts_b: &vec![0; beams.len()],
            read_b: &vec![1; beams.len()],
        };
        self.source.step(&step, &mut self.logits_bv)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(p: &[f64]) -> Vec<f32> {
        // A constant on all logits changes no probability.
        p.iter().map(|p| (p.ln() + 3.0) as f32).collect()
    }

    #[test]
    fn the_published_example_keeps_three_tokens() {
        let tuned = logits(&[0.5, 0.3, 0.15, 0.04, 0.01]);
        let base = logits(&[0.5, 0.05, 0.4, 0.04, 0.01]);
        let how = BeamSampling::default();
        let scores = how.scores(&tuned, &base, &[]);
        let ids: Vec<u32> = scores.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [0, 1, 2]);
        for ((_, got), want) in scores.iter().zip([0.0, 1.7918, -0.9808]) {
            assert!((got - want).abs() < 1e-4, "{got} {want}");
        }
        let all: f64 = scores.iter().map(|(_, s)| s.exp()).sum();
        for ((_, s), want) in scores.iter().zip([0.1356, 0.8136, 0.0508]) {
            assert!((s.exp() / all - want).abs() < 1e-4);
        }
        // Equal models leave no contrast, whatever is kept; the tuned one alone is its own.
        assert!(how.scores(&tuned, &tuned, &[]).iter().all(|(_, s)| s.abs() < 1e-6));
        let alone = BeamSampling { gamma: 0.0, alpha: 0.0, ..how }.scores(&tuned, &[], &[]);
        for ((_, s), p) in alone.iter().zip([0.5f64, 0.3, 0.15, 0.04, 0.01]) {
            assert!((s - p.ln()).abs() < 1e-6);
        }
        assert_eq!(alone.len(), 5);
        // Only the likeliest is left of all at 1, and a banned one does not set the bar.
        assert_eq!(BeamSampling { alpha: 1.0, ..how }.scores(&tuned, &base, &[]).len(), 1);
        let without = BeamSampling { alpha: 0.4, ..how }.scores(&tuned, &base, &[0]);
        let ids: Vec<u32> = without.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 2]);
        assert!((without[0].1 - 1.7918).abs() < 1e-4, "{}", without[0].1);
    }

    #[test]
    fn draws_are_without_replacement_and_follow_the_softmax() {
        let weights = [0.5f64, 0.3, 0.15, 0.05];
        let next = |(id, p): (usize, &f64)| Next { beam: 0, id: id as u32, total: p.ln() - 700.0 };
        let all: Vec<Next> = weights.iter().enumerate().map(next).collect();
        let n = 40_000;
        let (mut first, mut second) = ([0.0; 4], [0.0; 4]);
        for i in 0..n {
            let drawn = draw(&all, 2, &mut Seed(17).at(i).rng());
            assert_ne!(drawn[0].id, drawn[1].id);
            first[drawn[0].id as usize] += 1.0 / n as f64;
            second[drawn[1].id as usize] += 1.0 / n as f64;
        }
        for (id, p) in weights.iter().enumerate() {
            // The second is drawn of the others in proportion.
            let others = weights.iter().enumerate().filter(|(other, _)| *other != id);
            let then: f64 = others.map(|(_, q)| q * p / (1.0 - q)).sum();
            let within = |p: f64| 4.0 * (p * (1.0 - p) / n as f64).sqrt();
            assert!((first[id] - p).abs() < within(*p), "{id}: {} {p}", first[id]);
            assert!((second[id] - then).abs() < within(then), "{id}: {} {then}", second[id]);
        }
        assert_eq!(draw(&all, 9, &mut Seed(1).rng()).len(), 4);
    }

    #[test]
    fn settings_without_a_meaning_are_refused_by_name() {
        let how = BeamSampling::default();
        for (bad, key) in [
            (BeamSampling { num_beams: 0, ..how }, "x.num_beams"),
            (BeamSampling { length: 0, ..how }, "x.length"),
            (BeamSampling { alpha: 1.5, ..how }, "x.alpha"),
            (BeamSampling { gamma: -1.0, ..how }, "x.gamma"),
            (BeamSampling { gamma: f64::NAN, ..how }, "x.gamma"),
        ] {
            let error = bad.check("x").unwrap_err();
            assert!(error.to_string().starts_with(key) && error.exit_code() == 2, "{error}");
        }
        how.check("x").unwrap();
    }
}
