//! A Llama in plain tensor operations at every site of which hooks are called, and a model that is
//! nothing but sites.

pub mod apart;

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{D, DType, Device, Tensor, Var};
use luthier_core::{
    Affine, At, Ctx, Hook, Hooks, Model, Policy, Result, Rotary, Rows, Seed, SiteId, SiteKind,
    SiteMap,
};
use luthier_params::Bound;
use luthier_testkit::{load_tensors, random::around};

const EPS: f64 = 1e-6;
const THETA: f64 = 10_000.0;

/// Sizes and switches.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub e: usize,
    pub width: usize,
    pub inner: usize,
    pub vocab: usize,
    /// Whether keys and queries have norms.
    pub qk_norm: bool,
}

pub const SMALL: Sizes = Sizes {
    layers: 2,
    heads: 2,
    kv_heads: 1,
    e: 4,
    width: 8,
    inner: 12,
    vocab: 17,
    qk_norm: false,
};

/// The pico models of `tests/golden/models`.
pub const PICO: Sizes = Sizes {
    layers: 2,
    heads: 4,
    kv_heads: 2,
    e: 8,
    width: 32,
    inner: 0,
    vocab: 96,
    qk_norm: false,
};

#[derive(Clone)]
pub struct Whole {
    pub sizes: Sizes,
    /// Inverse frequencies and the factor on cosine and sine; empty: keys and queries are not rotated.
    pub turn: (Vec<f32>, f32),
    sites: SiteMap,
    weights: BTreeMap<String, Tensor>,
}

impl Whole {
    pub fn random(sizes: Sizes) -> Self {
        let (d, f) = (sizes.width, sizes.inner);
        let (q, kv) = (sizes.heads * sizes.e, sizes.kv_heads * sizes.e);
        let mut weights = BTreeMap::new();
        let mut add = |name: String, dims: &[usize]| {
            let near = if dims.len() == 1 && name.contains("norm") { 1.0 } else { 0.0 };
            weights.insert(name.clone(), noise(&name, dims, near, 0.4));
        };
        add("model.embed_tokens.weight".into(), &[sizes.vocab, d]);
        for l in 0..sizes.layers {
            let mut own =
                |part: &str, dims: &[usize]| add(format!("model.layers.{l}.{part}"), dims);
            own("input_layernorm.weight", &[d]);
            own("self_attn.q_proj.weight", &[q, d]);
            own("self_attn.k_proj.weight", &[kv, d]);
            own("self_attn.v_proj.weight", &[kv, d]);
            // One with a bias, so that folding meets both.
            own("self_attn.v_proj.bias", &[kv]);
            own("self_attn.o_proj.weight", &[d, q]);
            own("post_attention_layernorm.weight", &[d]);
            own("mlp.gate_proj.weight", &[f, d]);
            own("mlp.up_proj.weight", &[f, d]);
            own("mlp.down_proj.weight", &[d, f]);
            if sizes.qk_norm {
                own("self_attn.q_norm.weight", &[sizes.e]);
                own("self_attn.k_norm.weight", &[sizes.e]);
            }
        }
        add("model.norm.weight".into(), &[d]);
        add("lm_head.weight".into(), &[sizes.vocab, d]);
        Whole::new(sizes, weights)
    }

    /// With the weights that transformers saved in this folder of `tests/golden`.
    pub fn golden(folder: &str, sizes: Sizes) -> Self {
        let file = load_tensors(format!("{folder}/model.safetensors"));
        Whole::new(sizes, file.iter().map(|(name, t)| (name.to_string(), t.clone())).collect())
    }

