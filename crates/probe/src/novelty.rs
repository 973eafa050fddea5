//! Which texts tuning has made likelier (CGE's detection score; Isonuma and Titov 2025, paper 17).
//!
//! `S(x) = (log p_tuned(x) − log p_base(x)) / tokens`: texts of a kind that only the tuning data held
//! stand above texts that both models know. Without the division it is a beam's total in contrastive
//! beam sampling. **Departures**: token weights other than 0 and 1 weigh the sum and its divisor.

use luthier_core::{Error, Result};
use serde::Serialize;

use crate::metric::RowNll;

/// How much likelier tuning has made one row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Novelty {
    /// Index of the example in its table.
    pub example: usize,
    /// `S`: nats per token that the tuned model is ahead of its base.
    pub score: f64,
    /// Mean log-probability of a token, by the tuned model.
    pub tuned: f64,
    /// The same by the base.
    pub base: f64,
}

/// Compares what two models found of the same rows.
pub fn novelty(tuned: &[RowNll], base: &[RowNll]) -> Result<Vec<Novelty>> {
    let same = |(t, b): (&RowNll, &RowNll)| (t.example, t.tokens) == (b.example, b.tokens);
    if tuned.len() != base.len() || !tuned.iter().zip(base).all(same) {
        let what = format!("{} rows of the tuned model, {} of the base", tuned.len(), base.len());
        return Err(Error::failed("novelty", format!("both must have read the same: {what}")));
    }
    let one = |(t, b): (&RowNll, &RowNll)| {
        let (tuned, base) = (-t.sum / t.weight, -b.sum / b.weight);
        Novelty { example: t.example, score: tuned - base, tuned, base }
    };
    Ok(tuned.iter().zip(base).map(one).collect())
}

/// The probability that a number of `above` is larger than one of `below`, equal ones counting half;
/// not a number where either is empty.
pub fn auc(above: &[f64], below: &[f64]) -> f64 {
    let mut all: Vec<(f64, bool)> = above.iter().map(|x| (*x, true)).collect();
    all.extend(below.iter().map(|x| (*x, false)));
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut smaller, mut won) = (0.0, 0.0);
    for equal in all.chunk_by(|a, b| a.0 == b.0) {
        let of_above = equal.iter().filter(|(_, above)| *above).count() as f64;
        let of_below = equal.len() as f64 - of_above;
        won += of_above * (smaller + 0.5 * of_below);
        smaller += of_below;
    }
    won / (above.len() as f64 * below.len() as f64)
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;

    use super::*;

    #[test]
    fn the_score_is_a_difference_of_means() {
        let row =
            |example, sum, tokens: usize| RowNll { example, sum, weight: tokens as f64, tokens };
        let tuned = [row(0, 6.0, 3), row(4, 1.0, 2)];
        let base = [row(0, 12.0, 3), row(4, 0.5, 2)];
        let found = novelty(&tuned, &base).unwrap();
        assert_eq!(found[0], Novelty { example: 0, score: 2.0, tuned: -2.0, base: -4.0 });
        assert_eq!((found[1].example, found[1].score), (4, -0.25));
        assert!(novelty(&tuned, &base[..1]).is_err());
        assert!(novelty(&tuned, &[base[0], row(5, 0.5, 2)]).is_err());
    }

    #[test]
    fn the_area_is_the_share_of_pairs_that_are_in_order() {
        let mut rng = Seed(3).rng();
        let mut some = |n: usize, shift: f64| -> Vec<f64> {
            (0..n).map(|_| (4.0 * (rng.normal() + shift)).round()).collect()
        };
        let (above, below) = (some(40, 0.7), some(31, 0.0));
        let pair = |a: &f64, b: &f64| if a > b { 1.0 } else { 0.5 * f64::from(u8::from(a == b)) };
        let pairs: f64 = above.iter().flat_map(|a| below.iter().map(move |b| pair(a, b))).sum();
        let want = pairs / (40.0 * 31.0);
        assert!((auc(&above, &below) - want).abs() < 1e-12 && want > 0.6 && want < 0.9);
        assert_eq!(auc(&[2.0, 3.0], &[0.0, 1.0]), 1.0);
        assert_eq!(auc(&[1.0], &[1.0, 1.0]), 0.5);
        assert!(auc(&[], &[1.0]).is_nan());
    }
}
