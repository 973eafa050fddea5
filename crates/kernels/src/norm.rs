//! Root-mean-square normalisation over the last dimension.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::{math::dot, simd::vectorised, tensor};

vectorised! {
    fn forward_row(x: &[f32], w: &[f32], r: f32, out: &mut [f32]) {
        for ((x, w), o) in x.iter().zip(w).zip(out) {
            *o = w * (x * r);
        }
    }
}

vectorised! {
    // dx = r·(w∘dy) − x·r³/d·Σ(w∘dy∘x)
    fn backward_row(x: &[f32], w: &[f32], dy: &[f32], r: f32, dx: &mut [f32]) {
        for ((w, dy), t) in w.iter().zip(dy).zip(&mut *dx) {
            *t = w * dy;
        }
        let inner = dot(x, dx) * r * r * r / x.len() as f32;
        for (x, t) in x.iter().zip(dx) {
            *t = *t * r - x * inner;
        }
    }
}

fn inverse_rms(x: &[f32], eps: f64) -> f32 {
    (1.0 / (f64::from(dot(x, x)) / x.len() as f64 + eps).sqrt()) as f32
}

fn forward(x: &[f32], w: &[f32], eps: f64) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(w.len())
        .zip(x.par_chunks(w.len()))
        .for_each(|(o, x)| forward_row(x, w, inverse_rms(x, eps), o));
    out
}

fn grad_x(x: &Tensor, w: &Tensor, dy: &Tensor, eps: f64) -> Result<Tensor> {
    let mut out = vec![0f32; x.elem_count()];
    tensor::with(x, |x| {
        tensor::with(w, |w| {
            tensor::with(dy, |dy| {
                out.par_chunks_mut(w.len())
                    .zip(x.par_chunks(w.len()).zip(dy.par_chunks(w.len())))
                    .for_each(|(dx, (x, dy))| backward_row(x, w, dy, inverse_rms(x, eps), dx));
            })
        })
    })???;
    tensor::from_vec(out, x.shape().clone())
}

struct FrozenNorm {
    w_d: Tensor,
    eps: f64,
}

impl CustomOp1 for FrozenNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = tensor::slice(s, l)?;
        let out = tensor::with(&self.w_d, |w| forward(x, w, self.eps))?;
        Ok((CpuStorage::F32(out), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad_x(x, &self.w_d, dy, self.eps)?))
    }
}

struct LearnedNorm {
    eps: f64,
}

impl CustomOp2 for LearnedNorm {
    fn name(&self) -> &'static str {
        "rms_norm_learned"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = forward(tensor::slice(s1, l1)?, tensor::slice(s2, l2)?, self.eps);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _res: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let d = w.elem_count();
        let mut dw = vec![0f32; d];
        tensor::with(x, |x| {
            tensor::with(dy, |dy| {
                for (x, dy) in x.chunks_exact(d).zip(dy.chunks_exact(d)) {
                    let r = inverse_rms(x, self.eps);
                    for ((dw, x), dy) in dw.iter_mut().zip(x).zip(dy) {
                        *dw += dy * x * r;
                    }
                }
            })
        })??;
        Ok((Some(grad_x(x, w, dy, self.eps)?), Some(tensor::from_vec(dw, d)?)))
    }
}

/// `w · x / rms(x)` over the last dimension (Zhang & Sennrich 2019). The gradient of `w_d` is
/// computed only if it is a variable.
pub fn rms_norm(x: &Tensor, w_d: &Tensor, eps: f64) -> Result<Tensor> {
    let x = x.contiguous()?;
    if w_d.track_op() {
        x.apply_op2(w_d, LearnedNorm { eps })
    } else {
        x.apply_op1(FrozenNorm { w_d: w_d.clone(), eps })
    }
}

/// [`rms_norm`] in plain tensor operations.
pub fn naive_rms_norm(x: &Tensor, w_d: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(w_d)
}
