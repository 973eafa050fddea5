//! Attention over a cache of earlier keys and values, for decoding.

use luthier_core::{Cache, Held, Rows};

use super::Heads;
use crate::{num::hold, threads};

/// Work below which waking another thread does not pay: numbers of keys read.
const SMALL: usize = 1 << 16;

/// Makes room for `new` numbers and some tokens more, but not for twice as many: most of the memory
/// of a generation is held here.
fn grow(held: &mut Held, new: usize, token: usize) {
    let (len, spare) = (held.len(), (held.len() / 8).max(64 * token));
    match held {
        _ if len == 0 => {}
        Held::F32(x) if x.capacity() < len + new => x.reserve_exact(new + spare),
        Held::Bf16(x) if x.capacity() < len + new => x.reserve_exact(new + spare),
        _ => {}
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
        grow(&mut kv.k, new.len(), kv_row);
        grow(&mut kv.v, new.len(), kv_row);
        hold(&mut kv.k, heads.precision, &k[new.clone()]);
        hold(&mut kv.v, heads.precision, &v[new]);
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
                single.extend(heads.map(|(kv, out)| (row, range.start, past, kv, out)));
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
    let one = |(row, token, past, kv, out): (usize, usize, usize, usize, &mut [f32])| {
        let (held, q) = (cache.read(row, layer), q.into());
        let held = ((&held.k).into(), (&held.v).into(), 0);
        heads.forward_group(kv, (q, token), held, (past, 1), out, None);
    };
    match held < threads::least(SMALL) {
        true => single.into_iter().for_each(one),
        false => threads::for_each(single, one),
    }
}
