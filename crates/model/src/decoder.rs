//! The decoder of the Llama family: embed, blocks, unembed.
//!
//! [`Model::block`] is the block in tensor operations, for any hook. Where nothing but low-rank
//! additions is bound, `fused` and `tape` compute the same without a graph.

use std::sync::Arc;

use candle_core::{Tensor, Var};
use luthier_core::{
    Affine, Ctx, Error, Found, Model, Result, Rotary, SiteId, SiteKind, SiteMap, Taped,
};
use luthier_kernels::{
    Heads, Rotation, attend, attend_cached, attention, head_logp, rotate, swiglu,
};

use crate::{
    config::ModelConfig,
    names::SCORE,
    weight::{Linear, Norm, Weight, learn_vector, rest},
};

mod fan;
mod fused;
mod head;
mod tape;

/// One block: attention and gated MLP, each behind a norm and a residual.
#[derive(Clone)]
pub struct Layer {
    /// Before attention.
    pub attn_norm: Norm,
    /// Query projection.
    pub q: Linear,
    /// Key projection.
    pub k: Linear,
    /// Value projection.
    pub v: Linear,
    /// Per-head norms of queries and keys (Qwen3).
    pub qk_norm: Option<(Norm, Norm)>,
    /// Output projection.
    pub o: Linear,
    /// Before the MLP.
    pub mlp_norm: Norm,
    /// Gate projection.
    pub gate: Linear,
    /// Up projection.
    pub up: Linear,
    /// Down projection.
    pub down: Linear,
    /// Activation sites.
    pub at: LayerSites,
}

impl Layer {
    fn linears_mut(&mut self) -> [&mut Linear; 7] {
        let Layer { q, k, v, o, gate, up, down, .. } = self;
        [q, k, v, o, gate, up, down]
    }

    fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        let Layer { attn_norm, mlp_norm, qk_norm, .. } = self;
        let qk = qk_norm.iter_mut().flat_map(|(q, k)| [q, k]);
        [attn_norm, mlp_norm].into_iter().chain(qk)
    }
}

/// The activation sites of a block.
#[derive(Clone, Copy)]
pub struct LayerSites {
    /// The residual stream before the block.
    pub resid_pre: SiteId,
    /// Attention weights, `(h, len, len)` per row.
    pub pattern: SiteId,
    /// Heads' outputs side by side, before the output projection.
    pub z: SiteId,
    /// What attention adds to the stream.
    pub attn_out: SiteId,
    /// The stream between attention and MLP.
    pub resid_mid: SiteId,
    /// The gated activation.
    pub act: SiteId,
    /// What the MLP adds to the stream.
    pub mlp_out: SiteId,
    /// The stream after the block.
    pub resid_post: SiteId,
}

/// Weights and forward pass; cloning shares the weights.
#[derive(Clone)]
pub struct Decoder {
    pub(crate) config: Arc<ModelConfig>,
    pub(crate) sites: Arc<SiteMap>,
    pub(crate) embed: Weight,
    pub(crate) embed_site: SiteId,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Norm,
    /// `None`: the head is the embedding table.
    pub(crate) head: Option<Linear>,
    pub(crate) head_site: SiteId,
    pub(crate) rotation: Rotation,
}

