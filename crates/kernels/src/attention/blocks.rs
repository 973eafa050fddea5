//! The blocks of attention on slices: scores, softmax, and their gradients.

use half::bf16;
use luthier_core::Rows;

use super::Heads;
use crate::{
    gemm::{Output, Term, View, product},
    math::{dot, exp, exp_sum, max, scale},
    num::{Numbers, Precision, narrow},
    pool::{Buffer, Kept},
    simd::vectorised,
    threads,
};

/// Narrow rows where there is room for them.
fn round(row: &[f32], at: usize, to: &mut Option<Buffer<bf16>>) {
    if let Some(to) = to {
        narrow(row, &mut to[at..at + row.len()]);
    }
}

/// The rounded numbers if there are any.
fn chosen<'a>(wide: &'a Buffer, rounded: &'a Option<Buffer<bf16>>) -> Numbers<'a> {
    match rounded {
        Some(rounded) => Numbers::Bf16(rounded),
        None => Numbers::F32(wide),
    }
}

/// Keys in one chunk: 192 × 256 scores are 192 KiB.
const KEYS: usize = 256;

vectorised! {
    // From scores and the gradients of weights to weights and the gradients of scores.
    fn grad_scores(p: &mut [f32], ds: &mut [f32], a: f32, lse: f32, inner: f32) {
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = exp(*p * a - lse);
            *ds = *p * (*ds - inner) * a;
        }
    }
}

impl Heads {
    /// The part of a chunk of `c` keys from `lo` on that query `i` sees.
    fn visible(&self, i: usize, lo: usize, c: usize) -> (usize, usize) {
        let to = (i + 1).saturating_sub(lo).min(c);
        (self.first_key(i).saturating_sub(lo).min(to), to)
    }

    /// The numbers of `bq` tokens from `token` on whose heads share `kv`, stacked
    /// `(bq·group, e)`, as products read them.
    fn gather(&self, x: Numbers, token: usize, bq: usize, kv: usize) -> Kept {
        let wide = self.group() * self.e;
        let at = |i: usize| (token + i) * self.q_width() + kv * wide;
        match (self.precision, x) {
            (Precision::Bf16, Numbers::Bf16(x)) => {
                let mut out = Buffer::new(bq * wide);
                for (i, out) in out.chunks_exact_mut(wide).enumerate() {
                    out.copy_from_slice(&x[at(i)..at(i) + wide]);
                }
                Kept::Bf16(out)
            }
            _ => Kept::take(self.precision, self.gather_wide(x, token, bq, kv)),
        }
    }

    /// The same as f32.
    fn gather_wide(&self, x: Numbers, token: usize, bq: usize, kv: usize) -> Buffer {
        let wide = self.group() * self.e;
        let mut out = Buffer::new(bq * wide);
        for (i, out) in out.chunks_exact_mut(wide).enumerate() {
            x.read((token + i) * self.q_width() + kv * wide, out);
        }
        out
    }

    /// Room for weights as products read them, where that is not the f32 they are computed in.
    fn rounded(&self, len: usize) -> Option<Buffer<bf16>> {
        (self.precision == Precision::Bf16).then(|| Buffer::new(len))
    }

