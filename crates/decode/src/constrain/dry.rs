//! DRY, "don't repeat yourself": a token that would go on repeating an earlier stretch gets less likely,
//! the more so the longer the stretch. Settings are those of text-generation-webui, where it comes from,
//! and of llama.cpp.
//!
//! With `n` the longest length of an ending of the text that also stands right before an earlier
//! occurrence of the token, `logit − multiplier · base^(n − allowed_length)` where `n ≥ allowed_length`.
//! No stretch reaches over a sequence breaker. **Departures**: (1) a breaker is a token: the last one
//! of its text, as in text-generation-webui; (2) it runs before the repetition penalty, which makes no
//! difference where that is off.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::Constrain;
use crate::SoFar;

/// `[decode.constrain.dry]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dry {
    /// `dry_multiplier`: how strong; 0 is off.
    pub multiplier: f32,
    /// `dry_base`: what each further token multiplies.
    pub base: f32,
    /// `dry_allowed_length`: the longest repetition that costs nothing is one shorter.
    pub allowed_length: usize,
    /// `dry_sequence_breakers`: texts that repetitions do not reach over.
    pub sequence_breakers: Vec<String>,
    /// `dry_penalty_last_n`: tokens that are looked at; 0 is all.
    pub range: usize,
    /// The tokens of the breakers; filled in from the tokenizer.
    #[serde(skip)]
    pub breakers: Vec<u32>,
}

impl Default for Dry {
    fn default() -> Self {
        Dry {
            multiplier: 0.8,
            base: 1.75,
            allowed_length: 2,
            sequence_breakers: ["\n", ":", "\"", "*"].map(String::from).to_vec(),
            range: 0,
            breakers: Vec::new(),
        }
    }
}

/// `base` to this power is as good as forbidden, and far from overflow; both programs limit it too.
const MOST: usize = 50;

impl Dry {
    /// Refuses numbers that mean nothing.
    pub fn check(&self) -> Result<()> {
        let at = "decode.constrain.dry";
        if !self.multiplier.is_finite() || self.multiplier < 0.0 {
            let what = format!("expected a number of at least 0, got {}", self.multiplier);
            return Err(Error::input(format!("{at}.multiplier"), what));
        }
        if !self.base.is_finite() || self.base < 1.0 {
            let what = format!("expected a number of at least 1, got {}", self.base);
            return Err(Error::input(format!("{at}.base"), what));
        }
        if self.allowed_length == 0 {
            return Err(Error::input(format!("{at}.allowed_length"), "expected at least 1, got 0"));
        }
        Ok(())
    }

    /// For each place of `text`, the length of the longest run that ends there and is an ending of
    /// `text` too, breakers ending both: the Z function read backwards, in one pass.
    fn repeats(&self, text: &[u32]) -> Vec<usize> {
        let n = text.len();
        let at = |i: usize| text[n - 1 - i];
        let broken = text.iter().rev().position(|id| self.breakers.contains(id)).unwrap_or(n);
        let mut z = vec![0usize; n];
        let (mut left, mut right) = (0, 0);
        for i in 1..n {
            let mut len = if i < right { z[i - left].min(right - i) } else { 0 };
            while i + len < n && len < broken && at(len) == at(i + len) {
                len += 1;
            }
            if i + len > right {
                (left, right) = (i, i + len);
            }
            z[i] = len;
        }
        z.reverse();
        z
    }
}

