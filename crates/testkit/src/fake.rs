//! A model small enough to reason about, for laws that need any model but no real one.
//!
//! No attention: each block reads the previous token of the same row,
//!
//! ```text
//! a = V·h[t−1] / (1 + position)          attn.v, 0 at the start of a sequence
//! m = h + a
//! y = m + D·tanh(U·m + b)                mlp.up, mlp.down
//! ```
//!
//! which is enough to show a leak between rows, a wrong position, or a cache that lost a token.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{D, DType, Device, Tensor, Var};
use luthier_core::{
    Affine, Ctx, Error, Held, Model, Result, Seed, SiteId, SiteInfo, SiteKind, SiteMap,
};

use crate::random::around;

const EPS: f64 = 1e-6;

/// Sizes of a [`Fake`].
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Vocabulary size.
    pub vocab: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width inside the MLP.
    pub inner: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Whether the head is the embedding table.
    pub tied: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { vocab: 13, width: 6, inner: 10, layers: 2, tied: false }
    }
}

/// Where a block's sites are.
#[derive(Clone, Copy)]
struct Block {
    resid_pre: SiteId,
    v: SiteId,
    resid_mid: SiteId,
    up: SiteId,
    act: SiteId,
    down: SiteId,
    resid_post: SiteId,
}

/// The model. Sites: `embed`, `layers.{i}.{resid_pre,resid_mid,resid_post}`, `layers.{i}.attn.v`,
/// `layers.{i}.mlp.{up,act,down}`, `final_norm`, `logits`; `mlp.up` has a bias.
pub struct Fake {
    shape: Shape,
    sites: SiteMap,
    embed: SiteId,
    blocks: Vec<Block>,
    final_norm: SiteId,
    logits: SiteId,
    /// By Hugging Face name.
    weights: BTreeMap<String, Tensor>,
}

impl Fake {
    /// Random weights, the same for the same shape and seed.
    pub fn new(shape: Shape, seed: Seed) -> Self {
        let Shape { vocab: v, width: d, inner: f, layers, tied } = shape;
        let mut sites = SiteMap::default();
        let embed =
            sites.add("embed", SiteKind::Embed { v, d }, None, Some("model.embed_tokens".into()));
        let mut blocks = Vec::with_capacity(layers);
        for l in 0..layers {
            let mut add = |name: &str, kind: SiteKind, module: Option<&str>| {
                let module = module.map(|m| format!("model.layers.{l}.{m}"));
                sites.add(format!("layers.{l}.{name}"), kind, Some(l), module)
            };
            let linear = |i, o, bias| SiteKind::Linear { i, o, bias };
            let stream = SiteKind::Activation { d };
            blocks.push(Block {
                resid_pre: add("resid_pre", stream, None),
                v: add("attn.v", linear(d, d, false), Some("self_attn.v_proj")),
                resid_mid: add("resid_mid", stream, None),
                up: add("mlp.up", linear(d, f, true), Some("mlp.up_proj")),
                act: add("mlp.act", SiteKind::Activation { d: f }, None),
                down: add("mlp.down", linear(f, d, false), Some("mlp.down_proj")),
                resid_post: add("resid_post", stream, None),
            });
        }
        let norm = SiteKind::Norm { d };
        let final_norm = sites.add("final_norm", norm, None, Some("model.norm".into()));
        let head = SiteKind::Linear { i: d, o: v, bias: false };
        let logits = sites.add("logits", head, None, Some("lm_head".into()));
        let mut fake =
            Fake { shape, sites, embed, blocks, final_norm, logits, weights: BTreeMap::new() };
        for info in fake.sites.clone().iter() {
            for (name, dims) in parameters(info) {
                if name == "lm_head.weight" && tied {
                    continue;
                }
                let near = if name == "model.norm.weight" { 1.0 } else { 0.0 };
                fake.weights.insert(name.clone(), around(near, dims, 0.5, seed.split(&name)));
            }
        }
        fake
    }

    /// The sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Names and values of all weights.
    pub fn weights(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.weights.iter().map(|(name, t)| (name.as_str(), t))
    }

    fn weight(&self, site: SiteId, part: &str) -> Option<&Tensor> {
        let module = self.sites.info(site).module.as_deref()?;
        self.weights.get(&format!("{}.{part}", self.stored(module)))
    }

    /// The module that holds the weights of `module`: the tied head has none of its own.
    fn stored<'m>(&self, module: &'m str) -> &'m str {
        if self.shape.tied && module == "lm_head" { "model.embed_tokens" } else { module }
    }

    fn linear(&self, site: SiteId, x_ni: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        let affine = self.affine(site)?;
        ctx.through(&self.sites, site, x_ni, |x_ni| {
            let y_no = x_ni.matmul(&affine.w_oi.t()?)?;
            Ok(match &affine.b_o {
                Some(b_o) => y_no.broadcast_add(b_o)?,
                None => y_no,
            })
        })
    }

    /// For each token the residual stream of the token before it in its sequence, scaled by
    /// `1 / (1 + position)`; zeros at the start of a sequence.
    fn previous(&self, layer: usize, h_nd: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let (n, d) = h_nd.dims2()?;
        let rows = ctx.rows.clone();
        let mut before = vec![0f32; rows.b() * d];
        if let Some(cache) = ctx.cache.as_deref_mut() {
            let flat = h_nd.detach().flatten_all()?.to_vec1::<f32>()?;
            for row in 0..rows.b() {
                let seen = cache.len(row);
                let kv = cache.kv(row, layer);
                let Held::F32(k) = &mut kv.k else { unreachable!("this model writes f32 only") };
                if k.len() != seen * d {
                    let what = format!("the cache holds {} numbers for {seen} tokens", k.len());
                    return Err(Error::failed(format!("layers.{layer}"), what));
                }
                if seen > 0 {
                    before[row * d..(row + 1) * d].copy_from_slice(&k[(seen - 1) * d..]);
                }
                let range = rows.range(row);
                k.extend_from_slice(&flat[range.start * d..range.end * d]);
            }
        }
        let mut index_n = vec![0u32; n];
        for row in 0..rows.b() {
            for (k, t) in rows.range(row).enumerate() {
                index_n[t] = if k == 0 { n + row } else { t - 1 } as u32;
            }
        }
        let before_bd = Tensor::from_vec(before, (rows.b(), d), &Device::Cpu)?;
        let index_n = Tensor::from_vec(index_n, n, &Device::Cpu)?;
        let previous_nd = Tensor::cat(&[h_nd, &before_bd], 0)?.index_select(&index_n, 0)?;
        let scale: Vec<f32> = rows.positions_n.iter().map(|p| 1.0 / (1.0 + *p as f32)).collect();
        Ok(previous_nd.broadcast_mul(&Tensor::from_vec(scale, (n, 1), &Device::Cpu)?)?)
    }
}

