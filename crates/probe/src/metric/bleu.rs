//! BLEU (Papineni et al. 2002) with sacrebleu's meaning and numbers (Post 2018; version 2.6).
//!
//! Over a set: `BP · exp(1/N · Σ_n ln p_n)` with `p_n = matched n-grams / n-grams of the answers`, summed
//! over the set before they are divided, and `BP = min(1, exp(1 − expected words / answered words))`,
//! between 0 and 100. An answer by itself gets its own BLEU with effective order (orders that it is
//! too short for do not count), from 0 to 1. **Departures**: (1) one expected text for each answer;
//! (2) no stemming, and of sacrebleu's tokenizers those without a dictionary.

mod tokenize;

use std::collections::HashMap;

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::corpus::Corpus;

pub use tokenize::Tokenize;
pub(super) use tokenize::{space, words};

/// What becomes of an order without a match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Smooth {
    /// Its precision is half of one match, the next one's a quarter, ….
    #[default]
    Exp,
    /// It has `smooth_value` matches (0.1).
    Floor,
    /// `smooth_value` (1) is added to matches and n-grams of every order above the first.
    #[serde(rename = "add-k")]
    AddK,
    /// Its precision is 0, and so is BLEU.
    None,
}

/// `bleu = { tokenize = "13a" }`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bleu {
    /// How text becomes words.
    pub tokenize: Tokenize,
    /// Whether case is ignored.
    pub lowercase: bool,
    /// What becomes of an order without a match.
    pub smooth_method: Smooth,
    /// The number of `floor` and `add-k`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smooth_value: Option<f64>,
    /// The longest n-grams.
    pub max_ngram_order: usize,
    /// Whether orders that the whole set is too short for do not count.
    pub effective_order: bool,
}

impl Default for Bleu {
    fn default() -> Self {
        Bleu {
            tokenize: Tokenize::default(),
            lowercase: false,
            smooth_method: Smooth::default(),
            smooth_value: None,
            max_ngram_order: 4,
            effective_order: false,
        }
    }
}

/// What an answer adds to the sums: its words, the expected words, matches and n-grams by order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counts {
    answered: f64,
    expected: f64,
    matched: Vec<f64>,
    total: Vec<f64>,
}

fn grams(words: &[String], n: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    words.windows(n).for_each(|gram| *counts.entry(gram).or_insert(0) += 1);
    counts
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.answered += other.answered;
        self.expected += other.expected;
        for (mine, theirs) in [(&mut self.matched, &other.matched), (&mut self.total, &other.total)]
        {
            mine.resize(theirs.len(), 0.0);
            mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        }
    }
}

impl Bleu {
    /// Refuses settings without a meaning.
    pub fn check(&self, key: &str) -> Result<()> {
        if self.max_ngram_order == 0 {
            let at = format!("{key}.max_ngram_order");
            return Err(Error::input(at, "expected at least 1, got 0"));
        }
        match self.smooth_value {
            Some(x) if !x.is_finite() || x < 0.0 => {
                let what = format!("expected a number of at least 0, got {x}");
                Err(Error::input(format!("{key}.smooth_value"), what))
            }
            _ => Ok(()),
        }
    }

    fn counts(&self, answer: &str, expected: &str) -> Counts {
        let words = |text: &str| match self.lowercase {
            true => self.tokenize.words(&text.to_lowercase()),
            false => self.tokenize.words(text),
        };
        let (answer, expected) = (words(answer), words(expected));
        let mut counts = Counts {
            answered: answer.len() as f64,
            expected: expected.len() as f64,
            ..Counts::default()
        };
        for n in 1..=self.max_ngram_order {
            let known = grams(&expected, n);
            let matched = |(gram, count): (&[String], usize)| {
                count.min(known.get(gram).copied().unwrap_or(0))
            };
            let matched: usize = grams(&answer, n).into_iter().map(matched).sum();
            counts.matched.push(matched as f64);
            counts.total.push((answer.len() + 1).saturating_sub(n) as f64);
        }
        counts
    }

