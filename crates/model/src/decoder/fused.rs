//! A block forward without a graph, keeping what its backward pass needs.

use std::sync::Arc;

use candle_core::Tensor;
use luthier_core::{Ctx, LowRank, Result, Rows, Taped};
use luthier_kernels::{
    Heads, attention,
    gemm::Output,
    norm,
    num::Precision,
    pool::{Buffer, Kept},
    rope::turn_heads,
    swiglu,
};

use super::{
    Decoder, Layer,
    fan::{Branch, Fan, Read},
    tape::BlockTape,
};
use crate::weight::{Linear, Norm};

/// One block as the fused passes see it: frozen or learned weights and low-rank additions at its
/// linear sites.
pub(super) struct Block {
    pub(super) layer: Layer,
    /// At q, k, v, o, gate, up, down.
    pub(super) low: [Vec<LowRank>; 7],
    pub(super) rows: Arc<Rows>,
    pub(super) heads: Heads,
    /// `None`: the block does not rotate.
    pub(super) angles: Option<Arc<Vec<f32>>>,
    pub(super) precision: Precision,
    pub(super) n: usize,
    pub(super) d: usize,
    pub(super) f: usize,
}

/// What the backward pass reads.
pub(super) struct Saved {
    pub(super) h: Kept,
    /// Queries and keys before their norms, where they have norms.
    pub(super) plain_qk: Option<(Kept, Kept)>,
    pub(super) qkv: [Kept; 3],
    pub(super) z: Kept,
    pub(super) lse: Buffer,
    pub(super) h_mid: Kept,
    pub(super) gate: Kept,
    pub(super) up: Kept,
    /// Narrow products of (q, k, v), o, (gate, up), down.
    pub(super) t: [Option<Kept>; 4],
}

impl Layer {
    /// Linear maps in the order of [`Block::low`].
    pub(super) fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// The arithmetic of the block's products: f32 as soon as one weight asks for it.
    pub(super) fn precision(&self) -> Precision {
        let exact = self.linears().iter().any(|lin| lin.weight.precision() == Precision::F32);
        if exact { Precision::F32 } else { Precision::Bf16 }
    }
}

impl Decoder {
    /// The block for the fused passes; `None` when a hook asks for more than they do.
    pub(super) fn fused(&self, l: usize, ctx: &mut Ctx) -> Option<Block> {
        let layer = &self.layers[l];
        let (at, hooks) = (&layer.at, ctx.hooks);
        let plain = [at.resid_pre, at.pattern, at.z, at.attn_out, at.resid_mid, at.act]
            .into_iter()
            .chain([at.mlp_out, at.resid_post, layer.attn_norm.site, layer.mlp_norm.site])
            .chain(layer.qk_norm.iter().flat_map(|(q, k)| [q.site, k.site]));
        if plain.into_iter().any(|site| hooks.watched(site)) {
            return None;
        }
        let mut low: [Vec<LowRank>; 7] = Default::default();
        for (slot, lin) in low.iter_mut().zip(layer.linears()) {
            for hook in hooks.get(lin.site) {
                let it = hook.low_rank()?;
                let whole = it.a_ri.is_contiguous() && it.b_or.is_contiguous();
                if !whole || (it.dropout > 0.0 && ctx.noise.is_some()) {
                    return None;
                }
                slot.push(it);
            }
        }
        let rotates = self.rotates(l);
        Some(Block {
            layer: layer.clone(),
            low,
            rows: ctx.rows.clone(),
            heads: self.heads(l),
            angles: rotates.then(|| self.angles(ctx)),
            precision: layer.precision(),
            n: ctx.rows.n(),
            d: self.config.hidden,
            f: self.config.ffn,
        })
    }

    /// The fused block without anything kept.
    pub(super) fn fused_forward(
        &self,
        l: usize,
        h_nd: &Tensor,
        ctx: &mut Ctx,
    ) -> Result<Option<Tensor>> {
        let Some(block) = self.fused(l, ctx) else { return Ok(None) };
        Ok(Some(block.forward(l, h_nd, ctx, false)?.0))
    }

    /// The fused block with its tape, if anything at or under it learns.
    pub(super) fn fused_tape(
        &self,
        l: usize,
        h_nd: &Tensor,
        below: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Taped>> {
        if ctx.cache.is_some() {
            return Ok(None);
        }
        let Some(block) = self.fused(l, ctx) else { return Ok(None) };
        let keep = below || block.learns();
        let (y_nd, saved) = block.forward(l, h_nd, ctx, keep)?;
        let tape = saved.map(|saved| Box::new(BlockTape { block, saved }) as _);
        Ok(Some((y_nd, tape)))
    }
}

impl Block {
    fn branch(&self, i: usize) -> Branch<'_> {
        Branch { lin: self.layer.linears()[i], low: &self.low[i] }
    }

