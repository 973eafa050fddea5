//! Causal attention over ragged rows, forward and backward, one block of queries at a time.
//!
//! Scores exist for one block and one head only, so memory is linear in tokens. Rows never see
//! each other: their bounds are the loop's bounds, there is no mask.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use luthier_core::{Cache, Rows};
use rayon::prelude::*;

use crate::{
    gemm::{Cores, View, gemm},
    math::{axpy, dot, softmax},
    tensor,
};

/// Queries handled together; 64 × (keys) scores stay in the second-level cache for usual rows.
const BLOCK: usize = 64;

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
}

impl Heads {
    fn scale(&self) -> f32 {
        (1.0 / (self.e as f64).sqrt()) as f32
    }

    /// First key that query `i` of a sequence sees.
    fn first_key(&self, i: usize) -> usize {
        self.window.map_or(0, |w| (i + 1).saturating_sub(w))
    }

    /// Softmax weights `(bq, keys)` of one head for queries `i0..i0 + bq` over keys `lo..i0 + bq`;
    /// entries a query may not see are 0.
    fn weights(&self, head: usize, q: &[f32], k: &[f32], i0: usize, bq: usize, p: &mut Vec<f32>) {
        let (lo, hi) = (self.first_key(i0), i0 + bq);
        let keys = hi - lo;
        p.clear();
        p.resize(bq * keys, 0.0);
        let kv = head / (self.h / self.k);
        let (q, q_row) = (&q[head * self.e..], self.h * self.e);
        let (k, k_row) = (&k[lo * self.k * self.e + kv * self.e..], self.k * self.e);
        if bq == 1 {
            for (j, s) in p.iter_mut().enumerate() {
                *s = self.scale() * dot(&q[..self.e], &k[j * k_row..j * k_row + self.e]);
            }
        } else {
            let (q, k) = (View::rows(q, q_row), View::rows(k, k_row).t());
            gemm(bq, keys, self.e, self.scale(), q, k, 0.0, p, keys, Cores::One);
        }
        for (i, row) in p.chunks_exact_mut(keys).enumerate() {
            let (from, to) = (self.first_key(i0 + i) - lo, i0 + i + 1 - lo);
            row[..from].fill(0.0);
            row[to..].fill(0.0);
            softmax(&mut row[from..to]);
        }
    }

    /// Output of all heads for queries `i0..i0 + bq` of one sequence; `q` and `out` start at the
    /// first of them, `k` and `v` at the sequence's first key.
    fn forward(&self, q: &[f32], k: &[f32], v: &[f32], i0: usize, bq: usize, out: &mut [f32]) {
        let mut p = Vec::new();
        let (o_row, v_row) = (self.h * self.e, self.k * self.e);
        for head in 0..self.h {
            self.weights(head, q, k, i0, bq, &mut p);
            let (lo, keys) = (self.first_key(i0), p.len() / bq);
            let v = &v[lo * v_row + head / (self.h / self.k) * self.e..];
            let out = &mut out[head * self.e..];
            if bq == 1 {
                out[..self.e].fill(0.0);
                for (j, w) in p.iter().enumerate() {
                    axpy(*w, &v[j * v_row..j * v_row + self.e], &mut out[..self.e]);
                }
            } else {
                let (p, v) = (View::rows(&p, keys), View::rows(v, v_row));
                gemm(bq, self.e, keys, 1.0, p, v, 0.0, out, o_row, Cores::One);
            }
        }
    }

    /// Gradients of one sequence's queries `(len, group·e)`, keys and values `(len, e)` for one
    /// key/value head.
    fn backward(
        &self,
        kv: usize,
        len: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        dy: &[f32],
    ) -> Grads {
        let (e, group) = (self.e, self.h / self.k);
        let (q_row, kv_row) = (self.h * e, self.k * e);
        let mut g = Grads {
            dq: vec![0.0; len * group * e],
            dk: vec![0.0; len * e],
            dv: vec![0.0; len * e],
        };
        let (mut p, mut ds) = (Vec::new(), Vec::new());
        for i0 in (0..len).step_by(BLOCK) {
            let bq = BLOCK.min(len - i0);
            for member in 0..group {
                let head = kv * group + member;
                let q = &q[i0 * q_row..];
                self.weights(head, q, k, i0, bq, &mut p);
                let (lo, keys) = (self.first_key(i0), p.len() / bq);
                let at = lo * kv_row + kv * e;
                let dy = View::rows(&dy[i0 * q_row + head * e..], q_row);
                let q = View::rows(&q[head * e..], q_row);
                let v = View::rows(&v[at..], kv_row).t();
                ds.clear();
                ds.resize(bq * keys, 0.0);
                gemm(bq, keys, e, 1.0, dy, v, 0.0, &mut ds, keys, Cores::One);
                for (p, ds) in p.chunks_exact(keys).zip(ds.chunks_exact_mut(keys)) {
                    let inner = dot(p, ds);
                    for (p, ds) in p.iter().zip(ds) {
                        *ds = p * (*ds - inner) * self.scale();
                    }
                }
                let (p, ds) = (View::rows(&p, keys), View::rows(&ds, keys));
                let k = View::rows(&k[at..], kv_row);
                let dq = &mut g.dq[i0 * group * e + member * e..];
                gemm(bq, e, keys, 1.0, ds, k, 0.0, dq, group * e, Cores::One);
                gemm(keys, e, bq, 1.0, ds.t(), q, 1.0, &mut g.dk[lo * e..], e, Cores::One);
                gemm(keys, e, bq, 1.0, p.t(), dy, 1.0, &mut g.dv[lo * e..], e, Cores::One);
            }
        }
        g
    }
}

