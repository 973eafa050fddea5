//! Calibrated confidence: how often answers of some confidence were right, as a function that never
//! falls (isotonic regression, Zadrozny and Elkan 2002).
//!
//! Of all such functions the one nearest to the outcomes in least squares, by pooling neighbours that
//! stand in the wrong order; straight between what is known, and level beyond. **Departures**: none from
//! scikit-learn's with `out_of_bounds = "clip"`.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// A function from a confidence to a better one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Isotonic {
    /// Confidences, rising, and what is made of them, never falling.
    pub points: Vec<(f64, f64)>,
}

/// Answers that share one value.
struct Block {
    from: f64,
    to: f64,
    sum: f64,
    n: f64,
}

impl Isotonic {
    /// Fits answers of known outcome.
    pub fn fit(answers: &[(f64, bool)]) -> Result<Self> {
        if answers.is_empty() {
            return Err(Error::input("calibration", "there is no answer to learn from"));
        }
        if let Some((conf, _)) = answers.iter().find(|(conf, _)| !conf.is_finite()) {
            return Err(Error::failed("calibration", format!("a confidence is {conf}")));
        }
        let mut sorted = answers.to_vec();
        sorted.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let mut blocks: Vec<Block> = Vec::new();
        for same in sorted.chunk_by(|(a, _), (b, _)| a == b) {
            let right = same.iter().filter(|(_, right)| *right).count() as f64;
            let (at, n) = (same[0].0, same.len() as f64);
            blocks.push(Block { from: at, to: at, sum: right, n });
            // Neighbours that fall are one.
            while let [.., before, last] = blocks.as_mut_slice() {
                if before.sum * last.n < last.sum * before.n {
                    break;
                }
                before.to = last.to;
                before.sum += last.sum;
                before.n += last.n;
                blocks.pop();
            }
        }
        let ends = |block: &Block| {
            let value = block.sum / block.n;
            let both = [(block.from, value), (block.to, value)];
            both.into_iter().take(if block.from == block.to { 1 } else { 2 }).collect::<Vec<_>>()
        };
        Ok(Isotonic { points: blocks.iter().flat_map(ends).collect() })
    }

    /// The calibrated confidence.
    pub fn of(&self, confidence: f64) -> f64 {
        let above = self.points.partition_point(|(at, _)| *at < confidence);
        match (above.checked_sub(1).and_then(|i| self.points.get(i)), self.points.get(above)) {
            (Some((x0, y0)), Some((x1, y1))) => y0 + (y1 - y0) * (confidence - x0) / (x1 - x0),
            (Some((_, y)), None) | (None, Some((_, y))) => *y,
            (None, None) => confidence,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_the_wrong_order_are_pooled() {
        let answers = [(0.2, false), (0.4, true), (0.6, false), (0.8, true), (0.9, true)];
        let fit = Isotonic::fit(&answers).unwrap();
        assert_eq!(fit.points, [(0.2, 0.0), (0.4, 0.5), (0.6, 0.5), (0.8, 1.0), (0.9, 1.0)]);
        let got = [0.0, 0.3, 0.5, 0.7, 1.0].map(|conf| fit.of(conf));
        let want = [0.0, 0.25, 0.5, 0.75, 1.0];
        got.iter().zip(want).for_each(|(a, b)| assert!((a - b).abs() < 1e-12, "{got:?}"));
        assert!(Isotonic::fit(&[]).is_err());
        let same = Isotonic::fit(&[(0.5, true), (0.5, false)]).unwrap();
        assert_eq!(same.points, [(0.5, 0.5)]);
    }
}