    pub(super) fn branches<const K: usize>(&self, at: [usize; K]) -> [Branch<'_>; K] {
        at.map(|i| self.branch(i))
    }

    pub(super) fn fan<'a>(&self, branches: &'a [Branch<'a>], i: usize) -> Fan<'a> {
        Fan { branches, precision: self.precision, n: self.n, i }
    }

    fn learns(&self) -> bool {
        let qk = self.layer.qk_norm.iter().flat_map(|(q, k)| [q, k]);
        let mut norms = [&self.layer.attn_norm, &self.layer.mlp_norm].into_iter().chain(qk);
        norms.any(|norm| norm.scale_d.is_variable()) || (0..7).any(|i| self.branch(i).learns())
    }

    fn forward(
        &self,
        l: usize,
        h_nd: &Tensor,
        ctx: &mut Ctx,
        keep: bool,
    ) -> Result<(Tensor, Option<Saved>)> {
        let (n, precision) = (self.n, self.precision);
        let h_nd = h_nd.contiguous()?;
        let h = Read::new(&h_nd)?;
        let x = self.normed(&self.layer.attn_norm, (&*h).into())?;

        let (q_width, kv_width) = (self.heads.q_width(), self.heads.kv_width());
        let mut q = Buffer::new(n * q_width);
        let (mut k, mut v) = (Buffer::new(n * kv_width), Buffer::new(n * kv_width));
        let branches = self.branches([0, 1, 2]);
        let outs = &mut [&mut q[..], &mut k[..], &mut v[..]];
        let t_qkv = self.fan(&branches, self.d).forward(x.numbers(), Output::Set, outs)?;
        drop(x);
        let mut plain_qk = None;
        if let Some((q_norm, k_norm)) = &self.layer.qk_norm {
            // The norms read what the backward pass will read.
            let (q_plain, k_plain) = (Kept::take(precision, q), Kept::take(precision, k));
            q = self.normed_wide(q_norm, &q_plain)?;
            k = self.normed_wide(k_norm, &k_plain)?;
            plain_qk = Some((q_plain, k_plain));
        }
        if let Some(angles) = &self.angles {
            turn_heads(&mut q, angles, self.heads.e, false);
            turn_heads(&mut k, angles, self.heads.e, false);
        }
        let mut z = Buffer::new(n * q_width);
        let mut kept = None;
        match ctx.cache.as_deref_mut() {
            Some(cache) => {
                attention::cached(self.heads, &self.rows, (&q, &k, &v), cache, l, &mut z);
            }
            None => {
                let qkv = [q, k, v].map(|x| Kept::take(precision, x));
                let [q, k, v] = qkv.each_ref().map(Kept::numbers);
                let mut lse = Buffer::new(n * self.heads.h);
                attention::forward(self.heads, &self.rows, q, k, v, &mut z, &mut lse);
                kept = Some((qkv, lse));
            }
        }

        let z = Kept::take(precision, z);
        let mut y = h.to_vec();
        let branches = self.branches([3]);
        let t_o =
            self.fan(&branches, q_width).forward(z.numbers(), Output::Add, &mut [&mut y[..]])?;
        let h_mid = keep.then(|| Kept::copy(precision, &y));

        let x = self.normed(&self.layer.mlp_norm, (&y).into())?;
        let (mut gate, mut up) = (Buffer::new(n * self.f), Buffer::new(n * self.f));
        let branches = self.branches([4, 5]);
        let outs = &mut [&mut gate[..], &mut up[..]];
        let t_mlp = self.fan(&branches, self.d).forward(x.numbers(), Output::Set, outs)?;
        drop(x);
        let (gate, up) = (Kept::take(precision, gate), Kept::take(precision, up));
        let act = swiglu::kept(precision, gate.numbers(), up.numbers());
        let branches = self.branches([6]);
        let t_down =
            self.fan(&branches, self.f).forward(act.numbers(), Output::Add, &mut [&mut y[..]])?;

        let saved = h_mid.zip(kept).map(|(h_mid, (qkv, lse))| Saved {
            h: Kept::copy(precision, &h),
            plain_qk,
            qkv,
            z,
            lse,
            h_mid,
            gate,
            up,
            t: [t_qkv, t_o, t_mlp, t_down],
        });
        Ok((Tensor::from_vec(y, (n, self.d), h_nd.device())?, saved))
    }

    /// A norm's output as products read it.
    pub(super) fn normed(&self, norm: &Norm, x: luthier_kernels::num::Numbers) -> Result<Kept> {
        let scale = Read::new(&norm.scale_d)?;
        Ok(norm::kept(self.precision, x, &scale, norm.eps))
    }

    fn normed_wide(&self, norm: &Norm, x: &Kept) -> Result<Buffer> {
        let (scale, mut y) = (Read::new(&norm.scale_d)?, x.widened());
        let plain = Buffer::copy(&y);
        norm::forward(&plain, &scale, norm.eps, &mut y);
        Ok(y)
    }
}