    /// From sums to a number between 0 and 100.
    fn of(&self, counts: &Counts, effective_order: bool) -> f64 {
        if counts.matched.iter().all(|m| *m == 0.0) {
            return 0.0;
        }
        let brevity = match counts.answered < counts.expected {
            true => (1.0 - counts.expected / counts.answered).exp(),
            false => 1.0,
        };
        let value = |usual: f64| self.smooth_value.unwrap_or(usual);
        let (mut halves, mut order) = (1.0, self.max_ngram_order);
        let mut precisions = vec![0.0; self.max_ngram_order];
        for (i, precision) in precisions.iter_mut().enumerate() {
            let add = if self.smooth_method == Smooth::AddK && i > 0 { value(1.0) } else { 0.0 };
            let (matched, total) = (counts.matched[i] + add, counts.total[i] + add);
            if total == 0.0 {
                break;
            }
            if effective_order {
                order = i + 1;
            }
            *precision = match (matched == 0.0, self.smooth_method) {
                (false, _) => 100.0 * matched / total,
                (true, Smooth::Exp) => {
                    halves *= 2.0;
                    100.0 / (halves * total)
                }
                (true, Smooth::Floor) => 100.0 * value(0.1) / total,
                (true, Smooth::AddK | Smooth::None) => 0.0,
            };
        }
        let logs: f64 = precisions[..order].iter().map(|p| p.ln()).sum();
        // The logarithm of 0 is below every number, and BLEU is 0.
        // Rounding must not make a perfect answer better than that.
        (brevity * (logs / order as f64).exp()).min(100.0)
    }

    /// BLEU of one answer by itself, with effective order, between 0 and 100.
    pub fn sentence(&self, answer: &str, expected: &str) -> f64 {
        self.of(&self.counts(answer, expected), true)
    }

    /// BLEU of a set of answers and expected texts, between 0 and 100.
    pub fn corpus(&self, pairs: &[(&str, &str)]) -> f64 {
        let mut sums = Counts::default();
        pairs.iter().for_each(|(answer, expected)| sums.add(&self.counts(answer, expected)));
        if pairs.is_empty() { 0.0 } else { self.of(&sums, self.effective_order) }
    }

    /// How this number was made, in sacrebleu's form, so that it can be compared with others.
    pub fn signature(&self) -> String {
        let value = |usual: f64| self.smooth_value.unwrap_or(usual);
        let smooth = match self.smooth_method {
            Smooth::Exp => "exp".to_string(),
            Smooth::Floor => format!("floor[{:.2}]", value(0.1)),
            Smooth::AddK => format!("add-k[{:.2}]", value(1.0)),
            Smooth::None => "none".to_string(),
        };
        format!(
            "nrefs:1|case:{}|eff:{}|tok:{}|smooth:{smooth}|version:luthier-{}",
            if self.lowercase { "lc" } else { "mixed" },
            if self.effective_order { "yes" } else { "no" },
            self.tokenize.name(),
            env!("CARGO_PKG_VERSION")
        )
    }
}

impl Corpus for Bleu {
    const NAME: &'static str = "bleu";
    const UNITS: &'static str = "words";
    type Counts = Counts;

    fn checked(&self) -> Result<()> {
        self.check(Self::NAME)
    }

    fn counts(&self, answer: &str, expected: &str) -> Counts {
        Bleu::counts(self, answer, expected)
    }

    fn of(&self, each: &[Counts], draws: &mut dyn Iterator<Item = usize>) -> f64 {
        let mut sums = Counts::default();
        draws.for_each(|i| sums.add(&each[i]));
        Bleu::of(self, &sums, self.effective_order)
    }

    fn sentence(&self, answer: &str, expected: &str) -> f64 {
        Bleu::sentence(self, answer, expected)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Metric, *};
    use crate::stats::Bootstrap;

    #[test]
    fn equal_texts_have_100_and_strangers_0() {
        let bleu = Bleu::default();
        let same = "The cat sat on the mat, again.";
        assert!((bleu.corpus(&[(same, same), ("a b c d e", "a b c d e")]) - 100.0).abs() < 1e-9);
        assert_eq!((bleu.sentence("dog", "cat"), bleu.sentence("", "cat")), (0.0, 0.0));
        assert!((bleu.sentence("cat", "cat") - 100.0).abs() < 1e-9, "effective order");
        assert!((bleu.judge(same, same).value - 1.0).abs() < 1e-12);
    }

    #[test]
    fn sums_come_before_the_division() {
        // One answer right, one short: precisions 1, brevity exp(1 − 10/7).
        let pairs = [("a b c d e", "a b c d e"), ("f g", "f g h i j")];
        let want = 100.0 * (1.0f64 - 10.0 / 7.0).exp();
        assert!((Bleu::default().corpus(&pairs) - want).abs() < 1e-9);
        let score = Bleu::default().over(&pairs, &Bootstrap::default()).unwrap().unwrap();
        assert!((score.value - want).abs() < 1e-9 && score.ci95[1] > score.ci95[0]);
        assert!(score.ci95[1] > 99.9 && score.ci95[0] < 30.0, "{:?}", score.ci95);
    }

    #[test]
    fn the_signature_says_how() {
        let lower = Bleu { lowercase: true, smooth_method: Smooth::Floor, ..Bleu::default() };
        let text = lower.signature();
        assert!(text.starts_with("nrefs:1|case:lc|eff:no|tok:13a|smooth:floor[0.10]|"), "{text}");
        assert!(Bleu { max_ngram_order: 0, ..lower }.check("m").is_err());
    }
}
