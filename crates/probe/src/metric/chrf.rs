//! chrF and chrF++ (Popović 2015, 2017) with sacrebleu's meaning and numbers (version 2.6).
//!
//! For every order of character n-grams (1 to `char_order`, white space left out) and word n-grams (1
//! to `word_order`): precision and recall over summed counts; their means over the orders that both
//! sides have; then `(1 + β²) · P · R / (β² · P + R)`, between 0 and 100. `word_order = 2` is chrF++.
//! **Departures**: (1) one expected text for each answer.

use std::collections::HashMap;

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{
    bleu::{space, words},
    corpus::Corpus,
};

/// `chrf = { word_order = 2 }`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Chrf {
    /// The longest n-grams of characters.
    pub char_order: usize,
    /// The longest n-grams of words; 0 is chrF, 2 is chrF++.
    pub word_order: usize,
    /// How much more recall counts than precision.
    pub beta: f64,
    /// Whether case is ignored.
    pub lowercase: bool,
    /// Whether white space belongs to n-grams of characters.
    pub whitespace: bool,
    /// Whether orders without an n-gram count as almost 0, in place of not at all.
    pub eps_smoothing: bool,
}

impl Default for Chrf {
    fn default() -> Self {
        Chrf {
            char_order: 6,
            word_order: 0,
            beta: 2.0,
            lowercase: false,
            whitespace: false,
            eps_smoothing: false,
        }
    }
}

/// By order: n-grams of the answer, of the expected text, and of both.
pub(super) type Counts = Vec<[f64; 3]>;

fn add(sums: &mut Counts, other: &Counts) {
    sums.resize(other.len(), [0.0; 3]);
    for (sum, one) in sums.iter_mut().zip(other) {
        sum.iter_mut().zip(one).for_each(|(a, b)| *a += b);
    }
}

fn shared<T: std::hash::Hash + Eq>(answer: &[T], expected: &[T], n: usize) -> [f64; 3] {
    let mut known: HashMap<&[T], usize> = HashMap::new();
    expected.windows(n).for_each(|gram| *known.entry(gram).or_insert(0) += 1);
    let mut matched = 0;
    for gram in answer.windows(n) {
        if let Some(left) = known.get_mut(gram).filter(|left| **left > 0) {
            *left -= 1;
            matched += 1;
        }
    }
    let count = |text: &[T]| (text.len() + 1).saturating_sub(n) as f64;
    let of_expected = count(expected);
    // What the answer has of an order that the expected text lacks is not held against it.
    let of_answer = if of_expected > 0.0 { count(answer) } else { 0.0 };
    [of_answer, of_expected, f64::from(matched)]
}

/// Words, with a mark at their end (or else their beginning) apart.
fn parted(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for word in words(text) {
        let mark = |c: Option<char>| c.is_some_and(|c| c.is_ascii_punctuation());
        let mut inner = word.chars();
        if word.chars().nth(1).is_none() {
            parts.push(word);
        } else if mark(inner.next_back()) {
            let kept = inner.as_str().to_string();
            let last = word[kept.len()..].to_string();
            parts.extend([kept, last]);
        } else if mark(word.chars().next()) {
            let (first, rest) = word.split_at(1);
            parts.extend([first.to_string(), rest.to_string()]);
        } else {
            parts.push(word);
        }
    }
    parts
}

impl Chrf {
    /// Refuses settings without a meaning.
    pub fn check(&self, key: &str) -> Result<()> {
        if self.char_order + self.word_order == 0 {
            return Err(Error::input(format!("{key}.char_order"), "expected at least 1, got 0"));
        }
        match self.beta.is_finite() && self.beta > 0.0 {
            true => Ok(()),
            false => {
                let what = format!("expected a number above 0, got {}", self.beta);
                Err(Error::input(format!("{key}.beta"), what))
            }
        }
    }

    fn counts(&self, answer: &str, expected: &str) -> Counts {
        let cased =
            |text: &str| if self.lowercase { text.to_lowercase() } else { text.to_string() };
        let texts = [cased(answer), cased(expected)];
        let letters = |text: &String| -> Vec<char> {
            text.chars().filter(|c| self.whitespace || !space(*c)).collect()
        };
        let [a, e] = [letters(&texts[0]), letters(&texts[1])];
        let mut counts: Counts = (1..=self.char_order).map(|n| shared(&a, &e, n)).collect();
        if self.word_order > 0 {
            let [a, e] = [parted(&texts[0]), parted(&texts[1])];
            counts.extend((1..=self.word_order).map(|n| shared(&a, &e, n)));
        }
        counts
    }

