//! Calibration: whether answers given with confidence 0.8 are right in 8 of 10 cases.
//!
//! Over answers with confidence `conf` and outcome `right` (0 or 1), in bins `B` of confidence,
//! `ECE = Σ_B |B|/n · |mean right − mean conf|`, once with bins of equal width and once with bins of
//! equally many answers; `MCE` is the largest such gap among bins of equal width; the Brier score is the
//! mean of `(conf − right)²`. **Departures**: none; a confidence on a border belongs to the bin above,
//! and 1 to the last.

mod diagram;
mod isotonic;
mod search;
mod tokens;

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

pub use diagram::svg;
pub use isotonic::Isotonic;
pub use search::{Fit, two_stage};
pub use tokens::tokens;

/// Bins that people usually take.
pub const BINS: usize = 10;

/// `[eval] metric = "calibration"`: confidence in the next token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NextToken {
    /// Bins of confidence.
    pub bins: usize,
}

impl Default for NextToken {
    fn default() -> Self {
        NextToken { bins: BINS }
    }
}

/// Answers of like confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Lowest confidence.
    pub from: f64,
    /// Highest confidence.
    pub to: f64,
    /// How many answers.
    pub n: usize,
    /// Their mean confidence; 0 where there are none.
    pub confidence: f64,
    /// The share of right ones; 0 where there are none.
    pub accuracy: f64,
}

impl Bin {
    fn of(from: f64, to: f64, answers: &[(f64, bool)]) -> Self {
        let n = answers.len();
        let by = n.max(1) as f64;
        // An empty sum is −0.
        let confidence = answers.iter().fold(0.0, |sum, (conf, _)| sum + conf) / by;
        let accuracy = answers.iter().filter(|(_, right)| *right).count() as f64 / by;
        Bin { from, to, n, confidence, accuracy }
    }

    /// How far confidence and accuracy are apart.
    pub fn gap(&self) -> f64 {
        (self.accuracy - self.confidence).abs()
    }
}

/// How confidences and outcomes go together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// How many answers.
    pub n: usize,
    /// The share of right ones.
    pub accuracy: f64,
    /// Their mean confidence.
    pub confidence: f64,
    /// Expected calibration error, bins of equal width.
    pub ece: f64,
    /// The same in bins of equally many answers.
    pub ece_mass: f64,
    /// The largest gap of a bin of equal width.
    pub mce: f64,
    /// Mean squared distance of confidence and outcome.
    pub brier: f64,
    /// The bins of equal width: the reliability diagram.
    pub bins: Vec<Bin>,
}

impl Calibration {
    /// In [`BINS`] bins.
    pub fn of(answers: &[(f64, bool)]) -> Result<Self> {
        Calibration::in_bins(answers, BINS)
    }

    /// In so many bins.
    pub fn in_bins(answers: &[(f64, bool)], bins: usize) -> Result<Self> {
        if bins == 0 {
            return Err(Error::input("bins", "expected at least 1, got 0"));
        }
        if answers.is_empty() {
            return Err(Error::input("calibration", "there is no answer to judge"));
        }
        // Rounding of a softmax may lead a little beyond 1.
        let bad = answers.iter().find(|(conf, _)| !(-1e-6..=1.0 + 1e-6).contains(conf));
        if let Some((conf, _)) = bad {
            let what = format!("a confidence is {conf}, expected a number from 0 to 1");
            return Err(Error::failed("calibration", what));
        }
        let mut sorted = answers.to_vec();
        sorted.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let of_width = by_width(&sorted, bins);
        let all = Bin::of(0.0, 1.0, answers);
        let square = |(conf, right): &(f64, bool)| (conf - f64::from(u8::from(*right))).powi(2);
        Ok(Calibration {
            n: all.n,
            accuracy: all.accuracy,
            confidence: all.confidence,
            ece: expected(&of_width),
            ece_mass: expected(&by_mass(&sorted, bins)),
            mce: of_width.iter().filter(|bin| bin.n > 0).map(Bin::gap).fold(0.0, f64::max),
            brier: answers.iter().map(square).sum::<f64>() / all.n as f64,
            bins: of_width,
        })
    }
}