impl Constrain for Dry {
    fn constrain(&self, so_far: &SoFar, logits_v: &mut [f32]) {
        if self.multiplier == 0.0 {
            return;
        }
        let all = [so_far.prompt, so_far.tokens].concat();
        let text = match self.range {
            0 => &all[..],
            range => &all[all.len().saturating_sub(range)..],
        };
        let mut longest: Vec<(u32, usize)> = Vec::new();
        for (place, len) in self.repeats(text).into_iter().enumerate() {
            // The token behind the earlier run is the one that would go on with it.
            let next = text.get(place + 1).filter(|id| !self.breakers.contains(id));
            if let (true, Some(id)) = (len >= self.allowed_length, next) {
                longest.push((*id, len));
            }
        }
        longest.sort_unstable_by_key(|(id, len)| (*id, std::cmp::Reverse(*len)));
        longest.dedup_by_key(|(id, _)| *id);
        for (id, len) in longest {
            if let Some(logit) = logits_v.get_mut(id as usize) {
                let power = (len - self.allowed_length).min(MOST) as i32;
                *logit -= self.multiplier * self.base.powi(power);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;

    use super::*;

    /// Independent twin: for every earlier occurrence of every token, count back by hand.
    fn twin(dry: &Dry, text: &[u32], vocab: u32) -> Vec<f32> {
        let penalty = |id: u32| {
            let mut longest = 0;
            for place in (0..text.len()).filter(|i| text[*i] == id && !dry.breakers.contains(&id)) {
                let mut len = 0;
                while len < place {
                    let (a, b) = (text[place - 1 - len], text[text.len() - 1 - len]);
                    if a != b || dry.breakers.contains(&a) {
                        break;
                    }
                    len += 1;
                }
                longest = longest.max(len);
            }
            match longest >= dry.allowed_length {
                true => dry.multiplier * dry.base.powi((longest - dry.allowed_length) as i32),
                false => 0.0,
            }
        };
        (0..vocab).map(penalty).collect()
    }

    #[test]
    fn equals_the_twin_that_counts_back() {
        let mut rng = Seed(3).rng();
        let mut hit = 0;
        for case in 0..300 {
            let vocab = 2 + rng.below(3) as u32;
            let text: Vec<u32> =
                (0..2 + rng.below(14)).map(|_| rng.below(vocab as usize) as u32).collect();
            let breakers = if case % 3 == 0 { vec![0] } else { vec![] };
            let allowed_length = 1 + case % 4;
            let dry = Dry { allowed_length, breakers, ..Dry::default() };
            let mut logits = vec![0.0; vocab as usize];
            let (prompt, tokens) = text.split_at(text.len() / 2);
            dry.constrain(&SoFar { prompt, tokens }, &mut logits);
            for (got, want) in logits.iter().zip(twin(&dry, &text, vocab)) {
                assert!((got + want).abs() < 1e-4, "{text:?} {dry:?} {got} {want}");
                hit += usize::from(want > 0.0);
            }
        }
        assert!(hit > 100, "{hit}");
    }

    /// tests/golden/make_llamacpp.py.
    #[test]
    fn penalties_are_those_of_llama_cpp() {
        let golden = include_str!("../../../../tests/golden/llamacpp.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let ids = |value: &serde_json::Value| -> Vec<u32> {
            value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let mut taken = 0;
        for case in golden["dry"].as_array().unwrap() {
            let number = |key: &str| case[key].as_f64().unwrap() as f32;
            let dry = Dry {
                multiplier: number("multiplier"),
                base: number("base"),
                allowed_length: number("allowed_length") as usize,
                breakers: ids(&case["breakers"]),
                ..Dry::default()
            };
            let (text, want) = (ids(&case["text"]), case["taken"].as_array().unwrap());
            let (prompt, tokens) = text.split_at(text.len() / 3);
            let mut logits = vec![0f32; want.len()];
            dry.constrain(&SoFar { prompt, tokens }, &mut logits);
            for (id, (got, want)) in logits.iter().zip(want).enumerate() {
                let want = want.as_f64().unwrap() as f32;
                assert!((got + want).abs() < 1e-4 * (1.0 + want), "{case} {id}: {got}");
                taken += usize::from(want > 0.0);
            }
        }
        assert!(taken > 30, "{taken}");
    }

    #[test]
    fn a_stretch_of_three_tokens_costs_one_power() {
        // "a b c d … a b c": d is what repeats three tokens.
        let dry = Dry::default();
        let mut logits = vec![0.0; 10];
        dry.constrain(&SoFar { prompt: &[1, 2, 3, 4, 9], tokens: &[1, 2, 3] }, &mut logits);
        let expected = -0.8 * 1.75f32;
        assert!((logits[4] - expected).abs() < 1e-6);
        assert!(logits.iter().enumerate().all(|(i, l)| i == 4 || *l == 0.0));
        // Only what is in range is looked at.
        let near = Dry { range: 5, ..Dry::default() };
        let mut logits = vec![0.0; 10];
        near.constrain(&SoFar { prompt: &[1, 2, 3, 4, 9], tokens: &[1, 2, 3] }, &mut logits);
        assert_eq!(logits, [0.0; 10]);
    }
}
