//! The Llama forward pass in plain tensor operations, row by row: slow, and easy to check by eye.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{D, DType, Device, Tensor, Var};
use luthier_core::{
    Affine, Ctx, Hooks, Model, Param, Result, Rows, SiteId, SiteKind, SiteMap, StateDict, io,
};
use luthier_params::{Bound, peft};
use luthier_testkit::{golden, load_tensors};

const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_WIDTH: usize = 8;
const EPS: f64 = 1e-6;

/// With `LUTHIER_PEFT_OUT` set, leaves an adapter there for `benches/checks/peft_roundtrip.py` to
/// load with PEFT, beside the logits that it gives here for rows of these lengths.
#[allow(dead_code)]
pub fn leave_for_peft(name: &str, base: &str, bound: &Bound, ids: &[u32], lengths: &[usize]) {
    let Some(out) = std::env::var_os("LUTHIER_PEFT_OUT") else { return };
    let dir = std::path::Path::new(&out).join(name);
    let base = peft::Base { name: base.into(), sha256: None };
    peft::save(&dir, bound, bound.policy.model.sites(), &base).expect("it can be saved");
    let rows = Arc::new(Rows::new(lengths, |_| 0));
    let logits_nv = bound.policy.logits(ids, rows.clone()).expect("it runs").detach();
    let offsets: Vec<u32> = rows.offsets.iter().map(|offset| *offset as u32).collect();
    let column = |x: &[u32]| Tensor::new(x, &Device::Cpu).expect("a column");
    let values = [("logits_nv", logits_nv), ("ids_n", column(ids)), ("offsets", column(&offsets))];
    let values: StateDict = values.into_iter().map(|(k, v)| (k.to_string(), v)).collect();
    values.save(&dir.join("golden.safetensors"), &[]).expect("it can be written");
}

/// A pico llama or qwen2 of `tests/golden/models`.
#[derive(Clone)]
pub struct Naive {
    theta: f64,
    sites: SiteMap,
    weights: BTreeMap<String, Tensor>,
}

impl Naive {
    /// With the weights that transformers saved in this folder of `tests/golden`.
    pub fn golden(folder: &str) -> Self {
        let file: StateDict = load_tensors(format!("{folder}/model.safetensors"));
        let weights: BTreeMap<String, Tensor> =
            file.iter().map(|(name, t)| (name.to_string(), t.clone())).collect();
        let config: serde_json::Value =
            io::read_json(&golden(format!("{folder}/config.json"))).expect("it is JSON");
        let theta = config["rope_parameters"]["rope_theta"].as_f64().expect("a number");
        let mut sites = SiteMap::default();
        let mut add = |name: String, module: String, layer: Option<usize>| {
            // The head may be the embedding.
            let table = &weights["model.embed_tokens.weight"];
            let weight = weights.get(&format!("{module}.weight")).unwrap_or(table);
            let dims = weight.dims().to_vec();
            let kind = match dims[..] {
                [v, d] if name == "embed" => SiteKind::Embed { v, d },
                [o, i] => {
                    SiteKind::Linear { i, o, bias: weights.contains_key(&format!("{module}.bias")) }
                }
                _ => SiteKind::Norm { d: dims[0] },
            };
            sites.add(name, kind, layer, Some(module));
        };
        add("embed".into(), "model.embed_tokens".into(), None);
        for l in 0..LAYERS {
            for (ours, theirs) in [
                ("attn_norm", "input_layernorm"),
                ("attn.q", "self_attn.q_proj"),
                ("attn.k", "self_attn.k_proj"),
                ("attn.v", "self_attn.v_proj"),
                ("attn.o", "self_attn.o_proj"),
                ("mlp_norm", "post_attention_layernorm"),
                ("mlp.gate", "mlp.gate_proj"),
                ("mlp.up", "mlp.up_proj"),
                ("mlp.down", "mlp.down_proj"),
            ] {
                add(format!("layers.{l}.{ours}"), format!("model.layers.{l}.{theirs}"), Some(l));
            }
        }
        add("final_norm".into(), "model.norm".into(), None);
        add("logits".into(), "lm_head".into(), None);
        Naive { theta, sites, weights }
    }

    /// The same model with these values of its own weights and every hook folded into them. A head
    /// with hooks has a weight of its own afterwards.
    #[allow(dead_code)]
    pub fn folded(&self, params: &[Param], hooks: &Hooks) -> Result<Naive> {
        let mut weights = self.weights.clone();
        for param in params.iter().filter(|p| self.weights.contains_key(&p.name)) {
            weights.insert(param.name.clone(), param.var.as_detached_tensor());
        }
        let learned = Naive { weights: weights.clone(), ..self.clone() };
        for site in hooks.sites() {
            let folded = hooks.fold(&self.sites, site, learned.affine(site)?)?.expect("foldable");
            let module = self.sites.info(site).module.clone().expect("it has weights");
            weights.insert(format!("{module}.weight"), folded.w_oi);
            if let Some(b_o) = folded.b_o {
                weights.insert(format!("{module}.bias"), b_o);
            }
        }
        Ok(Naive { weights, ..self.clone() })
    }

    /// Another weight in the place of one.
    #[allow(dead_code)]
    pub fn set(&mut self, name: &str, weight: Tensor) {
        self.weights.insert(name.into(), weight);
    }

    /// The name of a module's weight: a head without one is the embedding.
    fn weight(&self, module: &str) -> String {
        let own = format!("{module}.weight");
        match self.weights.contains_key(&own) {
            true => own,
            false => "model.embed_tokens.weight".into(),
        }
    }

