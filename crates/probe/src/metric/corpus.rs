//! Metrics whose number of a set is made of summed counts, and not the mean of their answers' numbers.

use luthier_core::{Error, Result};

use super::{Metric, Verdict};
use crate::stats::{Bootstrap, Interval, Score};

/// Counts that are added up over a set before they become one number between 0 and 100.
pub(super) trait Corpus: Send + Sync {
    /// In reports and errors.
    const NAME: &'static str;
    /// What a text must have some of.
    const UNITS: &'static str;
    /// What an answer adds.
    type Counts: Send + Sync;

    /// Refuses settings without a meaning.
    fn checked(&self) -> Result<()>;

    /// What an answer adds to the sums.
    fn counts(&self, answer: &str, expected: &str) -> Self::Counts;

    /// The number of those of `each` that are drawn.
    fn of(&self, each: &[Self::Counts], draws: &mut dyn Iterator<Item = usize>) -> f64;

    /// The number of one answer by itself.
    fn sentence(&self, answer: &str, expected: &str) -> f64;
}

impl<T: Corpus> Metric for T {
    fn judge(&self, answer: &str, expected: &str) -> Verdict {
        Verdict { value: self.sentence(answer, expected) / 100.0, fields: None }
    }

    fn check(&self, at: &str, expected: &str) -> Result<()> {
        self.checked()?;
        match expected.trim().is_empty() {
            true => Err(Error::input(at, format!("the expected text has no {}", T::UNITS))),
            false => Ok(()),
        }
    }

    /// Every resample adds up again what its answers bring.
    fn over(&self, pairs: &[(&str, &str)], bootstrap: &Bootstrap) -> Option<Result<Score>> {
        let each: Vec<T::Counts> = pairs.iter().map(|(a, e)| self.counts(a, e)).collect();
        let over = |draws: &mut dyn Iterator<Item = usize>| self.of(&each, draws);
        Some(bootstrap.interval(each.len(), over).map(|ci95| Score {
            metric: T::NAME.to_string(),
            value: over(&mut (0..each.len())),
            n: each.len(),
            ci95,
            interval: Interval::Bootstrap,
        }))
    }
}
