//! Log-probabilities of targets through a large head, without ever storing the logits.
//!
//! The vocabulary is walked in chunks with a running maximum, as attention walks its keys. Since
//! `∂ log p(t) / ∂h = w_t − Σ_v p_v w_v`, the forward pass can accumulate the expected head row
//! `Σ_v p_v w_v` beside the normaliser; the backward then needs no product with the head at all.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::{
    gemm::{Output, Term, View, product},
    linear::Frozen,
    math::{exp, exp_sum, max, scale},
    num::Precision,
    pool::Buffer,
    tensor, threads,
};

/// Tokens handled by one task.
const TOKENS: usize = 128;
/// Head rows per chunk: 128 × 512 logits are 256 KiB.
const CHUNK: usize = 512;

/// A head's rows `(v, d)` and the arithmetic of products with them.
#[derive(Clone, Copy)]
struct Rows<'a> {
    view: View<'a>,
    precision: Precision,
    v: usize,
    d: usize,
}

/// What the forward keeps of each token.
struct Saved {
    /// log Σ exp(logit).
    lse_m: Vec<f32>,
    /// Σ_v p_v w_v, `(m, d)`, when a gradient will be asked for.
    mean_md: Vec<f32>,
}

/// One task: logp of up to [`TOKENS`] tokens.
fn forward_block(
    h: &[f32],
    w: Rows,
    targets: &[u32],
    logp: &mut [f32],
    lse: &mut [f32],
    mut mean: Option<&mut [f32]>,
) {
    let (m, Rows { v, d, precision, .. }) = (targets.len(), w);
    let mut logits = Buffer::new(m * CHUNK.min(v));
    let mut top = vec![f32::NEG_INFINITY; m];
    let mut sum = vec![0f32; m];
    for v0 in (0..v).step_by(CHUNK) {
        let (c, w) = (CHUNK.min(v - v0), w.view.from(v0, 0));
        let term = Term { a: View::rows(h, d), b: w.t(), k: d };
        product(precision, m, c, &[term], Output::Set, &mut logits, c);
        for t in 0..m {
            let row = &mut logits[t * c..(t + 1) * c];
            let target = targets[t] as usize;
            if (v0..v0 + c).contains(&target) {
                logp[t] = row[target - v0];
            }
            let new_top = top[t].max(max(row));
            let shrink = if top[t] == f32::NEG_INFINITY { 0.0 } else { exp(top[t] - new_top) };
            sum[t] = sum[t] * shrink + exp_sum(row, 1.0, new_top);
            top[t] = new_top;
            // Most chunks do not raise the maximum.
            if let Some(mean) = mean.as_deref_mut().filter(|_| shrink != 1.0) {
                scale(&mut mean[t * d..(t + 1) * d], shrink);
            }
        }
        if let Some(mean) = mean.as_deref_mut() {
            let term = Term { a: View::rows(&logits, c), b: w, k: c };
            product(precision, m, d, &[term], Output::Add, mean, d);
        }
    }
    for t in 0..m {
        lse[t] = top[t] + sum[t].ln();
        logp[t] -= lse[t];
        if let Some(mean) = mean.as_deref_mut() {
            scale(&mut mean[t * d..(t + 1) * d], 1.0 / sum[t]);
        }
    }
}

fn forward(h: &[f32], w: Rows, targets: &[u32], keep: bool) -> (Vec<f32>, Saved) {
    let (m, d) = (targets.len(), w.d);
    let (mut logp, mut lse_m) = (vec![0f32; m], vec![0f32; m]);
    let mut mean_md = vec![0f32; if keep { m * d } else { 0 }];
    let mut means = mean_md.chunks_mut(TOKENS * d);
    let tasks = logp.chunks_mut(TOKENS).zip(lse_m.chunks_mut(TOKENS));
    let tasks = tasks.zip(h.chunks(TOKENS * d).zip(targets.chunks(TOKENS)));
    let tasks = tasks.map(|task| (task, means.next())).collect();
    threads::for_each(tasks, |(((logp, lse), (h, targets)), mean)| {
        forward_block(h, w, targets, logp, lse, mean);
    });
    (logp, Saved { lse_m, mean_md })
}