    fn new(sizes: Sizes, weights: BTreeMap<String, Tensor>) -> Self {
        let mut sites = SiteMap::default();
        let weight = |module: &str| weights[&format!("{module}.weight")].dims().to_vec();
        let biased = |module: &str| weights.contains_key(&format!("{module}.bias"));
        let embed = SiteKind::Embed { v: sizes.vocab, d: sizes.width };
        sites.add("embed", embed, None, Some("model.embed_tokens".into()));
        for l in 0..sizes.layers {
            let mut add = |name: &str, module: &str| {
                let name = format!("layers.{l}.{name}");
                if module.is_empty() {
                    let d = match name.rsplit('.').next() {
                        Some("act") => sizes.inner,
                        Some("pattern") => sizes.heads,
                        _ => sizes.width,
                    };
                    sites.add(name, SiteKind::Activation { d }, Some(l), None);
                    return;
                }
                let module = format!("model.layers.{l}.{module}");
                let kind = match weight(&module)[..] {
                    [o, i] => SiteKind::Linear { i, o, bias: biased(&module) },
                    _ => SiteKind::Norm { d: weight(&module)[0] },
                };
                sites.add(name, kind, Some(l), Some(module));
            };
            add("resid_pre", "");
            add("attn_norm", "input_layernorm");
            add("attn.q", "self_attn.q_proj");
            add("attn.k", "self_attn.k_proj");
            add("attn.v", "self_attn.v_proj");
            if sizes.qk_norm {
                add("attn.q_norm", "self_attn.q_norm");
                add("attn.k_norm", "self_attn.k_norm");
            }
            add("attn.pattern", "");
            add("attn.o", "self_attn.o_proj");
            add("attn.out", "");
            add("resid_mid", "");
            add("mlp_norm", "post_attention_layernorm");
            add("mlp.gate", "mlp.gate_proj");
            add("mlp.up", "mlp.up_proj");
            add("mlp.act", "");
            add("mlp.down", "mlp.down_proj");
            add("mlp.out", "");
            add("resid_post", "");
        }
        sites.add("final_norm", SiteKind::Norm { d: sizes.width }, None, Some("model.norm".into()));
        let head = SiteKind::Linear { i: sizes.width, o: sizes.vocab, bias: false };
        sites.add("logits", head, None, Some("lm_head".into()));
        let exponent = |j: usize| (2 * j) as f64 / sizes.e as f64;
        let inv_freq = (0..sizes.e / 2).map(|j| THETA.powf(-exponent(j)) as f32).collect();
        Whole { sizes, turn: (inv_freq, 1.0), sites, weights }
    }

    /// The same model with every hook folded into its weights.
    pub fn folded(&self, hooks: &Hooks) -> Whole {
        let mut folded = self.clone();
        for site in hooks.sites() {
            let lin = hooks.fold(&self.sites, site, self.affine(site).unwrap()).unwrap();
            let lin = lin.unwrap_or_else(|| panic!("{}", self.sites.info(site).name));
            let module = self.sites.info(site).module.clone().unwrap();
            folded.weights.insert(format!("{module}.weight"), lin.w_oi);
            if let Some(b_o) = lin.b_o {
                folded.weights.insert(format!("{module}.bias"), b_o);
            }
        }
        folded
    }

    fn at(&self, name: &str) -> SiteId {
        self.sites.get(name).unwrap_or_else(|| panic!("no site {name}")).id
    }

    fn linear(&self, name: &str, x: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        let lin = self.affine(self.at(name))?;
        ctx.through(&self.sites, self.at(name), x, |x| {
            let y = x.matmul(&lin.w_oi.t()?)?;
            Ok(match &lin.b_o {
                Some(b) => y.broadcast_add(b)?,
                None => y,
            })
        })
    }