/// The mean gap, by answers.
fn expected(bins: &[Bin]) -> f64 {
    let n: usize = bins.iter().map(|bin| bin.n).sum();
    bins.iter().map(|bin| bin.n as f64 * bin.gap()).sum::<f64>() / n.max(1) as f64
}

/// Bins of equal width of answers in the order of their confidence.
fn by_width(sorted: &[(f64, bool)], bins: usize) -> Vec<Bin> {
    let place = |conf: f64| ((conf * bins as f64).floor().max(0.0) as usize).min(bins - 1);
    let begins = |bin: usize| sorted.partition_point(|(conf, _)| place(*conf) < bin);
    let edge = |bin: usize| bin as f64 / bins as f64;
    let of = |bin| Bin::of(edge(bin), edge(bin + 1), &sorted[begins(bin)..begins(bin + 1)]);
    (0..bins).map(of).collect()
}

/// Bins of equally many answers, as far as that goes; fewer where answers are fewer.
fn by_mass(sorted: &[(f64, bool)], bins: usize) -> Vec<Bin> {
    let (n, bins) = (sorted.len(), bins.min(sorted.len()));
    let cut = |bin: usize| bin * n / bins;
    let of = |bin: usize| {
        let answers = &sorted[cut(bin)..cut(bin + 1)];
        Bin::of(answers[0].0, answers[answers.len() - 1].0, answers)
    };
    (0..bins).map(of).collect()
}

/// The Brier score of one whole distribution: the squared distance to the right answer's.
pub fn brier(probabilities: &[f64], right: usize) -> f64 {
    let wanted = |i: usize| f64::from(u8::from(i == right));
    probabilities.iter().enumerate().map(|(i, p)| (p - wanted(i)).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_papers_error() {
        let answers = [(0.95, true), (0.85, true), (0.85, false), (0.65, true)];
        let found = Calibration::of(&answers).unwrap();
        assert!((found.ece - 0.275).abs() < 1e-12, "{found:?}");
        assert!((found.mce - 0.35).abs() < 1e-12);
        assert_eq!(
            found.bins.iter().map(|bin| bin.n).collect::<Vec<_>>(),
            [0, 0, 0, 0, 0, 0, 1, 0, 2, 1]
        );
        assert_eq!((found.n, found.accuracy), (4, 0.75));
        let squares = 0.05f64.powi(2) + 0.15f64.powi(2) + 0.85f64.powi(2) + 0.35f64.powi(2);
        assert!((found.brier - squares / 4.0).abs() < 1e-12);
    }

    #[test]
    fn bins_hold_all_answers_ends_included() {
        let answers: Vec<(f64, bool)> = (0..=100).map(|i| (f64::from(i) / 100.0, true)).collect();
        for bins in [1, 3, 10, 1000] {
            let found = Calibration::in_bins(&answers, bins).unwrap();
            assert_eq!(found.bins.iter().map(|bin| bin.n).sum::<usize>(), 101, "{bins}");
        }
        assert_eq!(by_mass(&answers, 4).iter().map(|bin| bin.n).sum::<usize>(), 101);
        let even = Calibration::in_bins(&answers[..2], 10).unwrap();
        assert!((even.ece_mass - 0.995).abs() < 1e-12, "{even:?}");
    }

    #[test]
    fn what_cannot_be_judged_is_refused() {
        assert!(Calibration::of(&[]).is_err());
        assert!(Calibration::of(&[(1.5, true)]).is_err());
        assert!(Calibration::of(&[(f64::NAN, true)]).is_err());
        assert!(Calibration::in_bins(&[(0.5, true)], 0).is_err());
        assert!((brier(&[0.7, 0.2, 0.1], 1) - (0.49 + 0.64 + 0.01)).abs() < 1e-12);
    }
}