impl Saved {
    /// `dh = g·(w_target − Σ p w)`.
    fn grad_hidden(&self, w: Rows, targets: &[u32], g: &[f32]) -> Vec<f32> {
        let mut dh = vec![0f32; targets.len() * w.d];
        for (t, dh) in dh.chunks_exact_mut(w.d).enumerate() {
            w.view.read_row(targets[t] as usize, dh);
            for (dh, mean) in dh.iter_mut().zip(&self.mean_md[t * w.d..]) {
                *dh = g[t] * (*dh - mean);
            }
        }
        dh
    }

    /// Adds `dw_v = Σ_t g_t·(1[v = target] − p_tv)·h_t`, with `p` computed again chunk by chunk.
    fn grad_head(&self, h: &[f32], w: Rows, targets: &[u32], g: &[f32], dw: &mut [f32]) {
        let (m, Rows { d, precision, .. }) = (targets.len(), w);
        let tasks = dw.chunks_mut(CHUNK * d).enumerate().collect();
        threads::for_each(tasks, |(i, dw): (usize, &mut [f32])| {
            let (v0, c) = (i * CHUNK, dw.len() / d);
            let w = w.view.from(v0, 0);
            let mut p = Buffer::new(TOKENS.min(m) * c);
            for t0 in (0..m).step_by(TOKENS) {
                let b = TOKENS.min(m - t0);
                let h = View::rows(&h[t0 * d..], d);
                product(precision, b, c, &[Term { a: h, b: w.t(), k: d }], Output::Set, &mut p, c);
                for (t, row) in p.chunks_exact_mut(c).take(b).enumerate() {
                    exp_sum(row, 1.0, self.lse_m[t0 + t]);
                    scale(row, -g[t0 + t]);
                    let target = targets[t0 + t] as usize;
                    if (v0..v0 + c).contains(&target) {
                        row[target - v0] += g[t0 + t];
                    }
                }
                let term = Term { a: View::rows(&p, c).t(), b: h, k: b };
                product(precision, c, d, &[term], Output::Add, dw, d);
            }
        });
    }
}

/// Log-probabilities of targets without a graph, and what their gradients need.
pub struct Pass {
    h_md: Vec<f32>,
    targets_m: Vec<u32>,
    saved: Saved,
}

impl Pass {
    /// `log softmax(h wᵀ)[target]` for one target per row of `h_md`; `keep`: a gradient of `h_md`
    /// will be asked for.
    pub fn new(
        head: HeadWeight,
        h_md: Vec<f32>,
        targets_m: &[u32],
        keep: bool,
    ) -> Result<(Vec<f32>, Pass)> {
        let (logp, saved) = head.with(|w| {
            check(h_md.len() / w.d, w.d, w.v, w.d, targets_m)?;
            Result::Ok(forward(&h_md, w, targets_m, keep))
        })??;
        Ok((logp, Pass { h_md, targets_m: targets_m.to_vec(), saved }))
    }

    /// The gradient of `h_md`, `(m, d)`, from those of the log-probabilities.
    pub fn grad_hidden(&self, head: HeadWeight, g_m: &[f32]) -> Result<Vec<f32>> {
        head.with(|w| self.saved.grad_hidden(w, &self.targets_m, g_m))
    }

    /// Adds the gradient of the head, `(v, d)`, to `dw_vd`.
    pub fn grad_head(&self, head: HeadWeight, g_m: &[f32], dw_vd: &mut [f32]) -> Result<()> {
        head.with(|w| self.saved.grad_head(&self.h_md, w, &self.targets_m, g_m, dw_vd))
    }
}

fn check(m: usize, d: usize, o: usize, i: usize, targets: &[u32]) -> Result<()> {
    if d != i || m != targets.len() {
        bail!("head: hidden ({m}, {d}), head ({o}, {i}), {} targets", targets.len());
    }
    match targets.iter().find(|t| **t as usize >= o) {
        Some(t) => bail!("target id {t} is beyond the head's {o} rows"),
        None => Ok(()),
    }
}

struct FrozenHead {
    head: Frozen,
    targets: Arc<Vec<u32>>,
    keep: bool,
    saved: Mutex<Option<Saved>>,
}

struct LearnedHead {
    precision: Precision,
    targets: Arc<Vec<u32>>,
    saved: Mutex<Option<Saved>>,
}

fn rows(head: &Frozen) -> Rows<'_> {
    let (v, d) = head.dims();
    Rows { view: head.view(), precision: head.precision(), v, d }
}

fn learned_rows(w: &[f32], d: usize, precision: Precision) -> Rows<'_> {
    Rows { view: View::rows(w, d), precision, v: w.len() / d, d }
}