    fn of(&self, counts: &Counts) -> f64 {
        /// What sacrebleu takes for almost nothing.
        const EPS: f64 = 1e-16;
        let factor = self.beta * self.beta;
        let f = |p: f64, r: f64| (1.0 + factor) * p * r / (factor * p + r);
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { EPS };
        let (mut sum, mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0, 0.0);
        for [answered, expected, matched] in counts {
            let (p, r) = (share(*matched, *answered), share(*matched, *expected));
            sum += if factor * p + r > 0.0 { f(p, r) } else { EPS };
            if *answered > 0.0 && *expected > 0.0 {
                precision += p;
                recall += r;
                orders += 1.0;
            }
        }
        if self.eps_smoothing {
            return 100.0 * sum / counts.len() as f64;
        }
        match precision + recall > 0.0 {
            true => 100.0 * f(precision / orders, recall / orders),
            false => 0.0,
        }
    }

    /// chrF of one answer by itself, between 0 and 100.
    pub fn sentence(&self, answer: &str, expected: &str) -> f64 {
        self.of(&self.counts(answer, expected))
    }

    /// chrF of a set of answers and expected texts, between 0 and 100.
    pub fn corpus(&self, pairs: &[(&str, &str)]) -> f64 {
        let mut sums = Counts::new();
        pairs.iter().for_each(|(answer, expected)| add(&mut sums, &self.counts(answer, expected)));
        if pairs.is_empty() { 0.0 } else { self.of(&sums) }
    }

    /// How this number was made, in sacrebleu's form.
    pub fn signature(&self) -> String {
        format!(
            "nrefs:1|case:{}|eff:{}|nc:{}|nw:{}|space:{}|beta:{}|version:luthier-{}",
            if self.lowercase { "lc" } else { "mixed" },
            if self.eps_smoothing { "no" } else { "yes" },
            self.char_order,
            self.word_order,
            if self.whitespace { "yes" } else { "no" },
            self.beta,
            env!("CARGO_PKG_VERSION")
        )
    }
}

impl Corpus for Chrf {
    const NAME: &'static str = "chrf";
    const UNITS: &'static str = "characters";
    type Counts = Counts;

    fn checked(&self) -> Result<()> {
        self.check(Self::NAME)
    }

    fn counts(&self, answer: &str, expected: &str) -> Counts {
        Chrf::counts(self, answer, expected)
    }

    fn of(&self, each: &[Counts], draws: &mut dyn Iterator<Item = usize>) -> f64 {
        let mut sums = Counts::new();
        draws.for_each(|i| add(&mut sums, &each[i]));
        Chrf::of(self, &sums)
    }

    fn sentence(&self, answer: &str, expected: &str) -> f64 {
        Chrf::sentence(self, answer, expected)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Metric, *};
    use crate::stats::Bootstrap;

    #[test]
    fn recall_counts_four_times_as_much_as_precision() {
        let plain = Chrf { char_order: 1, ..Chrf::default() };
        // Half of the letters: all precision; twice as many: all recall.
        let want = |p: f64, r: f64| 100.0 * 5.0 * p * r / (4.0 * p + r);
        assert!((plain.sentence("a b", "abcd") - want(1.0, 0.5)).abs() < 1e-9);
        assert!((plain.sentence("abcd", "ab") - want(0.5, 1.0)).abs() < 1e-9);
        assert_eq!((plain.sentence("", "a"), plain.sentence("x", "a")), (0.0, 0.0));
    }

    #[test]
    fn marks_part_from_words_at_one_end() {
        assert_eq!(parted("(hi) \"so, . é! x"), ["(hi", ")", "\"so", ",", ".", "é", "!", "x"]);
        assert_eq!(parted("(a"), ["(", "a"]);
    }

    #[test]
    fn a_set_has_its_own_number_with_an_interval() {
        let pairs = [("the cat", "the cat"), ("dog", "cat"), ("a bird", "a bird sings")];
        let chrf = Chrf { word_order: 2, ..Chrf::default() };
        let score = chrf.over(&pairs, &Bootstrap::default()).unwrap().unwrap();
        assert!((score.value - chrf.corpus(&pairs)).abs() < 1e-12);
        assert!(score.ci95[0] < score.value && score.value < score.ci95[1]);
        assert!(chrf.signature().contains("|nc:6|nw:2|"));
    }
}
