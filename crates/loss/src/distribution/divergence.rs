//! How far a distribution has gone from another: `KL(p ‖ r) = Σ p (log p − log r)`, exact, with a gradient
//! of its own, `p_j·(log p_j − log r_j − KL)`.

use candle_core::{CpuStorage, CustomOp2, D, Layout, Shape, Tensor, bail};
use luthier_core::Result;
use luthier_kernels::{tensor, threads};

use super::{log_softmax, probabilities};

/// `KL(p ‖ r)` of each row, `(m,)`; no gradient reaches `r`, which is given by its logits.
pub fn divergence(logits_mv: &Tensor, other_mv: &Tensor) -> Result<Tensor> {
    let other_mv = other_mv.detach().contiguous()?;
    Ok(logits_mv.contiguous()?.apply_op2(&other_mv, Divergence)?)
}

/// [`divergence`] in plain tensor operations.
pub fn naive_divergence(logits_mv: &Tensor, other_mv: &Tensor) -> Result<Tensor> {
    let (log_p_mv, _) = log_softmax(logits_mv)?;
    let (log_r_mv, _) = log_softmax(&other_mv.detach())?;
    Ok((log_p_mv.exp()? * (log_p_mv - log_r_mv)?)?.sum(D::Minus1)?)
}

struct Divergence;

impl Divergence {
    fn check(logits: &Shape, other: &Shape) -> candle_core::Result<(usize, usize)> {
        match logits.dims2()? {
            same if other.dims2()? == same => Ok(same),
            (m, v) => bail!("divergence: logits ({m}, {v}), the other's {other:?}"),
        }
    }
}

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

impl CustomOp2 for Divergence {
    fn name(&self) -> &'static str {
        "divergence"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (m, v) = Divergence::check(l1.shape(), l2.shape())?;
        let (logits, other) = (tensor::slice(s1, l1)?, tensor::slice(s2, l2)?);
        let mut out = vec![0f32; m];
        let given = logits.chunks_exact(v).zip(other.chunks_exact(v));
        threads::for_each(out.iter_mut().zip(given).collect(), |(out, (x, other))| {
            *out = row_divergence(x, other, &mut Vec::with_capacity(v)).0 as f32;
        });
        Ok((CpuStorage::F32(out), m.into()))
    }

    fn bwd(
        &self,
        logits_mv: &Tensor,
        other_mv: &Tensor,
        _res: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (m, v) = Divergence::check(logits_mv.shape(), other_mv.shape())?;
        let mut d = vec![0f32; m * v];
        tensor::with(logits_mv, |logits| {
            tensor::with(other_mv, |other| {
                tensor::with(g, |g| {
                    let given = logits.chunks_exact(v).zip(other.chunks_exact(v)).zip(g);
                    let rows = d.chunks_exact_mut(v).zip(given).collect();
                    threads::for_each(rows, |(d, ((x, other), g))| {
                        let mut e = Vec::with_capacity(v);
                        let (kl, lse, lse_other) = row_divergence(x, other, &mut e);
                        for (((d, p), x), o) in d.iter_mut().zip(&e).zip(x).zip(other) {
                            if *p > 0.0 {
                                let more = apart(*x, *o, lse, lse_other) - kl;
                                *d = (f64::from(*g) * f64::from(*p) * more) as f32;
                            }
                        }
                    });
                })
            })
        })???;
        Ok((Some(tensor::from_vec(d, (m, v))?), None))
    }
}