fn kept(saved: &Mutex<Option<Saved>>) -> Result<std::sync::MutexGuard<'_, Option<Saved>>> {
    saved.lock().map_err(|_| candle_core::Error::Msg("head: a worker panicked".into()))
}

impl CustomOp1 for FrozenHead {
    fn name(&self) -> &'static str {
        "head_logp"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((m, d), (o, i)) = (l.shape().dims2()?, self.head.dims());
        check(m, d, o, i, &self.targets)?;
        let h = tensor::slice(s, l)?;
        let (logp, saved) = forward(h, rows(&self.head), &self.targets, self.keep);
        *kept(&self.saved)? = Some(saved);
        Ok((CpuStorage::F32(logp), m.into()))
    }

    fn bwd(&self, h: &Tensor, _res: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (m, d) = h.dims2()?;
        let kept = kept(&self.saved)?;
        let Some(saved) = kept.as_ref().filter(|s| s.mean_md.len() == m * d) else {
            bail!("head: backward without a tracked forward")
        };
        let dh = tensor::with(g, |g| saved.grad_hidden(rows(&self.head), &self.targets, g))?;
        Ok(Some(tensor::from_vec(dh, (m, d))?))
    }
}

impl CustomOp2 for LearnedHead {
    fn name(&self) -> &'static str {
        "head_logp_learned"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((m, d), (o, i)) = (l1.shape().dims2()?, l2.shape().dims2()?);
        check(m, d, o, i, &self.targets)?;
        let (h, w) = (tensor::slice(s1, l1)?, tensor::slice(s2, l2)?);
        let (logp, saved) = forward(h, learned_rows(w, d, self.precision), &self.targets, true);
        *kept(&self.saved)? = Some(saved);
        Ok((CpuStorage::F32(logp), m.into()))
    }

    fn bwd(
        &self,
        h: &Tensor,
        w: &Tensor,
        _res: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (m, d) = h.dims2()?;
        let kept = kept(&self.saved)?;
        let Some(saved) = kept.as_ref() else { bail!("head: backward without a forward") };
        let (dh, dw) = tensor::with(h, |h| {
            tensor::with(w, |w| {
                tensor::with(g, |g| {
                    let w = learned_rows(w, d, self.precision);
                    let mut dw = vec![0f32; w.v * w.d];
                    saved.grad_head(h, w, &self.targets, g, &mut dw);
                    (saved.grad_hidden(w, &self.targets, g), dw)
                })
            })
        })???;
        Ok((Some(tensor::from_vec(dh, (m, d))?), Some(tensor::from_vec(dw, w.shape().clone())?)))
    }
}

/// A head that is frozen, or learned (possibly the embedding table itself).
#[derive(Clone, Copy)]
pub enum HeadWeight<'a> {
    /// No gradient for the head.
    Frozen(&'a Frozen),
    /// `(v, d)` with a gradient.
    Learned(&'a Tensor, Precision),
}

impl HeadWeight<'_> {
    fn with<R>(self, f: impl FnOnce(Rows) -> R) -> Result<R> {
        match self {
            HeadWeight::Frozen(head) => Ok(f(rows(head))),
            HeadWeight::Learned(w, precision) => {
                let (_, d) = w.dims2()?;
                tensor::with(w, |w| f(learned_rows(w, d, precision)))
            }
        }
    }
}

/// `log softmax(h wᵀ)[target]` for one target per row of `h_md`, `(m,)`; memory `O(m·d)`.
pub fn head_logp(h_md: &Tensor, head: HeadWeight, targets_m: &[u32]) -> Result<Tensor> {
    let (h, targets) = (h_md.contiguous()?, Arc::new(targets_m.to_vec()));
    match head {
        HeadWeight::Frozen(head) => {
            let keep = h.track_op();
            h.apply_op1(FrozenHead { head: head.clone(), targets, keep, saved: Mutex::new(None) })
        }
        HeadWeight::Learned(w, precision) => {
            let op = LearnedHead { precision, targets, saved: Mutex::new(None) };
            h.apply_op2(&w.contiguous()?, op)
        }
    }
}

/// [`head_logp`] in plain tensor operations.
pub fn naive_head_logp(h_md: &Tensor, w_vd: &Tensor, targets_m: &[u32]) -> Result<Tensor> {
    luthier_core::model::gather_logp(&h_md.matmul(&w_vd.t()?)?, targets_m)
        .map_err(|e| candle_core::Error::Msg(e.to_string()))
}
