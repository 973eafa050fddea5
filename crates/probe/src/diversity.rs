//! Why the average of two models may be right where both are wrong (Lin et al. 2024, paper 48).
//!
//! Per example the correctness of two models and of their average is one of eight cells. Of interest
//! are `FFT`, the share where both are wrong and the average is right, and `TTF`, the other way round:
//! `FFT − TTF` is what averaging adds by itself. [`votes`] has the paper's theory of where it comes
//! from; [`calibration`] says whether one model drowns the other out.
//!
//! **Departures**: none.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

pub mod votes;

pub use votes::{Average, Pair, Votes};

/// Shares of examples by who is right.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cells {
    /// By `4 · first + 2 · second + average`, where right is 1.
    pub shares: [f64; 8],
}

impl Cells {
    /// Of three models' verdicts on the same examples.
    pub fn of(first: &[bool], second: &[bool], average: &[bool]) -> Result<Self> {
        let n = first.len();
        if n == 0 || second.len() != n || average.len() != n {
            let what = format!(
                "expected the same examples for all three, got {n}, {} and {}",
                second.len(),
                average.len()
            );
            return Err(Error::input("diversity", what));
        }
        let mut counts = [0usize; 8];
        for ((a, b), c) in first.iter().zip(second).zip(average) {
            counts[4 * usize::from(*a) + 2 * usize::from(*b) + usize::from(*c)] += 1;
        }
        Ok(Cells { shares: counts.map(|count| count as f64 / n as f64) })
    }

    /// Both are wrong, their average is right.
    pub fn false_false_true(&self) -> f64 {
        self.shares[0b001]
    }

    /// Both are right, their average is wrong.
    pub fn true_true_false(&self) -> f64 {
        self.shares[0b110]
    }

    /// What averaging adds where the two agree.
    pub fn net(&self) -> f64 {
        self.false_false_true() - self.true_true_false()
    }

    /// How much more often the average is right than the better of the two.
    pub fn gain(&self) -> f64 {
        let right = |bit: usize| {
            let of = self.shares.iter().enumerate().filter(|(cell, _)| cell & bit != 0);
            of.map(|(_, share)| share).sum::<f64>()
        };
        right(1) - right(4).max(right(2))
    }
}

/// How sure a model is, and how sure it may be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The mean of the largest likelihood.
    pub confidence: f64,
    /// The share of right answers.
    pub accuracy: f64,
    /// The expected calibration error.
    pub ece: f64,
}

/// Bins of the calibration error where nobody says otherwise.
pub const BINS: usize = 15;

/// From the likelihoods of all answers, example by example, and the right answers.
pub fn calibration(likelihoods_nc: &[f32], answers: &[u32], bins: usize) -> Result<Calibration> {
    let classes = likelihoods_nc.len().checked_div(answers.len()).unwrap_or(0);
    if classes == 0 || classes * answers.len() != likelihoods_nc.len() {
        let what = format!(
            "{} likelihoods are not those of {} examples",
            likelihoods_nc.len(),
            answers.len()
        );
        return Err(Error::input("calibration", what));
    }
    let best =
        |row: &[f32]| (1..classes).fold(0, |best, c| if row[c] > row[best] { c } else { best });
    let rows = likelihoods_nc.chunks_exact(classes).zip(answers).map(|(row, answer)| {
        let best = best(row);
        // The sum of a softmax may be off by a rounding.
        (f64::from(row[best]).min(1.0), best == *answer as usize)
    });
    let (confidences, hits): (Vec<f64>, Vec<bool>) = rows.unzip();
    let (n, right) = (answers.len() as f64, hits.iter().filter(|hit| **hit).count() as f64);
    Ok(Calibration {
        confidence: confidences.iter().sum::<f64>() / n,
        accuracy: right / n,
        ece: ece(&confidences, &hits, bins)?,
    })
}

/// The expected calibration error: over bins of equal width, each of which counts by its examples, how
/// far the share of hits is from the mean confidence.
pub fn ece(confidences: &[f64], hits: &[bool], bins: usize) -> Result<f64> {
    let n = confidences.len();
    if n == 0 || hits.len() != n || bins == 0 {
        let what = format!("{n} confidences, {} verdicts, {bins} bins", hits.len());
        return Err(Error::input("calibration", what));
    }
    if let Some(wrong) = confidences.iter().find(|c| !(0.0..=1.0).contains(*c)) {
        return Err(Error::input("calibration", format!("{wrong} is no likelihood")));
    }
    let mut gaps = vec![0.0; bins];
    for (confidence, hit) in confidences.iter().zip(hits) {
        // A bin has its upper edge, as torchmetrics and the usual scripts have it.
        let bin = ((confidence * bins as f64).ceil() as usize).clamp(1, bins) - 1;
        gaps[bin] += confidence - f64::from(u8::from(*hit));
    }
    Ok(gaps.iter().map(|gap| gap.abs()).sum::<f64>() / n as f64)
}