impl Decoder {
    /// Sizes and switches.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn rotates(&self, layer: usize) -> bool {
        !self.config.no_rope_layers.get(layer).copied().unwrap_or(false)
    }

    fn angles(&self, ctx: &mut Ctx) -> Arc<Vec<f32>> {
        let table = || self.rotation.table(&ctx.rows.positions_n);
        ctx.angles.get_or_insert_with(table).clone()
    }

    fn heads(&self, layer: usize) -> Heads {
        let c = &self.config;
        let precision = self.layers[layer].precision();
        Heads { h: c.heads, k: c.kv_heads, e: c.head_dim, window: c.window(layer), precision }
    }

    fn linear(&self, lin: &Linear, x_ni: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        ctx.through(&self.sites, lin.site, x_ni, |x| lin.apply(x))
    }

    fn norm(&self, norm: &Norm, x_nd: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        ctx.through(&self.sites, norm.site, x_nd, |x| norm.apply(x))
    }

    /// Normalises each head of `x` `(n, heads·e)`.
    fn head_norm(&self, norm: &Norm, x: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        let (n, width) = x.dims2()?;
        let e = self.config.head_dim;
        let y = self.norm(norm, &x.reshape((n * width / e, e))?, ctx)?;
        Ok(y.reshape((n, width))?)
    }

    fn attention(&self, l: usize, layer: &Layer, x_nd: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let mut q = self.linear(&layer.q, x_nd, ctx)?;
        let mut k = self.linear(&layer.k, x_nd, ctx)?;
        let v = self.linear(&layer.v, x_nd, ctx)?;
        if let Some((q_norm, k_norm)) = &layer.qk_norm {
            q = self.head_norm(q_norm, &q, ctx)?;
            k = self.head_norm(k_norm, &k, ctx)?;
        }
        if self.rotates(l) {
            let (table, e) = (self.angles(ctx), self.config.head_dim);
            q = rotate(&q, &table, e)?;
            k = rotate(&k, &table, e)?;
        }
        let (rows, heads) = (ctx.rows.clone(), self.heads(l));
        let watched = ctx.hooks.watched(layer.at.pattern);
        let z = match ctx.cache.as_deref_mut() {
            Some(_) if watched => {
                return Err(Error::failed(
                    format!("layers.{l}.attn.pattern"),
                    "attention patterns cannot be watched while decoding with a cache",
                )
                .hint("run the whole text as one pass instead"));
            }
            Some(cache) => attend_cached(&q, &k, &v, &rows, heads, cache, l)?,
            None if watched => attention::naive_attend(&q, &k, &v, &rows, heads, |_, pattern| {
                ctx.watch(&self.sites, layer.at.pattern, pattern)
                    .map_err(|e| candle_core::Error::Msg(e.to_string()))
            })?,
            None => attend(&q, &k, &v, &rows, heads)?,
        };
        let z = ctx.watch(&self.sites, layer.at.z, z)?;
        let out = self.linear(&layer.o, &z, ctx)?;
        ctx.watch(&self.sites, layer.at.attn_out, out)
    }

    fn mlp(&self, layer: &Layer, x_nd: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        let gate = self.linear(&layer.gate, x_nd, ctx)?;
        let up = self.linear(&layer.up, x_nd, ctx)?;
        let act = ctx.watch(&self.sites, layer.at.act, swiglu(&gate, &up)?)?;
        let out = self.linear(&layer.down, &act, ctx)?;
        ctx.watch(&self.sites, layer.at.mlp_out, out)
    }

    /// Whether the log-probabilities come from the fused head: it has no bias and no hook.
    fn fused_head(&self, ctx: &Ctx) -> bool {
        let biased = self.head.as_ref().is_some_and(|head| head.bias.is_some());
        !biased && !ctx.hooks.watched(self.head_site)
    }

    fn head_weight(&self) -> &Weight {
        self.head.as_ref().map_or(&self.embed, |h| &h.weight)
    }

    /// The linear map at `site`, if one stands there.
    fn linear_at(&mut self, site: SiteId) -> Option<&mut Linear> {
        let layers = self.layers.iter_mut().flat_map(Layer::linears_mut);
        layers.chain(self.head.as_mut()).find(|lin| lin.site == site)
    }

    /// The norm at `site`, if one stands there.
    fn norm_at(&mut self, site: SiteId) -> Option<&mut Norm> {
        let layers = self.layers.iter_mut().flat_map(Layer::norms_mut);
        layers.chain([&mut self.final_norm]).find(|norm| norm.site == site)
    }
}

impl Model for Decoder {
    fn sites(&self) -> &SiteMap {
        &self.sites
    }

    fn n_layers(&self) -> usize {
        self.layers.len()
    }

