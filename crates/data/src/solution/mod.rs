//! Solutions in steps: where they part, what each step is worth, and where one goes wrong.
//!
//! A step is worth what can still be reached after it: `Q(i)`, the chance that the best of `k`
//! continuations of the first `i` steps ends right. `Q(0)` is the empty prefix, `A(i) = Q(i) − Q(i−1)`
//! the step's advantage.

pub mod correct;
pub mod rollout;
pub mod step_pairs;
pub mod step_weights;

use luthier_core::{Error, Example, Result, Rng};
use serde::{Deserialize, Serialize};

/// The steps of a text. Each keeps its delimiter, so that all of them joined are the text; blank ones
/// belong to the step before (or, at the beginning, behind).
pub fn steps<'a>(text: &'a str, delimiter: &str) -> Vec<&'a str> {
    let mut ends: Vec<usize> = Vec::new();
    let mut end = 0;
    for piece in text.split_inclusive(delimiter) {
        end += piece.len();
        let blank = piece.trim().is_empty();
        match ends.last_mut() {
            Some(last) if blank => *last = end,
            // Leading blanks wait for the first words.
            None if blank => {}
            _ => ends.push(end),
        }
    }
    let starts = std::iter::once(0).chain(ends.iter().copied());
    starts.zip(&ends).map(|(from, to)| &text[from..*to]).collect()
}

/// The unbiased chance that the best of `k` tries is right, where `right` of `n` tries were:
/// `1 − C(n − right, k) / C(n, k)`. With fewer than `k` tries, the best of those there are.
pub fn best_of(n: usize, right: usize, k: usize) -> f64 {
    let k = k.min(n);
    if k == 0 || right == 0 {
        return 0.0;
    }
    if n - right < k {
        return 1.0;
    }
    1.0 - (n - right + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

/// The chance that the best of `k` tries is right where each is right with chance `p`.
pub fn best_of_chance(p: f64, k: usize) -> f64 {
    1.0 - (1.0 - p).powi(i32::try_from(k).unwrap_or(i32::MAX))
}

/// How the value of a prefix is estimated from its continuations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// From all of them at once, without bias.
    #[default]
    Unbiased,
    /// The mean over groups of `k` of whether one of the group is right.
    Groups,
}

impl Estimator {
    /// The value of a prefix of which these continuations were right or wrong.
    pub fn value(self, right: &[bool], k: usize) -> f64 {
        let hits = right.iter().filter(|r| **r).count();
        match self {
            Estimator::Unbiased => best_of(right.len(), hits, k),
            Estimator::Groups => {
                let groups = right.chunks(k.max(1));
                let hit = groups.clone().filter(|group| group.contains(&true)).count();
                hit as f64 / groups.len().max(1) as f64
            }
        }
    }
}

/// What each step adds to the chance of a right answer, from the values of all prefixes (the first is
/// that of the empty one). They add up to the last value less the first.
pub fn advantages(values: &[f64]) -> Vec<f64> {
    values.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// Which step of a wrong solution is held to be the mistake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PitRule {
    /// The first of those with the lowest value.
    #[default]
    FirstMinQ,
    /// The first of those with the largest drop.
    MinAdvantage,
    /// Any: the control.
    Random,
}

impl PitRule {
    /// The index of the step, counted from 0. `values` begin with that of the empty prefix.
    ///
    /// # Panics
    /// When there is no step.
    pub fn pit(self, values: &[f64], rng: &mut Rng) -> usize {
        assert!(values.len() > 1, "a solution has at least one step");
        let lowest = |of: &[f64]| {
            let mut best = 0;
            for (i, value) in of.iter().enumerate() {
                if *value < of[best] {
                    best = i;
                }
            }
            best
        };
        match self {
            PitRule::FirstMinQ => lowest(&values[1..]),
            PitRule::MinAdvantage => lowest(&advantages(values)),
            PitRule::Random => rng.below(values.len() - 1),
        }
    }
}

/// The answer's text, and a refusal where a step cannot work on it.
fn answer(example: &Example) -> Result<&str> {
    match example.completions.as_slice() {
        [one] if one.turns.len() == 1 && !one.text().trim().is_empty() => Ok(one.text()),
        [_] => Err(Error::input(example.origin.to_string(), "its answer is not one turn of text")),
        several => {
            let what = format!("expected one answer, found {}", several.len());
            Err(Error::input(example.origin.to_string(), what))
        }
    }
}

/// Characters of a text, as parts of answers are counted.
fn chars(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;

    use super::*;

    #[test]
    fn steps_joined_are_the_text() {
        for text in ["a\nb\n\nc", "\n\n a\nb\n", "one", "a.\n\n\n", "x\n \ny"] {
            let parts = steps(text, "\n");
            assert_eq!(parts.concat(), text);
            assert!(parts.iter().all(|step| !step.trim().is_empty()), "{parts:?}");
        }
        assert_eq!(steps("a\nb\n\nc", "\n"), ["a\n", "b\n\n", "c"]);
        assert_eq!(steps("\n\n a\nb\n", "\n"), ["\n\n a\n", "b\n"]);
        assert_eq!(steps("One. Two. Three.", ". "), ["One. ", "Two. ", "Three."]);
        assert!(steps(" \n", "\n").is_empty() && steps("", "\n").is_empty());
    }

    #[test]
    fn the_best_of_five() {
        assert!((best_of_chance(0.2, 5) - 0.67232).abs() < 1e-12);
        assert!((best_of_chance(0.5, 5) - 0.96875).abs() < 1e-12);
        // One pool of five: 0 or 1. Of ten, two right: 1 − C(8, 5) / C(10, 5).
        assert_eq!((best_of(5, 0, 5), best_of(5, 1, 5), best_of(3, 1, 5)), (0.0, 1.0, 1.0));
        assert!((best_of(10, 2, 5) - (1.0 - 56.0 / 252.0)).abs() < 1e-12);
        let tries = [true, false, false, false, false, false, false, false, false, false];
        assert_eq!(Estimator::Groups.value(&tries, 5), 0.5);
        assert_eq!(Estimator::Unbiased.value(&tries, 5), 0.5);
        assert_eq!(Estimator::Groups.value(&[], 5), 0.0);
    }

    #[test]
    fn the_pit_depends_on_the_rule_and_on_the_estimate() {
        let values = [0.75, 0.8, 0.7, 0.1, 0.0];
        let found = advantages(&values);
        for (got, want) in found.iter().zip([0.05, -0.10, -0.60, -0.10]) {
            assert!((got - want).abs() < 1e-12, "{found:?}");
        }
        assert!((found.iter().sum::<f64>() - (0.0 - 0.75)).abs() < 1e-12);
        let mut rng = Seed(1).rng();
        assert_eq!(PitRule::FirstMinQ.pit(&values, &mut rng), 3);
        assert_eq!(PitRule::MinAdvantage.pit(&values, &mut rng), 2);
        assert_eq!(PitRule::FirstMinQ.pit(&[1.0, 1.0, 1.0, 0.0, 0.0], &mut rng), 2);
        let mut drawn: Vec<usize> =
            (0..60).map(|_| PitRule::Random.pit(&values, &mut rng)).collect();
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn, [0, 1, 2, 3]);
    }
}