    fn at(&self, name: &str) -> SiteId {
        self.sites.get(name).expect("a site of this model").id
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

    fn norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let size = (x.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
        Ok(x.broadcast_div(&size)?.broadcast_mul(&self.affine(self.at(name))?.w_oi)?)
    }

    /// `(len, heads · e)` to `(heads, len, e)`, rotated when `cos_sin` is given.
    fn heads(x: &Tensor, heads: usize, cos_sin: Option<&(Tensor, Tensor)>) -> Result<Tensor> {
        let (len, _) = x.dims2()?;
        let x = x.reshape((len, heads, HEAD_WIDTH))?.transpose(0, 1)?.contiguous()?;
        let Some((cos, sin)) = cos_sin else { return Ok(x) };
        let half = HEAD_WIDTH / 2;
        let turned = Tensor::cat(&[x.narrow(2, half, half)?.neg()?, x.narrow(2, 0, half)?], 2)?;
        Ok((x.broadcast_mul(cos)? + turned.broadcast_mul(sin)?)?)
    }

    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (len, _) = q.dims2()?;
        let angles: Vec<f32> = (0..len)
            .flat_map(|p| {
                (0..HEAD_WIDTH).map(move |j| {
                    let exponent = (2 * (j % (HEAD_WIDTH / 2))) as f64 / HEAD_WIDTH as f64;
                    (p as f64 / self.theta.powf(exponent)) as f32
                })
            })
            .collect();
        let angles = Tensor::from_vec(angles, (len, HEAD_WIDTH), &Device::Cpu)?;
        let cos_sin = (angles.cos()?, angles.sin()?);
        let q = Self::heads(q, HEADS, Some(&cos_sin))?;
        let share = Tensor::new(&[0u32, 0, 1, 1], &Device::Cpu)?;
        let k = Self::heads(k, KV_HEADS, Some(&cos_sin))?.index_select(&share, 0)?;
        let v = Self::heads(v, KV_HEADS, None)?.index_select(&share, 0)?;
        let scores = (q.matmul(&k.transpose(1, 2)?)? / (HEAD_WIDTH as f64).sqrt())?;
        let hidden = |i: usize, j: usize| if j > i { f32::NEG_INFINITY } else { 0.0 };
        let mask: Vec<f32> = (0..len * len).map(|ij| hidden(ij / len, ij % len)).collect();
        let scores = scores.broadcast_add(&Tensor::from_vec(mask, (len, len), &Device::Cpu)?)?;
        let top = scores.max_keepdim(D::Minus1)?.detach();
        let weights = scores.broadcast_sub(&top)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        Ok(weights.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((len, HEADS * HEAD_WIDTH))?)
    }
}

impl Model for Naive {
    fn sites(&self) -> &SiteMap {
        &self.sites
    }

    fn n_layers(&self) -> usize {
        LAYERS
    }

    fn vocab(&self) -> usize {
        96
    }

    fn width(&self) -> usize {
        HEADS * HEAD_WIDTH
    }

    fn embed(&self, ids_n: &[u32], ctx: &mut Ctx) -> Result<Tensor> {
        let (at, table) = (self.at("embed"), &self.weights["model.embed_tokens.weight"]);
        let nothing = Tensor::zeros(0, DType::F32, &Device::Cpu)?;
        ctx.through(&self.sites, at, &nothing, |_| {
            let ids = Tensor::from_slice(ids_n, ids_n.len(), &Device::Cpu)?;
            Ok(table.index_select(&ids, 0)?)
        })
    }

    fn block(&self, l: usize, h: Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        let name = |part: &str| format!("layers.{l}.{part}");
        let x = self.norm(&name("attn_norm"), &h)?;
        let [q, k, v] = ["attn.q", "attn.k", "attn.v"].map(|p| self.linear(&name(p), &x, ctx));
        let (q, k, v) = (q?, k?, v?);
        let rows = ctx.rows.clone();
        let mut z = Vec::new();
        for row in 0..rows.b() {
            let range = rows.range(row);
            let cut = |t: &Tensor| t.narrow(0, range.start, range.len());
            z.push(self.attention(&cut(&q)?, &cut(&k)?, &cut(&v)?)?);
        }
        let h = (h + self.linear(&name("attn.o"), &Tensor::cat(&z, 0)?, ctx)?)?;
        let x = self.norm(&name("mlp_norm"), &h)?;
        let gate = self.linear(&name("mlp.gate"), &x, ctx)?;
        let act = (gate.silu()? * self.linear(&name("mlp.up"), &x, ctx)?)?;
        Ok((h + self.linear(&name("mlp.down"), &act, ctx)?)?)
    }

    fn unembed(&self, h: &Tensor, ctx: &mut Ctx) -> Result<Tensor> {
        self.linear("logits", &self.norm("final_norm", h)?, ctx)
    }

    fn affine(&self, site: SiteId) -> Result<Affine> {
        let module = self.sites.info(site).module.as_deref().expect("it has weights");
        Ok(Affine {
            w_oi: self.weights[&self.weight(module)].clone(),
            b_o: self.weights.get(&format!("{module}.bias")).cloned(),
        })
    }

    fn learn(&self, sites: &[SiteId]) -> Result<luthier_core::Learned> {
        let (mut learned, mut vars) = (self.clone(), Vec::<(String, Var)>::new());
        for site in sites {
            let module = self.sites.info(*site).module.as_deref().expect("it has weights");
            for name in [self.weight(module), format!("{module}.bias")] {
                let Some(weight) = self.weights.get(&name) else { continue };
                if vars.iter().any(|(known, _)| *known == name) {
                    continue;
                }
                let var = Var::from_tensor(weight)?;
                learned.weights.insert(name.clone(), var.as_tensor().clone());
                vars.push((name, var));
            }
        }
        Ok((Arc::new(learned), vars))
    }
}