    fn vocab(&self) -> usize {
        self.config.vocab
    }

    fn width(&self) -> usize {
        self.config.hidden
    }

    fn embed(&self, ids_n: &[u32], ctx: &mut Ctx) -> Result<Tensor> {
        if let Some(id) = ids_n.iter().find(|id| **id as usize >= self.config.vocab) {
            let what = format!("out of range: the model has {} tokens", self.config.vocab);
            return Err(Error::input(format!("token id {id}"), what)
                .hint("the tokenizer belongs to another model; use the one beside the weights"));
        }
        let nothing = Tensor::zeros((0,), candle_core::DType::F32, &candle_core::Device::Cpu)?;
        ctx.through(&self.sites, self.embed_site, &nothing, |_| self.embed.gather(ids_n))
    }

    fn block(&self, l: usize, h_nd: Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let layer = &self.layers[l];
        let h_nd = ctx.watch(&self.sites, layer.at.resid_pre, h_nd)?;
        let x_nd = self.norm(&layer.attn_norm, &h_nd, ctx)?;
        let h_nd = (h_nd + self.attention(l, layer, &x_nd, ctx)?)?;
        let h_nd = ctx.watch(&self.sites, layer.at.resid_mid, h_nd)?;
        let x_nd = self.norm(&layer.mlp_norm, &h_nd, ctx)?;
        let h_nd = (h_nd + self.mlp(layer, &x_nd, ctx)?)?;
        ctx.watch(&self.sites, layer.at.resid_post, h_nd)
    }

    fn forward(&self, l: usize, h_nd: Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        match self.fused_forward(l, &h_nd, ctx)? {
            Some(y_nd) => Ok(y_nd),
            None => Ok(self.block(l, h_nd, ctx)?.detach()),
        }
    }

    fn tape(&self, l: usize, h_nd: &Tensor, below: bool, ctx: &mut Ctx) -> Result<Option<Taped>> {
        self.fused_tape(l, h_nd, below, ctx)
    }

    fn unembed(&self, h_nd: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let x_nd = self.norm(&self.final_norm, h_nd, ctx)?;
        ctx.through(&self.sites, self.head_site, &x_nd, |x| match &self.head {
            Some(head) => head.apply(x),
            None => self.embed.apply(x),
        })
    }

    fn logp(&self, h_md: &Tensor, targets_m: &[u32], ctx: &mut Ctx) -> Result<Tensor> {
        if !self.fused_head(ctx) {
            let logits_mv = self.unembed(h_md, ctx)?;
            return luthier_core::model::gather_logp(&logits_mv, targets_m);
        }
        let x_md = self.norm(&self.final_norm, h_md, ctx)?;
        Ok(head_logp(&x_md, self.head_weight().head(), targets_m)?)
    }

    fn logp_tape(
        &self,
        h_md: &Tensor,
        targets_m: &[u32],
        below: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Taped>> {
        if !self.fused_head(ctx) || ctx.hooks.watched(self.final_norm.site) {
            return Ok(None);
        }
        let weight = self.head_weight().clone();
        Ok(Some(head::forward(self.final_norm.clone(), weight, h_md, targets_m, below)?))
    }

    fn embed_backward(
        &self,
        ids_n: &[u32],
        dh_nd: &Tensor,
        ctx: &mut Ctx,
        found: &mut Found,
    ) -> Result<bool> {
        let Some(table) = self.embed.learned() else { return Ok(false) };
        if ctx.hooks.watched(self.embed_site) {
            return Ok(false);
        }
        head::add_rows(table, ids_n, dh_nd, found)?;
        Ok(true)
    }

    fn affine(&self, site: SiteId) -> Result<Affine> {
        if site == self.embed_site || (site == self.head_site && self.head.is_none()) {
            return Ok(Affine { w_oi: self.embed.dense()?, b_o: None });
        }
        // Look-ups by site share one walk; a clone of the decoder is a few hundred pointers.
        let mut view = self.clone();
        if let Some(lin) = view.linear_at(site) {
            return lin.affine();
        }
        if let Some(norm) = view.norm_at(site) {
            return Ok(Affine { w_oi: norm.scale_d.detach(), b_o: None });
        }
        let name = &self.sites.info(site).name;
        Err(Error::failed(name, "this site has no weights"))
    }

    fn rotation(&self, layer: usize) -> Option<Rotary<'_>> {
        let (inv_freq, factor) = self.rotation.parts();
        self.rotates(layer).then_some(Rotary { inv_freq, factor })
    }