    fn norm(&self, name: &str, x: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        let scale = self.affine(self.at(name))?.w_oi;
        ctx.through(&self.sites, self.at(name), x, |x| {
            let size = (x.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
            Ok(x.broadcast_div(&size)?.broadcast_mul(&scale)?)
        })
    }

    fn watch(&self, name: &str, y: Tensor, ctx: &Ctx) -> Result<Tensor> {
        ctx.watch(&self.sites, self.at(name), y)
    }

    /// `(len, heads · e)` to `(heads, len, e)`, rotated by the positions if there are any.
    fn heads(&self, x: &Tensor, heads: usize, positions: Option<&[u32]>) -> Result<Tensor> {
        let ((len, _), e) = (x.dims2()?, self.sizes.e);
        let x = x.reshape((len, heads, e))?.transpose(0, 1)?.contiguous()?;
        let (inv_freq, factor) = &self.turn;
        let Some(positions) = positions.filter(|_| !inv_freq.is_empty()) else { return Ok(x) };
        let of = |p: &u32| {
            let p = *p as f32;
            inv_freq.iter().chain(inv_freq).map(move |by| p * by)
        };
        let angles: Vec<f32> = positions.iter().flat_map(of).collect();
        let angles = Tensor::from_vec(angles, (len, e), &Device::Cpu)?;
        let factor = f64::from(*factor);
        let (cos, sin) = ((angles.cos()? * factor)?, (angles.sin()? * factor)?);
        let half = e / 2;
        let turned = Tensor::cat(&[x.narrow(2, half, half)?.neg()?, x.narrow(2, 0, half)?], 2)?;
        Ok((x.broadcast_mul(&cos)? + turned.broadcast_mul(&sin)?)?)
    }

    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, positions: &[u32]) -> Result<Tensor> {
        let Sizes { heads, kv_heads, e, .. } = self.sizes;
        let (len, _) = q.dims2()?;
        let q = self.heads(q, heads, Some(positions))?;
        let share: Vec<u32> = (0..heads).map(|h| (h * kv_heads / heads) as u32).collect();
        let share = Tensor::from_vec(share, heads, &Device::Cpu)?;
        let k = self.heads(k, kv_heads, Some(positions))?.index_select(&share, 0)?;
        let v = self.heads(v, kv_heads, None)?.index_select(&share, 0)?;
        let scores = (q.matmul(&k.transpose(1, 2)?.contiguous()?)? / (e as f64).sqrt())?;
        let hidden = |i: usize, j: usize| if j > i { f32::NEG_INFINITY } else { 0.0 };
        let mask: Vec<f32> = (0..len * len).map(|ij| hidden(ij / len, ij % len)).collect();
        let scores = scores.broadcast_add(&Tensor::from_vec(mask, (len, len), &Device::Cpu)?)?;
        let top = scores.max_keepdim(D::Minus1)?.detach();
        let weights = scores.broadcast_sub(&top)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        Ok(weights.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((len, heads * e))?)
    }

    fn head_norm(&self, name: &str, x: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        let ((n, width), e) = (x.dims2()?, self.sizes.e);
        Ok(self.norm(name, &x.reshape((n * width / e, e))?, ctx)?.reshape((n, width))?)
    }
}

impl Model for Whole {
    fn sites(&self) -> &SiteMap {
        &self.sites
    }

    fn n_layers(&self) -> usize {
        self.sizes.layers
    }

    fn vocab(&self) -> usize {
        self.sizes.vocab
    }

    fn width(&self) -> usize {
        self.sizes.width
    }

    fn embed(&self, ids_n: &[u32], ctx: &mut Ctx) -> Result<Tensor> {
        let nothing = Tensor::zeros(0, DType::F32, &Device::Cpu)?;
        ctx.through(&self.sites, self.at("embed"), &nothing, |_| {
            let ids = Tensor::from_slice(ids_n, ids_n.len(), &Device::Cpu)?;
            Ok(self.weights["model.embed_tokens.weight"].index_select(&ids, 0)?)
        })
    }

    fn block(&self, l: usize, h: Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let name = |part: &str| format!("layers.{l}.{part}");
        let h = self.watch(&name("resid_pre"), h, ctx)?;
        let x = self.norm(&name("attn_norm"), &h, ctx)?;
        let mut q = self.linear(&name("attn.q"), &x, ctx)?;
        let mut k = self.linear(&name("attn.k"), &x, ctx)?;
        let v = self.linear(&name("attn.v"), &x, ctx)?;
        if self.sizes.qk_norm {
            q = self.head_norm(&name("attn.q_norm"), &q, ctx)?;
            k = self.head_norm(&name("attn.k_norm"), &k, ctx)?;
        }
        let rows = ctx.rows.clone();
        let mut z = Vec::new();
        for row in 0..rows.b() {
            let range = rows.range(row);
            let cut = |t: &Tensor| t.narrow(0, range.start, range.len());
            let positions = &rows.positions_n[range.clone()];
            z.push(self.attend(&cut(&q)?, &cut(&k)?, &cut(&v)?, positions)?);
        }
        let out = self.linear(&name("attn.o"), &Tensor::cat(&z, 0)?, ctx)?;
        let h = (h + self.watch(&name("attn.out"), out, ctx)?)?;
        let h = self.watch(&name("resid_mid"), h, ctx)?;
        let x = self.norm(&name("mlp_norm"), &h, ctx)?;
        let gate = self.linear(&name("mlp.gate"), &x, ctx)?;
        let act = (gate.silu()? * self.linear(&name("mlp.up"), &x, ctx)?)?;
        let act = self.watch(&name("mlp.act"), act, ctx)?;
        let out = self.linear(&name("mlp.down"), &act, ctx)?;
        let h = (h + self.watch(&name("mlp.out"), out, ctx)?)?;
        self.watch(&name("resid_post"), h, ctx)
    }