    /// Keys or values of a sequence whose first token is `first`, from key `lo` on.
    fn keys<'a>(&self, x: Numbers<'a>, first: usize, lo: usize, kv: usize) -> View<'a> {
        View::rows(x, self.kv_width()).from(first + lo, kv * self.e)
    }

    /// Output for queries `i0..i0 + bq` of one sequence; their numbers begin at token `at` of `q`,
    /// the sequence's at token `first` of `k` and `v`. `lse` gets the logarithm of each softmax's
    /// sum.
    pub(super) fn forward(
        &self,
        q: (Numbers, usize),
        keys: (Numbers, Numbers, usize),
        block: (usize, usize),
        out: &mut [f32],
        mut lse: Option<&mut [f32]>,
    ) {
        for kv in 0..self.k {
            let out = &mut out[kv * self.group() * self.e..];
            self.forward_group(kv, q, keys, block, out, lse.as_deref_mut());
        }
    }

    /// The same for the query heads that share `kv`; `out` begins at their first number.
    pub(super) fn forward_group(
        &self,
        kv: usize,
        (q, at): (Numbers, usize),
        (k, v, first): (Numbers, Numbers, usize),
        (i0, bq): (usize, usize),
        out: &mut [f32],
        mut lse: Option<&mut [f32]>,
    ) {
        let (e, group, a) = (self.e, self.group(), self.scale());
        let (m, end, begin) = (bq * group, i0 + bq, self.first_key(i0));
        let mut z = Buffer::new(m * e);
        let mut scores = Buffer::new(m * KEYS.min(end - begin));
        let mut rounded = self.rounded(scores.len());
        let (mut top, mut sum) = (Buffer::new(m), Buffer::new(m));
        let q = self.gather(q, at, bq, kv);
        top.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        for lo in (begin..end).step_by(KEYS) {
            let c = KEYS.min(end - lo);
            let (k, v) = (self.keys(k, first, lo, kv), self.keys(v, first, lo, kv));
            let term = Term { a: View::rows(q.numbers(), e), b: k.t(), k: e };
            product(self.precision, m, c, &[term], Output::Set, &mut scores, c);
            for (r, row) in scores[..m * c].chunks_exact_mut(c).enumerate() {
                let (from, to) = self.visible(i0 + r / group, lo, c);
                row[..from].fill(0.0);
                row[to..].fill(0.0);
                let new_top = top[r].max(max(&row[from..to]) * a);
                if new_top > top[r] && lo > begin {
                    let shrink = exp(top[r] - new_top);
                    sum[r] *= shrink;
                    scale(&mut z[r * e..(r + 1) * e], shrink);
                }
                if from < to {
                    top[r] = new_top;
                    sum[r] += exp_sum(&mut row[from..to], a, new_top);
                }
                round(row, r * c, &mut rounded);
            }
            let p = View::rows(chosen(&scores, &rounded), c);
            let term = Term { a: p, b: v, k: c };
            let output = if lo == begin { Output::Set } else { Output::Add };
            product(self.precision, m, e, &[term], output, &mut z, e);
        }
        for (r, z) in z.chunks_exact_mut(e).enumerate() {
            scale(z, 1.0 / sum[r]);
            let at = r / group * self.q_width() + r % group * e;
            out[at..at + e].copy_from_slice(z);
            if let Some(lse) = lse.as_deref_mut() {
                lse[r / group * self.h + kv * group + r % group] = top[r] + sum[r].ln();
            }
        }
    }

    /// Gradients of one sequence of `len` tokens from token `first` on, for one key/value head.
    /// Each of `dq`, `dk`, `dv` begins at the sequence's first number of these heads.
    fn backward(&self, x: Inputs, dz: &[f32], seq: (usize, usize), kv: usize, grads: Grads) {
        let ((first, len), (e, group, a)) = (seq, (self.e, self.group(), self.scale()));
        let Grads { dq, dk, dv, q_row, kv_row } = grads;
        for i in 0..len {
            dk[i * kv_row..i * kv_row + e].fill(0.0);
            dv[i * kv_row..i * kv_row + e].fill(0.0);
        }
        for i0 in (0..len).step_by(self.block()) {
            let bq = self.block().min(len - i0);
            let (m, end, begin, token) = (bq * group, i0 + bq, self.first_key(i0), first + i0);
            let q = self.gather(x.q, token, bq, kv);
            let z = self.gather_wide(x.z, token, bq, kv);
            let dz = self.gather_wide(dz.into(), token, bq, kv);
            let mut inner = Buffer::new(m);
            for r in 0..m {
                inner[r] = dot(&z[r * e..(r + 1) * e], &dz[r * e..(r + 1) * e]);
            }
            let dz = Kept::take(self.precision, dz);
            let (q, dz) = (View::rows(q.numbers(), e), View::rows(dz.numbers(), e));
            let mut dq_block = Buffer::new(m * e);
            let (mut p, mut ds) = (Buffer::new(m * KEYS.min(end)), Buffer::new(m * KEYS.min(end)));
            let (mut p_rounded, mut ds_rounded) = (self.rounded(p.len()), self.rounded(ds.len()));
            for lo in (begin..end).step_by(KEYS) {
                let c = KEYS.min(end - lo);
                let (k, v) = (self.keys(x.k, first, lo, kv), self.keys(x.v, first, lo, kv));
                let scores = |a, b: View, out: &mut Buffer| {
                    let term = Term { a, b: b.t(), k: e };
                    product(self.precision, m, c, &[term], Output::Set, out, c);
                };
                scores(q, k, &mut p);
                scores(dz, v, &mut ds);
                let rows = p[..m * c].chunks_exact_mut(c).zip(ds[..m * c].chunks_exact_mut(c));
                for (r, (p, ds)) in rows.enumerate() {
                    let (from, to) = self.visible(i0 + r / group, lo, c);
                    for hidden in [0..from, to..c] {
                        p[hidden.clone()].fill(0.0);
                        ds[hidden].fill(0.0);
                    }
                    let lse = x.lse[(token + r / group) * self.h + kv * group + r % group];
                    grad_scores(&mut p[from..to], &mut ds[from..to], a, lse, inner[r]);
                    round(p, r * c, &mut p_rounded);
                    round(ds, r * c, &mut ds_rounded);
                }
                let p = View::rows(chosen(&p, &p_rounded), c);
                let ds = View::rows(chosen(&ds, &ds_rounded), c);
                let term = Term { a: ds, b: k, k: c };
                let output = if lo == begin { Output::Set } else { Output::Add };
                product(self.precision, m, e, &[term], output, &mut dq_block, e);
                let wide = |a: View, b, out: &mut [f32]| {
                    let term = Term { a: a.t(), b, k: m };
                    product(self.precision, c, e, &[term], Output::Add, out, kv_row);
                };
                wide(ds, q, &mut dk[lo * kv_row..]);
                wide(p, dz, &mut dv[lo * kv_row..]);
            }
            for (i, block) in dq_block.chunks_exact(group * e).enumerate() {
                let at = (i0 + i) * q_row;
                dq[at..at + group * e].copy_from_slice(block);
            }
        }
    }
}

