//! What is made of a teacher's stored probabilities before a student learns them.
//!
//! | `calib` | |
//! |---|---|
//! | `none` | as they are |
//! | `temp_prob` | FIRST: `q_i = exp(p_i / c) / Σ_j exp(p_j / c)` over the stored tokens; of probabilities, not of logits |
//! | `temp_logit` | `q_i = p_i^(1/c) / Σ_j p_j^(1/c)` over the stored tokens, the usual temperature |
//! | `label_smoothing` | `smoothing_factor` goes from the likeliest token to the others, evenly |

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// What is made of stored probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Calib {
    /// Nothing.
    #[default]
    None,
    /// A softmax of the probabilities divided by `c`.
    TempProb,
    /// A softmax of the log-probabilities divided by `c`.
    TempLogit,
    /// A part of the likeliest goes to the others.
    LabelSmoothing,
}

impl Calib {
    /// Makes `q` of the probabilities in `p`, the likeliest first.
    pub fn apply(self, p: &mut [f64], c: f64, smoothing: f64) {
        match self {
            Calib::None => {}
            Calib::TempProb => softmax(p, c),
            Calib::TempLogit => {
                p.iter_mut().for_each(|p| *p = p.ln());
                softmax(p, c);
            }
            Calib::LabelSmoothing => {
                let others = p.len().saturating_sub(1);
                if let Some((first, rest)) = p.split_first_mut().filter(|_| others > 0) {
                    // No more than there is.
                    let moved = smoothing.min(*first);
                    *first -= moved;
                    rest.iter_mut().for_each(|p| *p += moved / others as f64);
                }
            }
        }
    }

    pub(super) fn check(self, c: f64, smoothing: f64) -> Result<()> {
        if !(c > 0.0 && c.is_finite()) {
            return Err(Error::input(
                "train.loss.distil.c",
                format!("expected a number above 0, got {c}"),
            )
            .hint("`luthier teach --fit` finds it on held-out data; about 0.3 is usual"));
        }
        if (0.0..1.0).contains(&smoothing) {
            return Ok(());
        }
        let what = format!("expected a share from 0 to below 1, got {smoothing}");
        Err(Error::input("train.loss.distil.smoothing_factor", what))
    }
}

/// Softmax of `p / c`, in place.
pub(super) fn softmax(p: &mut [f64], c: f64) {
    let top = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for p in p.iter_mut() {
        *p = ((*p - top) / c).exp();
        sum += *p;
    }
    p.iter_mut().for_each(|p| *p /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: [f64; 5] = [0.80, 0.08, 0.05, 0.03, 0.02];

    fn made(calib: Calib, c: f64) -> [f64; 5] {
        let mut q = P;
        calib.apply(&mut q, c, 0.1);
        q
    }

    fn near(got: &[f64], want: &[f64]) {
        let apart = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 5e-5, "{got:?} {want:?}");
    }

    #[test]
    fn the_papers_numbers() {
        near(&made(Calib::TempProb, 1.0), &[0.3472, 0.1690, 0.1640, 0.1607, 0.1591]);
        near(&made(Calib::TempProb, 0.3), &[0.7554, 0.0685, 0.0620, 0.0580, 0.0561]);
        assert!((made(Calib::TempProb, 0.1)[0] - 0.9978).abs() < 5e-5);
        let mut one_hot = [1.0, 0.0, 0.0, 0.0, 0.0];
        Calib::TempProb.apply(&mut one_hot, 1.0, 0.0);
        assert!((one_hot[0] - 0.4046).abs() < 5e-5);
        let mut one_hot = [1.0, 0.0, 0.0, 0.0, 0.0];
        Calib::TempProb.apply(&mut one_hot, 0.3607, 0.0);
        assert!((one_hot[0] - 0.8).abs() < 5e-5);
    }

    #[test]
    fn the_order_stays_and_the_ends_are_hard_and_even() {
        for c in [0.05, 0.3, 1.0, 5.0] {
            for calib in [Calib::TempProb, Calib::TempLogit] {
                let q = made(calib, c);
                assert!(q.windows(2).all(|w| w[0] > w[1]), "{calib:?} {c}: {q:?}");
                assert!((q.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
        }
        near(&made(Calib::TempProb, 1e-3), &[1.0, 0.0, 0.0, 0.0, 0.0]);
        near(&made(Calib::TempProb, 1e6), &[0.2; 5]);
        near(&made(Calib::TempLogit, 1.0), &P.map(|p| p / 0.98));
        near(&made(Calib::LabelSmoothing, 1.0), &[0.70, 0.105, 0.075, 0.055, 0.045]);
        assert_eq!(made(Calib::None, 0.3), P);
    }
}