    fn learn(&self, sites: &[SiteId]) -> Result<luthier_core::Learned> {
        let mut learned = self.clone();
        let mut vars: Vec<(String, Var)> = Vec::new();
        let mut embed_done = false;
        for site in sites {
            let info = self.sites.info(*site);
            let module = info.module.clone().unwrap_or_else(|| info.name.clone());
            let tied_head = *site == self.head_site && self.head.is_none();
            if *site == self.embed_site || tied_head {
                // A tied head and the embedding are one variable under the embedding's name.
                if !std::mem::replace(&mut embed_done, true) {
                    let module = self.sites.info(self.embed_site).module.clone();
                    let name = module.unwrap_or_else(|| "embed".into());
                    vars.push((format!("{name}.weight"), learned.embed.learn()?));
                }
            } else if let Some(lin) = learned.linear_at(*site) {
                vars.push((format!("{module}.weight"), lin.weight.learn()?));
                if let Some(bias) = lin.bias.as_mut() {
                    vars.push((format!("{module}.bias"), learn_vector(bias)?));
                }
            } else if let Some(norm) = learned.norm_at(*site) {
                vars.push((format!("{module}.weight"), learn_vector(&mut norm.scale_d)?));
            } else {
                return Err(Error::input(&info.name, "this site has no weights to learn"));
            }
        }
        Ok((Arc::new(learned), vars))
    }

    fn with_head(&self, w_oi: &Tensor) -> Result<Arc<dyn Model>> {
        let (o, i) = w_oi.dims2()?;
        if i != self.config.hidden {
            let what = format!("expected width {}, got {i}", self.config.hidden);
            return Err(Error::input(SCORE, what));
        }
        let (mut model, mut sites) = (self.clone(), (*self.sites).clone());
        let kind = SiteKind::Linear { i, o, bias: false };
        sites.put(self.head_site, kind, Some(SCORE.into()));
        let weight = Weight::Dense(w_oi.clone(), self.head_weight().precision());
        model.head = Some(Linear { site: self.head_site, weight, bias: None });
        model.sites = Arc::new(sites);
        Ok(Arc::new(model))
    }

    fn resting(&self, learns: &dyn Fn(&Tensor) -> bool) -> Result<Arc<dyn Model>> {
        let mut model = self.clone();
        model.embed.rest(learns);
        for layer in &mut model.layers {
            for lin in layer.linears_mut() {
                lin.weight.rest(learns);
                lin.bias.iter_mut().for_each(|b| rest(b, learns));
            }
            layer.norms_mut().for_each(|norm| rest(&mut norm.scale_d, learns));
        }
        rest(&mut model.final_norm.scale_d, learns);
        if let Some(head) = &mut model.head {
            head.weight.rest(learns);
            head.bias.iter_mut().for_each(|b| rest(b, learns));
        }
        Ok(Arc::new(model))
    }
}

/// Total number of weights; a tied table counts once.
pub fn parameters(sites: &SiteMap, tied: bool) -> u64 {
    let weights = |kind: SiteKind| match kind {
        SiteKind::Linear { i, o, bias } => i * o + if bias { o } else { 0 },
        SiteKind::Embed { v, d } => v * d,
        SiteKind::Norm { d } => d,
        SiteKind::Activation { .. } => 0,
    };
    let counted = sites.iter().filter(|s| !(tied && s.name == "logits"));
    counted.map(|s| weights(s.kind) as u64).sum()
}