/// What the backward pass reads.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `(n, h·e)` after rotation.
    pub q: Numbers<'a>,
    /// Keys `(n, k·e)` after rotation.
    pub k: Numbers<'a>,
    /// Values `(n, k·e)`.
    pub v: Numbers<'a>,
    /// The output `(n, h·e)`.
    pub z: Numbers<'a>,
    /// Logarithms of the softmax sums `(n, h)`.
    pub lse: &'a [f32],
}

/// Where gradients go, with the numbers between the beginnings of rows.
struct Grads<'a> {
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    q_row: usize,
    kv_row: usize,
}

/// Attention within each row: `z` `(n, h·e)` and, for the backward pass, `lse` `(n, h)`.
pub fn forward(
    heads: Heads,
    rows: &Rows,
    q: Numbers,
    k: Numbers,
    v: Numbers,
    z: &mut [f32],
    lse: &mut [f32],
) {
    let mut tasks = Vec::new();
    let (mut z, mut lse) = (z, lse);
    for row in 0..rows.b() {
        let range = rows.range(row);
        for i0 in (0..range.len()).step_by(heads.block()) {
            let bq = heads.block().min(range.len() - i0);
            let (z_block, lse_block);
            (z_block, z) = z.split_at_mut(bq * heads.q_width());
            (lse_block, lse) = lse.split_at_mut(bq * heads.h);
            tasks.push((range.start, (i0, bq), z_block, lse_block));
        }
    }
    type Task<'a> = (usize, (usize, usize), &'a mut [f32], &'a mut [f32]);
    threads::for_each(tasks, |(first, block, z, lse): Task| {
        let at = first + block.0;
        threads::alone(|| heads.forward((q, at), (k, v, first), block, z, Some(lse)));
    });
}

/// Gradients of `q`, `k` and `v` given that of `z`; overwrites what is there.
pub fn backward(
    heads: Heads,
    rows: &Rows,
    inputs: Inputs,
    dz: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    let (q_row, kv_row, wide) = (heads.q_width(), heads.kv_width(), heads.group() * heads.e);
    let pairs = || (0..rows.b()).flat_map(|row| (0..heads.k).map(move |kv| (row, kv)));
    if threads::count() == 1 {
        for (row, kv) in pairs() {
            let range = rows.range(row);
            let dq = &mut dq[range.start * q_row + kv * wide..];
            let at = range.start * kv_row + kv * heads.e;
            let grads = Grads { dq, dk: &mut dk[at..], dv: &mut dv[at..], q_row, kv_row };
            heads.backward(inputs, dz, (range.start, range.len()), kv, grads);
        }
        return;
    }
    // A head's numbers lie apart, so tasks write to buffers of their own, copied at the end.
    let mut parts: Vec<_> = pairs()
        .map(|(row, kv)| {
            let len = rows.range(row).len();
            let room = |width| Buffer::<f32>::new(len * width);
            (row, kv, [room(wide), room(heads.e), room(heads.e)])
        })
        .collect();
    threads::for_each(parts.iter_mut().collect(), |(row, kv, [dq, dk, dv])| {
        let range = rows.range(*row);
        let grads = Grads { dq, dk, dv, q_row: wide, kv_row: heads.e };
        let seq = (range.start, range.len());
        threads::alone(|| heads.backward(inputs, dz, seq, *kv, grads));
    });
    /// Tokens of a task.
    const TOKENS: usize = 32;
    let e = heads.e;
    let tasks = dq.chunks_mut(TOKENS * q_row).zip(dk.chunks_mut(TOKENS * kv_row));
    let tasks = tasks.zip(dv.chunks_mut(TOKENS * kv_row)).enumerate().collect();
    type Task<'a> = (usize, ((&'a mut [f32], &'a mut [f32]), &'a mut [f32]));
    threads::for_each(tasks, |(task, ((dq, dk), dv)): Task| {
        let here = task * TOKENS..task * TOKENS + dk.len() / kv_row;
        for (row, kv, [dq_part, dk_part, dv_part]) in &parts {
            let range = rows.range(*row);
            for token in here.start.max(range.start)..here.end.min(range.end) {
                let (i, t) = (token - range.start, token - here.start);
                let at = t * q_row + kv * wide;
                dq[at..at + wide].copy_from_slice(&dq_part[i * wide..(i + 1) * wide]);
                let at = t * kv_row + kv * e;
                dk[at..at + e].copy_from_slice(&dk_part[i * e..(i + 1) * e]);
                dv[at..at + e].copy_from_slice(&dv_part[i * e..(i + 1) * e]);
            }
        }
    });
}
