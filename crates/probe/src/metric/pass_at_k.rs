//! pass@k (Chen et al. 2021, arXiv 2107.03374): the chance that at least one of k answers is right.
//!
//! Of `n` sampled answers `c` are right: `1 − C(n − c, k) / C(n, k)`, which is unbiased for every `k ≤ n`;
//! its mean over questions is the score. Another metric judges the answers; what has its whole value
//! of 1 is right. **Departures**: none.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{ExactMatch, Kind};

/// `pass_at_k = { k = [1, 10], n = 20, by = { exact_match = {} } }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PassAtK {
    /// Of how many answers one must be right; the first is the metric's value.
    pub k: Vec<usize>,
    /// Answers sampled for each question.
    pub n: usize,
    /// Divides the logits.
    pub temperature: f32,
    /// Only the best tokens that together hold this much probability.
    pub top_p: f32,
    /// Where the randomness comes from.
    pub seed: u64,
    /// What judges an answer.
    pub by: Box<Kind>,
}

impl Default for PassAtK {
    fn default() -> Self {
        PassAtK {
            k: vec![1],
            n: 10,
            // The paper's for many samples.
            temperature: 0.8,
            top_p: 0.95,
            seed: 0,
            by: Box::new(Kind::ExactMatch(ExactMatch::default())),
        }
    }
}

/// The chance that one of `k` answers drawn from `n`, of which `right` are right, is right.
///
/// Also the unbiased value of "the best of k" where a reward is 0 or 1.
///
/// # Panics
/// When `k` is 0 or above `n`, or `right` is.
pub fn pass_at_k(n: usize, right: usize, k: usize) -> f64 {
    assert!(k >= 1 && k <= n && right <= n, "{k} of {n} answers, {right} right");
    if n - right < k {
        return 1.0;
    }
    // C(n − c, k) / C(n, k), a factor at a time, so that nothing overflows.
    1.0 - (n - right + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

impl PassAtK {
    /// Refuses settings without a meaning.
    pub fn check(&self, key: &str) -> Result<()> {
        let wrong = |name: &str, what: String| Err(Error::input(format!("{key}.{name}"), what));
        if self.k.is_empty() {
            return wrong("k", "expected at least one number, got none".to_string());
        }
        if let Some(k) = self.k.iter().find(|k| **k == 0 || **k > self.n) {
            return wrong("k", format!("expected numbers from 1 to n = {}, got {k}", self.n));
        }
        if self.n > 1 && self.temperature == 0.0 {
            return wrong("temperature", "at 0 all answers to a question are the same".to_string());
        }
        match self.by.text() {
            Some(_) => Ok(()),
            None => wrong("by", format!("{} does not judge generated answers", self.by.name())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over all subsets, one by one.
    fn naive(n: usize, right: usize, k: usize) -> f64 {
        let (mut all, mut passing) = (0.0, 0.0);
        for set in 0u32..1 << n {
            if set.count_ones() as usize == k {
                all += 1.0;
                passing += f64::from(u8::from(set & ((1 << right) - 1) != 0));
            }
        }
        passing / all
    }

    #[test]
    fn it_is_the_share_of_subsets_with_a_right_answer() {
        for n in 1..=9 {
            for (right, k) in (0..=n).flat_map(|c| (1..=n).map(move |k| (c, k))) {
                let (got, want) = (pass_at_k(n, right, k), naive(n, right, k));
                assert!((got - want).abs() < 1e-12, "{n} {right} {k}: {got} {want}");
            }
        }
        assert!((pass_at_k(5, 2, 1) - 0.4).abs() < 1e-12);
        assert!(pass_at_k(10_000, 1, 100) > 0.0099 && pass_at_k(10_000, 1, 100) < 0.0101);
    }

    #[test]
    fn settings_without_a_meaning_are_refused() {
        let of = |k: Vec<usize>, n| PassAtK { k, n, ..PassAtK::default() }.check("--metric");
        assert!(of(vec![1, 5], 5).is_ok());
        for (k, n) in [(vec![], 5), (vec![6], 5), (vec![0], 5)] {
            assert!(of(k, n).unwrap_err().to_string().starts_with("--metric.k"));
        }
        let nll = PassAtK { by: Box::new(Kind::named("m", "nll").unwrap()), ..PassAtK::default() };
        assert!(nll.check("m").unwrap_err().to_string().starts_with("m.by: nll"));
        assert!(PassAtK { temperature: 0.0, ..PassAtK::default() }.check("m").is_err());
    }
}