    fn unembed(&self, h: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let x = self.norm("final_norm", h, ctx)?;
        self.linear("logits", &x, ctx)
    }

    fn rotation(&self, _layer: usize) -> Option<Rotary<'_>> {
        let (inv_freq, factor) = (&self.turn.0, self.turn.1);
        (!inv_freq.is_empty()).then_some(Rotary { inv_freq, factor })
    }

    fn affine(&self, site: SiteId) -> Result<Affine> {
        let module = self.sites.info(site).module.as_deref().expect("it has weights");
        Ok(Affine {
            w_oi: self.weights[&format!("{module}.weight")].clone(),
            b_o: self.weights.get(&format!("{module}.bias")).cloned(),
        })
    }

    fn learn(&self, _sites: &[SiteId]) -> Result<luthier_core::Learned> {
        unreachable!("only adapters are tested on this model")
    }
}

/// Sites without a model, to count what is learned there.
pub struct Bare {
    pub sites: SiteMap,
    pub layers: usize,
    pub width: usize,
}

impl Model for Bare {
    fn sites(&self) -> &SiteMap {
        &self.sites
    }

    fn n_layers(&self) -> usize {
        self.layers
    }

    fn vocab(&self) -> usize {
        11
    }

    fn width(&self) -> usize {
        self.width
    }

    fn embed(&self, _ids_n: &[u32], _ctx: &mut Ctx) -> Result<Tensor> {
        unreachable!("it has no weights")
    }

    fn block(&self, _layer: usize, _h_nd: Tensor, _ctx: &mut Ctx) -> Result<Tensor> {
        unreachable!("it has no weights")
    }

    fn unembed(&self, _h_nd: &Tensor, _ctx: &mut Ctx) -> Result<Tensor> {
        unreachable!("it has no weights")
    }

    fn affine(&self, _site: SiteId) -> Result<Affine> {
        unreachable!("it has no weights")
    }

    fn learn(&self, _sites: &[SiteId]) -> Result<luthier_core::Learned> {
        unreachable!("it has no weights")
    }
}

/// Numbers that a name stands for.
pub fn noise(name: &str, dims: &[usize], near: f64, std: f64) -> Tensor {
    around(near, dims, std, Seed(5).split(name))
}

/// Random values for every variable that learns.
pub fn shake(bound: &Bound) {
    for param in bound.params.iter().filter(|p| p.count() > 0) {
        let near =
            if param.name.ends_with("scale") || param.name.contains("ia3") { 1.0 } else { 0.0 };
        param.var.set(&noise(&param.name, param.var.dims(), near, 0.3)).unwrap();
    }
}

pub fn vars(bound: &Bound) -> Vec<Var> {
    bound.params.iter().filter(|p| p.count() > 0).map(|p| p.var.clone()).collect()
}

pub fn logits(policy: &Policy, ids: &[u32], rows: &Arc<Rows>) -> Tensor {
    policy.logits(ids, rows.clone()).unwrap()
}

/// Keeps the input and the output of a site.
#[derive(Default)]
pub struct Seen(pub std::sync::Mutex<Vec<(Tensor, Tensor)>>);

impl Hook for Seen {
    fn after(&self, _at: &At, x: &Tensor, y: Tensor) -> Result<Tensor> {
        self.0.lock().unwrap().push((x.detach(), y.detach()));
        Ok(y)
    }
}
