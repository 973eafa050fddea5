//! Root-mean-square normalisation over the last dimension.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor};

use crate::{
    gemm::Output,
    math::{axpy, dot},
    num::{Numbers, Precision},
    pool::{CHUNK, Kept, Part, read},
    simd::vectorised,
    tensor, threads,
};

vectorised! {
    fn forward_row(x: &[f32], w: &[f32], r: f32, out: &mut [f32]) {
        for ((x, w), o) in x.iter().zip(w).zip(out) {
            *o = w * (x * r);
        }
    }
}

vectorised! {
    // Σ w·dy·x in sixteen fixed lanes.
    fn dot3(x: &[f32], w: &[f32], dy: &[f32]) -> f32 {
        let n = x.len();
        let (w, dy) = (&w[..n], &dy[..n]);
        let mut lanes = [0f32; 16];
        let whole = n - n % 16;
        for at in (0..whole).step_by(16) {
            for l in 0..16 {
                lanes[l] += x[at + l] * (w[at + l] * dy[at + l]);
            }
        }
        let rest: f32 = (whole..n).map(|i| x[i] * (w[i] * dy[i])).sum();
        lanes.iter().sum::<f32>() + rest
    }
}

vectorised! {
    // dx += r·(w∘dy) − x·inner
    fn backward_row(x: &[f32], w: &[f32], dy: &[f32], r: f32, inner: f32, dx: &mut [f32]) {
        for (((x, w), dy), dx) in x.iter().zip(w).zip(dy).zip(dx) {
            *dx += w * dy * r - x * inner;
        }
    }
}

vectorised! {
    fn scale_row(x: &[f32], dy: &[f32], r: f32, dw: &mut [f32]) {
        for ((x, dy), dw) in x.iter().zip(dy).zip(dw) {
            *dw += dy * x * r;
        }
    }
}

fn inverse_rms(x: &[f32], eps: f64) -> f32 {
    (1.0 / (f64::from(dot(x, x)) / x.len() as f64 + eps).sqrt()) as f32
}

/// Numbers in as many whole rows as one task handles.
fn piece(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1) * width.max(1)
}

fn forward_rows(x: &[f32], w: &[f32], eps: f64, out: &mut [f32]) {
    for (x, o) in x.chunks_exact(w.len()).zip(out.chunks_exact_mut(w.len())) {
        forward_row(x, w, inverse_rms(x, eps), o);
    }
}

/// `w · x / rms(x)` over rows as wide as `w`.
pub fn forward(x: &[f32], w: &[f32], eps: f64, out: &mut [f32]) {
    let size = piece(w.len());
    let tasks = out.chunks_mut(size).zip(x.chunks(size)).collect();
    threads::for_each(tasks, |(out, x): (&mut [f32], &[f32])| forward_rows(x, w, eps, out));
}

/// [`forward`] from and to kept numbers.
pub fn kept(precision: Precision, x: Numbers, w: &[f32], eps: f64) -> Kept {
    let (mut out, size, len) = (Kept::room(precision, x.len()), piece(w.len()), x.len());
    let tasks = out.parts(size).into_iter().enumerate().collect();
    threads::for_each(tasks, |(i, mut part): (usize, Part)| {
        let range = i * size..len.min((i + 1) * size);
        read(x, range, |x| part.fill(|out| forward_rows(x, w, eps, out)));
    });
    out
}

/// Sets or adds the gradient of `x` given `dy`.
pub fn backward(x: Numbers, w: &[f32], eps: f64, dy: &[f32], output: Output, dx: &mut [f32]) {
    let (size, d) = (piece(w.len()), w.len());
    let tasks = dx.chunks_mut(size).zip(dy.chunks(size)).enumerate().collect();
    threads::for_each(tasks, |(i, (dx, dy)): (usize, (&mut [f32], &[f32]))| {
        if output == Output::Set {
            dx.fill(0.0);
        }
        read(x, i * size..i * size + dy.len(), |x| {
            let rows = x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(d));
            for ((x, dy), dx) in rows {
                let r = inverse_rms(x, eps);
                backward_row(x, w, dy, r, dot3(x, w, dy) * r * r * r / d as f32, dx);
            }
        });
    });
}

/// The gradient of the `d` scales: a sum over all rows, in an order that only their number decides.
pub fn grad_scale(x: Numbers, d: usize, eps: f64, dy: &[f32]) -> Vec<f32> {
    let size = piece(d);
    let mut parts = vec![0f32; dy.len().div_ceil(size).max(1) * d];
    let tasks = parts.chunks_mut(d.max(1)).zip(dy.chunks(size)).enumerate().collect();
    threads::for_each(tasks, |(i, (dw, dy)): (usize, (&mut [f32], &[f32]))| {
        read(x, i * size..i * size + dy.len(), |x| {
            for (x, dy) in x.chunks_exact(d).zip(dy.chunks_exact(d)) {
                scale_row(x, dy, inverse_rms(x, eps), dw);
            }
        });
    });
    let (sum, rest) = parts.split_at_mut(d);
    rest.chunks_exact(d.max(1)).for_each(|part| axpy(1.0, part, sum));
    parts.truncate(d);
    parts
}

fn grad_x(x: &Tensor, w: &Tensor, dy: &Tensor, eps: f64) -> Result<Tensor> {
    let mut out = vec![0f32; x.elem_count()];
    tensor::with(x, |x| {
        tensor::with(w, |w| {
            tensor::with(dy, |dy| backward(x.into(), w, eps, dy, Output::Add, &mut out))
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
        let mut out = vec![0f32; x.len()];
        tensor::with(&self.w_d, |w| forward(x, w, self.eps, &mut out))?;
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
        let x = tensor::slice(s1, l1)?;
        let mut out = vec![0f32; x.len()];
        forward(x, tensor::slice(s2, l2)?, self.eps, &mut out);
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
        let dw = tensor::with(x, |x| tensor::with(dy, |dy| grad_scale(x.into(), d, self.eps, dy)))?;
        Ok((Some(grad_x(x, w, dy, self.eps)?), Some(tensor::from_vec(dw?, d)?)))
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
