//! How far a distribution has gone from another: `KL(p ‖ r) = Σ p (log p − log r)`, exact, with a gradient
//! of its own, `p_j·(log p_j − log r_j − KL)`.

use candle_core::{D, Tensor};
use luthier_core::Result;

use super::{log_softmax, probabilities};
use crate::rows::{self, RowWise};

/// `KL(p ‖ r)` of each row, `(m,)`; no gradient reaches `r`, which is given by its logits.
pub fn divergence(logits_mv: &Tensor, other_mv: &Tensor) -> Result<Tensor> {
    Ok(rows::beside(logits_mv, other_mv, Divergence)?.squeeze(1)?)
}

/// [`divergence`] in plain tensor operations.
pub fn naive_divergence(logits_mv: &Tensor, other_mv: &Tensor) -> Result<Tensor> {
    let (log_p_mv, _) = log_softmax(logits_mv)?;
    let (log_r_mv, _) = log_softmax(&other_mv.detach())?;
    Ok((log_p_mv.exp()? * (log_p_mv - log_r_mv)?)?.sum(D::Minus1)?)
}

struct Divergence;

/// `log p − log r` of token `j`, with the two sums of exponentials.
fn apart(x: f32, other: f32, lse: f64, lse_other: f64) -> f64 {
    (f64::from(x) - lse) - (f64::from(other) - lse_other)
}

/// `KL(p ‖ r)` of a row, with the two sums; `e` holds `p` afterwards.
fn row_divergence(x: &[f32], other: &[f32], e: &mut Vec<f32>) -> (f64, f64, f64) {
    let (lse_other, _) = probabilities(other, e);
    let (lse, _) = probabilities(x, e);
    let given = e.iter().zip(x).zip(other).filter(|((p, _), _)| **p > 0.0);
    let kl = given.map(|((p, x), o)| f64::from(*p) * apart(*x, *o, lse, lse_other)).sum::<f64>();
    (if kl < 0.0 { 0.0 } else { kl }, lse, lse_other)
}

impl RowWise for Divergence {
    const NAME: &'static str = "divergence";
    const NUMBERS: usize = 1;

    fn check(&self, _m: usize, _v: usize) -> candle_core::Result<()> {
        Ok(())
    }

    fn row(&self, _: usize, x: &[f32], other: &[f32], out: &mut [f32]) {
        out[0] = row_divergence(x, other, &mut Vec::with_capacity(x.len())).0 as f32;
    }

    fn row_backward(&self, _: usize, x: &[f32], other: &[f32], g: &[f32], d: &mut [f32]) {
        let mut e = Vec::with_capacity(x.len());
        let (kl, lse, lse_other) = row_divergence(x, other, &mut e);
        for (((d, p), x), o) in d.iter_mut().zip(&e).zip(x).zip(other) {
            if *p > 0.0 {
                let more = apart(*x, *o, lse, lse_other) - kl;
                *d = (f64::from(g[0]) * f64::from(*p) * more) as f32;
            }
        }
    }
}
