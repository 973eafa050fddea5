//! Causal attention over ragged rows, forward and backward, one block of queries at a time.
//!
//! Keys are walked in chunks under a running maximum, so scores exist for one block and one chunk
//! only and memory is linear in tokens. Rows never see each other: their bounds are the loop's
//! bounds, there is no mask. The query heads that share a key/value head are stacked into one
//! product.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use luthier_core::{Cache, Rows};

use crate::{num::Precision, tensor};

mod blocks;
mod cached;

pub use blocks::{Inputs, backward, forward};
pub use cached::cached;

/// Head counts and widths of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub h: usize,
    /// Key/value heads; divides `h`.
    pub k: usize,
    /// Width of a head.
    pub e: usize,
    /// Keys further back than this are not seen (Mistral's sliding window).
    pub window: Option<usize>,
    /// The arithmetic of products.
    pub precision: Precision,
}

impl Heads {
    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.h * self.e
    }

    /// Width of all keys (or values) of a token.
    pub fn kv_width(&self) -> usize {
        self.k * self.e
    }

    /// Query heads that share a key/value head.
    fn group(&self) -> usize {
        self.h / self.k
    }

    /// Queries handled together.
    fn block(&self) -> usize {
        (192 / self.group()).clamp(16, 64)
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.e as f64).sqrt()) as f32
    }

    /// First key that query `i` of a sequence sees.
    fn first_key(&self, i: usize) -> usize {
        self.window.map_or(0, |w| (i + 1).saturating_sub(w))
    }
}

struct Attend {
    heads: Heads,
    rows: Arc<Rows>,
    /// What the forward tells the backward.
    lse: OnceLock<Vec<f32>>,
}

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (tensor::slice(s1, l1)?, tensor::slice(s2, l2)?, tensor::slice(s3, l3)?);
        let (n, heads) = (self.rows.n(), self.heads);
        if q.len() != n * heads.q_width() || k.len() != n * heads.kv_width() || v.len() != k.len() {
            bail!("attention: {n} tokens do not fit q {l1:?}, k {l2:?}, v {l3:?}");
        }
        let (mut out, mut lse) = (vec![0f32; q.len()], vec![0f32; n * heads.h]);
        forward(heads, &self.rows, q.into(), k.into(), v.into(), &mut out, &mut lse);
        // A second forward of the same operation gives the same numbers.
        let _ = self.lse.set(lse);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        z: &Tensor,
        dz: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(lse) = self.lse.get() else { bail!("attention: backward before forward") };
        let mut dq = vec![0f32; q.elem_count()];
        let (mut dk, mut dv) = (vec![0f32; k.elem_count()], vec![0f32; v.elem_count()]);
        let mut run = |q: &[f32], k: &[f32], v: &[f32], z: &[f32], dz: &[f32]| {
            let inputs = Inputs { q: q.into(), k: k.into(), v: v.into(), z: z.into(), lse };
            backward(self.heads, &self.rows, inputs, dz, &mut dq, &mut dk, &mut dv);
        };
        tensor::with(q, |q| {
            tensor::with(k, |k| {
                tensor::with(v, |v| tensor::with(z, |z| tensor::with(dz, |dz| run(q, k, v, z, dz))))
            })
        })?????;
        Ok((
            Some(tensor::from_vec(dq, q.shape().clone())?),
            Some(tensor::from_vec(dk, k.shape().clone())?),
            Some(tensor::from_vec(dv, v.shape().clone())?),
        ))
    }
}

/// Causal scaled dot-product attention within each row: `q` `(n, h·e)`, `k` and `v` `(n, k·e)`
/// after rotation, to `(n, h·e)` (Dao et al. 2022 for the blocking).
pub fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    rows: &Arc<Rows>,
    heads: Heads,
) -> Result<Tensor> {
    let op = Attend { heads, rows: rows.clone(), lse: OnceLock::new() };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

/// [`cached`] on tensors. There is no backward.
pub fn attend_cached(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    rows: &Rows,
    heads: Heads,
    cache: &mut Cache,
    layer: usize,
) -> Result<Tensor> {
    let mut out = vec![0f32; rows.n() * heads.q_width()];
    tensor::with(q, |q| {
        tensor::with(k, |k| {
            tensor::with(v, |v| cached(heads, rows, (q, k, v), cache, layer, &mut out))
        })
    })???;
    tensor::from_vec(out, (rows.n(), heads.q_width()))
}

/// Attention weights of every row and head, `(tokens, h)` rows of `(keys)`: for hooks that watch
/// the pattern. Laid out as one `(h, len, len)` block per row, in row order.
pub fn naive_pattern(
    q: &Tensor,
    k: &Tensor,
    row: std::ops::Range<usize>,
    heads: Heads,
) -> Result<Tensor> {
    let (len, e) = (row.len(), heads.e);
    let split = |t: &Tensor, n_heads: usize| -> Result<Tensor> {
        t.narrow(0, row.start, len)?.reshape((len, n_heads, e))?.transpose(0, 1)?.contiguous()
    };
    let (q, k) = (split(q, heads.h)?, split(k, heads.k)?);
    let scores = (q.matmul(&repeat(&k, heads.h / heads.k)?.t()?)? * f64::from(heads.scale()))?;
    let mut mask = vec![0f32; len * len];
    for i in 0..len {
        for j in 0..len {
            if j > i || j < heads.first_key(i) {
                mask[i * len + j] = f32::NEG_INFINITY;
            }
        }
    }
    let scores = scores.broadcast_add(&tensor::from_vec(mask, (1, len, len))?)?;
    let max = scores.max_keepdim(2)?.detach();
    let weights = scores.broadcast_sub(&max)?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(2)?)
}

/// [`attend`] in plain tensor operations, also usable when a hook replaces the pattern of a row
/// (called with `(row, pattern_hll)`).
pub fn naive_attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    rows: &Rows,
    heads: Heads,
    mut watch: impl FnMut(usize, Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut out = Vec::with_capacity(rows.b());
    for row in 0..rows.b() {
        let range = rows.range(row);
        let len = range.len();
        if len == 0 {
            continue;
        }
        let pattern = watch(row, naive_pattern(q, k, range.clone(), heads)?)?;
        let v = v.narrow(0, range.start, len)?.reshape((len, heads.k, heads.e))?.transpose(0, 1)?;
        let y = pattern.matmul(&repeat(&v.contiguous()?, heads.h / heads.k)?)?;
        out.push(y.transpose(0, 1)?.reshape((len, heads.h * heads.e))?);
    }
    Tensor::cat(&out, 0)
}

fn repeat(x: &Tensor, group: usize) -> Result<Tensor> {
    let (k, n, e) = x.dims3()?;
    x.unsqueeze(1)?.broadcast_as((k, group, n, e))?.reshape((k * group, n, e))
}