struct Grads {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

struct Attend {
    heads: Heads,
    rows: Arc<Rows>,
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
        let (q_row, kv_row) = (self.heads.h * self.heads.e, self.heads.k * self.heads.e);
        if q.len() != self.rows.n() * q_row || k.len() != self.rows.n() * kv_row {
            bail!("attention: {} tokens do not fit q {:?}, k {:?}", self.rows.n(), l1, l2);
        }
        let mut out = vec![0f32; q.len()];
        let mut tasks = Vec::new();
        let mut rest = out.as_mut_slice();
        for row in 0..self.rows.b() {
            let range = self.rows.range(row);
            for i0 in (0..range.len()).step_by(BLOCK) {
                let bq = BLOCK.min(range.len() - i0);
                let (block, tail) = rest.split_at_mut(bq * q_row);
                rest = tail;
                tasks.push((range.start, i0, bq, block));
            }
        }
        tasks.into_par_iter().for_each(|(start, i0, bq, out)| {
            let (k, v) = (&k[start * kv_row..], &v[start * kv_row..]);
            self.heads.forward(&q[(start + i0) * q_row..], k, v, i0, bq, out);
        });
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _res: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Heads { h, k: kh, e, .. } = self.heads;
        let (group, q_row, kv_row) = (h / kh, h * e, kh * e);
        let mut dq = vec![0f32; q.elem_count()];
        let (mut dk, mut dv) = (vec![0f32; k.elem_count()], vec![0f32; v.elem_count()]);
        let tasks: Vec<(usize, usize)> =
            (0..self.rows.b()).flat_map(|row| (0..kh).map(move |kv| (row, kv))).collect();
        let run = |q: &[f32], k: &[f32], v: &[f32], dy: &[f32]| -> Vec<Grads> {
            let one = |&(row, kv): &(usize, usize)| {
                let range = self.rows.range(row);
                let (from, kv_from) = (range.start * q_row, range.start * kv_row);
                let (q, dy) = (&q[from..], &dy[from..]);
                self.heads.backward(kv, range.len(), q, &k[kv_from..], &v[kv_from..], dy)
            };
            tasks.par_iter().map(one).collect()
        };
        let grads = tensor::with(q, |q| {
            tensor::with(k, |k| tensor::with(v, |v| tensor::with(dy, |dy| run(q, k, v, dy))))
        })????;
        for (&(row, kv), g) in tasks.iter().zip(&grads) {
            for (i, token) in self.rows.range(row).enumerate() {
                let at = token * q_row + kv * group * e;
                dq[at..at + group * e].copy_from_slice(&g.dq[i * group * e..(i + 1) * group * e]);
                let at = token * kv_row + kv * e;
                dk[at..at + e].copy_from_slice(&g.dk[i * e..(i + 1) * e]);
                dv[at..at + e].copy_from_slice(&g.dv[i * e..(i + 1) * e]);
            }
        }
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
    let op = Attend { heads, rows: rows.clone() };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

/// Appends `k` and `v` to the cache at `layer` and attends over all that each sequence holds.
/// There is no backward.
pub fn attend_cached(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    rows: &Rows,
    heads: Heads,
    cache: &mut Cache,
    layer: usize,
) -> Result<Tensor> {
    let (q_row, kv_row) = (heads.h * heads.e, heads.k * heads.e);
    let append = |data: &[f32], cache: &mut Cache, keys: bool| {
        for row in 0..rows.b() {
            let range = rows.range(row);
            let new = &data[range.start * kv_row..range.end * kv_row];
            let kv = cache.kv(row, layer);
            if keys { kv.k.extend_from_slice(new) } else { kv.v.extend_from_slice(new) }
        }
    };
    tensor::with(k, |k| append(k, cache, true))?;
    tensor::with(v, |v| append(v, cache, false))?;
    let cache = &*cache;
    let mut out = vec![0f32; rows.n() * q_row];
    tensor::with(q, |q| {
        let mut tasks = Vec::new();
        let mut rest = out.as_mut_slice();
        for row in 0..rows.b() {
            let range = rows.range(row);
            let past = cache.read(row, layer).k.len() / kv_row - range.len();
            for i0 in (0..range.len()).step_by(BLOCK) {
                let bq = BLOCK.min(range.len() - i0);
                let (block, tail) = rest.split_at_mut(bq * q_row);
                rest = tail;
                tasks.push((row, range.start + i0, past + i0, bq, block));
            }
        }
        tasks.into_par_iter().for_each(|(row, token, i0, bq, out)| {
            let kv = cache.read(row, layer);
            heads.forward(&q[token * q_row..], &kv.k, &kv.v, i0, bq, out);
        });
    })?;
    tensor::from_vec(out, (rows.n(), q_row))
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