/// The parameters of a site: checkpoint name and shape.
fn parameters(info: &SiteInfo) -> Vec<(String, Vec<usize>)> {
    let Some(module) = &info.module else { return Vec::new() };
    let weight = |dims: Vec<usize>| (format!("{module}.weight"), dims);
    match info.kind {
        SiteKind::Linear { i, o, bias: true } => {
            vec![weight(vec![o, i]), (format!("{module}.bias"), vec![o])]
        }
        SiteKind::Linear { i, o, bias: false } => vec![weight(vec![o, i])],
        SiteKind::Embed { v, d } => vec![weight(vec![v, d])],
        SiteKind::Norm { d } => vec![weight(vec![d])],
        SiteKind::Activation { .. } => Vec::new(),
    }
}

impl Model for Fake {
    fn sites(&self) -> &SiteMap {
        &self.sites
    }

    fn n_layers(&self) -> usize {
        self.shape.layers
    }

    fn vocab(&self) -> usize {
        self.shape.vocab
    }

    fn width(&self) -> usize {
        self.shape.width
    }

    fn embed(&self, ids_n: &[u32], ctx: &mut Ctx) -> Result<Tensor> {
        let table_vd = self.affine(self.embed)?.w_oi;
        let nothing = Tensor::zeros(0, DType::F32, &Device::Cpu)?;
        ctx.through(&self.sites, self.embed, &nothing, |_| {
            let ids_n = Tensor::from_slice(ids_n, ids_n.len(), &Device::Cpu)?;
            Ok(table_vd.index_select(&ids_n, 0)?)
        })
    }

    fn block(&self, layer: usize, h_nd: Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let at = self.blocks[layer];
        let h_nd = ctx.watch(&self.sites, at.resid_pre, h_nd)?;
        let previous_nd = self.previous(layer, &h_nd, ctx)?;
        let h_nd = (h_nd + self.linear(at.v, &previous_nd, ctx)?)?;
        let h_nd = ctx.watch(&self.sites, at.resid_mid, h_nd)?;
        let act_nf = self.linear(at.up, &h_nd, ctx)?.tanh()?;
        let act_nf = ctx.watch(&self.sites, at.act, act_nf)?;
        let h_nd = (h_nd + self.linear(at.down, &act_nf, ctx)?)?;
        ctx.watch(&self.sites, at.resid_post, h_nd)
    }

    fn unembed(&self, h_nd: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let scale_d = self.affine(self.final_norm)?.w_oi;
        let h_nd = ctx.through(&self.sites, self.final_norm, h_nd, |h_nd| {
            let size_n1 = (h_nd.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
            Ok(h_nd.broadcast_div(&size_n1)?.broadcast_mul(&scale_d)?)
        })?;
        self.linear(self.logits, &h_nd, ctx)
    }

    fn affine(&self, site: SiteId) -> Result<Affine> {
        let Some(w_oi) = self.weight(site, "weight") else {
            return Err(Error::failed(&self.sites.info(site).name, "this site has no weights"));
        };
        Ok(Affine { w_oi: w_oi.clone(), b_o: self.weight(site, "bias").cloned() })
    }

    fn learn(&self, sites: &[SiteId]) -> Result<luthier_core::Learned> {
        let mut weights = self.weights.clone();
        let mut vars: Vec<(String, Var)> = Vec::new();
        for site in sites {
            let info = self.sites.info(*site);
            let named = parameters(info);
            if named.is_empty() {
                return Err(Error::failed(&info.name, "this site has no weights"));
            }
            for (name, _) in named {
                let (module, part) = name.rsplit_once('.').expect("names are <module>.<part>");
                let name = format!("{}.{part}", self.stored(module));
                // A tied table is one variable, whichever of its two sites was named.
                if vars.iter().any(|(n, _)| *n == name) {
                    continue;
                }
                let var = Var::from_tensor(&self.weights[&name])?;
                weights.insert(name.clone(), var.as_tensor().clone());
                vars.push((name, var));
            }
        }
        let fake =
            Fake { weights, sites: self.sites.clone(), blocks: self.blocks.clone(), ..*self };
        Ok((Arc::new(fake), vars))
    }

    fn resting(&self, learns: &dyn Fn(&Tensor) -> bool) -> Result<Arc<dyn Model>> {
        let rest = |w: &Tensor| if learns(w) { w.clone() } else { w.detach() };
        let weights = self.weights.iter().map(|(name, w)| (name.clone(), rest(w))).collect();
        let (sites, blocks) = (self.sites.clone(), self.blocks.clone());
        Ok(Arc::new(Fake { weights, sites, blocks, ..*self }))
    }
}
