//! Attention over a cache of earlier keys and values, for decoding.

use luthier_core::{Cache, Rows};

use super::Heads;
use crate::{
    math::{axpy, dot, scale, softmax},
    pool::Buffer,
    threads,
};

/// Work below which more than one thread does not pay: numbers of keys and values read.
const SMALL: usize = 1 << 16;

impl Heads {
    /// Output of the heads that share `kv` for the last token of a sequence, over all its keys.
    fn last(&self, q: &[f32], k: &[f32], v: &[f32], kv: usize, out: &mut [f32]) {
        let (e, row) = (self.e, self.kv_width());
        let keys = k.len() / row;
        let from = self.first_key(keys - 1);
        let mut p = Buffer::new(keys - from);
        for (q, out) in q.chunks_exact(e).zip(out.chunks_exact_mut(e)) {
            for (j, p) in p.iter_mut().enumerate() {
                let at = (from + j) * row + kv * e;
                *p = dot(q, &k[at..at + e]);
            }
            scale(&mut p, self.scale());
            softmax(&mut p);
            out.fill(0.0);
            for (j, p) in p.iter().enumerate() {
                let at = (from + j) * row + kv * e;
                axpy(*p, &v[at..at + e], out);
            }
        }
    }
}

/// Appends keys and values of `(q, k, v)` to the cache at `layer` and attends over all that each
/// sequence holds.
pub fn cached(
    heads: Heads,
    rows: &Rows,
    (q, k, v): (&[f32], &[f32], &[f32]),
    cache: &mut Cache,
    layer: usize,
    out: &mut [f32],
) {
    let (q_row, kv_row, wide) = (heads.q_width(), heads.kv_width(), heads.group() * heads.e);
    let mut held = 0;
    for row in 0..rows.b() {
        let range = rows.range(row);
        let new = range.start * kv_row..range.end * kv_row;
        let kv = cache.kv(row, layer);
        kv.k.extend_from_slice(&k[new.clone()]);
        kv.v.extend_from_slice(&v[new]);
        held += kv.k.len();
    }
    let cache = &*cache;
    let (mut rest, mut single, mut blocks) = (out, Vec::new(), Vec::new());
    for row in 0..rows.b() {
        let range = rows.range(row);
        let past = cache.read(row, layer).k.len() / kv_row - range.len();
        for i0 in (0..range.len()).step_by(heads.block()) {
            let bq = heads.block().min(range.len() - i0);
            let block;
            (block, rest) = rest.split_at_mut(bq * q_row);
            if range.len() == 1 {
                let heads = block.chunks_exact_mut(wide).enumerate();
                single.extend(heads.map(|(kv, out)| (row, range.start, kv, out)));
            } else {
                blocks.push((row, range.start + i0, (past + i0, bq), block));
            }
        }
    }
    type Block<'a> = (usize, usize, (usize, usize), &'a mut [f32]);
    threads::for_each(blocks, |(row, token, block, out): Block| {
        let (kv, q) = (cache.read(row, layer), q.into());
        let kv = ((&kv.k).into(), (&kv.v).into(), 0);
        threads::alone(|| heads.forward((q, token), kv, block, out, None));
    });
    let one = |(row, token, kv, out): (usize, usize, usize, &mut [f32])| {
        let past = cache.read(row, layer);
        let at = token * q_row + kv * wide;
        heads.last(&q[at..at + wide], &past.k, &past.v, kv, out);
    };
    match held < SMALL {
        true => single.into_iter().for_each(one),
        false => threads::for_each(single, one),
    }
}
