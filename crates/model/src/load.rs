//! From an opened checkpoint to a decoder: every tensor checked, then moved into place.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use luthier_core::{Error, Result, SiteKind, SiteMap};
use luthier_kernels::{Frozen, Rotation, blocks::Blocks, nf4::Nf4, num::Precision};

use crate::{
    config::ModelConfig,
    decoder::{Decoder, Layer, LayerSites},
    names::{SCORE, hf_module},
    source::Source,
    weight::{Linear, Norm, Weight},
};

struct Loader<'a> {
    origin: Origin<'a>,
    config: &'a ModelConfig,
    holding: Holding,
    sites: SiteMap,
}

/// The numbers of a weight by its Hugging Face name, in row order.
pub type Given<'a> = &'a dyn Fn(&str) -> Result<Vec<f32>>;

/// Where weights come from.
#[derive(Clone, Copy)]
enum Origin<'a> {
    File(&'a Source),
    Given(Given<'a>),
}

impl Origin<'_> {
    fn numbers(self, name: &str) -> Result<Vec<f32>> {
        match self {
            Origin::File(source) => source.load_f32(name),
            Origin::Given(given) => given(name),
        }
    }
}

/// How a model's weights are held in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// The arithmetic of matrix products; weights are expanded to it.
    pub precision: Precision,
    /// Quantised weights stay as their file has them: the least memory, and the fastest for a few
    /// tokens at a time. Large batches are a little faster with expanded weights.
    pub stored: bool,
    /// Linear weights in the blocks are quantised one by one as they are loaded; the embedding
    /// table, norms and an untied head are not.
    pub quantize: Option<Quantize>,
}

/// What weights are quantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantize {
    /// 4-bit normal numbers.
    Nf4 {
        /// Whether the scales are quantised too: 4.13 bits per weight instead of 4.5.
        double_quant: bool,
    },
}

impl From<Precision> for Holding {
    fn from(precision: Precision) -> Self {
        Holding { precision, ..Holding::default() }
    }
}

impl Loader<'_> {
    fn vector(&self, name: &str, d: usize) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.origin.numbers(name)?, d, &Device::Cpu)?)
    }

    fn matrix(&self, name: &str, o: usize, i: usize) -> Result<Weight> {
        let Holding { precision, stored, .. } = self.holding;
        let source = match self.origin {
            Origin::Given(given) => {
                return Ok(Weight::Frozen(Frozen::new(given(name)?, o, i, precision)?));
            }
            Origin::File(source) => source,
        };
        if stored && let Some(blocks) = source.load_blocks(name)? {
            return Ok(Weight::Frozen(Frozen::quantised(blocks, precision)));
        }
        Ok(Weight::Frozen(Frozen::held(source.load_held(name, precision)?, o, i)?))
    }

    /// A weight in a block, in f32 until it is quantised and no longer.
    fn quantised(&self, name: &str, o: usize, i: usize, to: Quantize) -> Result<Weight> {
        if let Origin::File(source) = self.origin {
            let dtype = source.dtype_name(name)?;
            if source.gguf().is_some() && !matches!(dtype, "F32" | "F16" | "BF16") {
                let at = source.path().display().to_string();
                let what =
                    format!("{name} is quantised already ({dtype}), and cannot be once more");
                return Err(Error::input(at, what).hint(
                    "models.quantize = \"stored\" keeps weights at the size their file has",
                ));
            }
        }
        let Quantize::Nf4 { double_quant } = to;
        let numbers = Nf4::quantise(&self.origin.numbers(name)?, double_quant);
        let blocks = Blocks::nf4(numbers, o, i)?;
        Ok(Weight::Frozen(Frozen::quantised(blocks, self.holding.precision)))
    }

    fn linear(
        &mut self,
        site: String,
        layer: Option<usize>,
        o: usize,
        i: usize,
        bias: bool,
    ) -> Result<Linear> {
        let module = hf_module(&site).unwrap_or_else(|| site.clone());
        let name = format!("{module}.weight");
        let weight = match self.holding.quantize.filter(|_| layer.is_some()) {
            Some(to) => self.quantised(&name, o, i, to)?,
            None => self.matrix(&name, o, i)?,
        };
        let bias_o = match bias {
            true => Some(self.vector(&format!("{module}.bias"), o)?),
            false => None,
        };
        let site = self.sites.add(site, SiteKind::Linear { i, o, bias }, layer, Some(module));
        Ok(Linear { site, weight, bias: bias_o })
    }

    fn norm(&mut self, site: String, layer: Option<usize>, d: usize) -> Result<Norm> {
        let module = hf_module(&site).unwrap_or_else(|| site.clone());
        let scale_d = self.vector(&format!("{module}.weight"), d)?;
        let site = self.sites.add(site, SiteKind::Norm { d }, layer, Some(module));
        Ok(Norm { site, scale_d, eps: self.config.rms_eps })
    }

    fn layer(&mut self, l: usize) -> Result<Layer> {
        let c = self.config;
        let (d, f, at) = (c.hidden, c.ffn, Some(l));
        let (qd, kd) = (c.q_width(), c.kv_width());
        let site = |part: &str| format!("layers.{l}.{part}");
        let watch = |sites: &mut SiteMap, part: &str, d: usize| {
            sites.add(site(part), SiteKind::Activation { d }, at, None)
        };
        let resid_pre = watch(&mut self.sites, "resid_pre", d);
        let attn_norm = self.norm(site("attn_norm"), at, d)?;
        let q = self.linear(site("attn.q"), at, qd, d, c.qkv_bias)?;
        let k = self.linear(site("attn.k"), at, kd, d, c.qkv_bias)?;
        let v = self.linear(site("attn.v"), at, kd, d, c.qkv_bias)?;
        let qk_norm = match c.qk_norm {
            true => Some((
                self.norm(site("attn.q_norm"), at, c.head_dim)?,
                self.norm(site("attn.k_norm"), at, c.head_dim)?,
            )),
            false => None,
        };
        let pattern = watch(&mut self.sites, "attn.pattern", c.heads);
        let z = watch(&mut self.sites, "attn.z", qd);
        let o = self.linear(site("attn.o"), at, d, qd, c.o_bias)?;
        let attn_out = watch(&mut self.sites, "attn.out", d);
        let resid_mid = watch(&mut self.sites, "resid_mid", d);
        let mlp_norm = self.norm(site("mlp_norm"), at, d)?;
        let gate = self.linear(site("mlp.gate"), at, f, d, c.mlp_bias)?;
        let up = self.linear(site("mlp.up"), at, f, d, c.mlp_bias)?;
        let act = watch(&mut self.sites, "mlp.act", f);
        let down = self.linear(site("mlp.down"), at, d, f, c.mlp_bias)?;
        let mlp_out = watch(&mut self.sites, "mlp.out", d);
        let resid_post = watch(&mut self.sites, "resid_post", d);
        let at =
            LayerSites { resid_pre, pattern, z, attn_out, resid_mid, act, mlp_out, resid_post };
        Ok(Layer { attn_norm, q, k, v, qk_norm, o, mlp_norm, gate, up, down, at })
    }
}

impl Decoder {
    /// Bytes of all weights as they are held; the variables among them count as f32.
    pub fn held_bytes(&self) -> u64 {
        let weight = |w: &Weight| match w {
            Weight::Frozen(w) => w.bytes(),
            Weight::Dense(w, _) => w.elem_count() * size_of::<f32>(),
        };
        let vector = |w: &Tensor| w.elem_count() * size_of::<f32>();
        let linear = |l: &Linear| weight(&l.weight) + l.bias.as_ref().map_or(0, vector);
        let layer = |l: &Layer| {
            let linears = [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down].map(linear);
            let qk = l.qk_norm.iter().flat_map(|(q, k)| [q, k]);
            let norms = [&l.attn_norm, &l.mlp_norm].into_iter().chain(qk);
            linears.iter().sum::<usize>() + norms.map(|n| vector(&n.scale_d)).sum::<usize>()
        };
        let ends = weight(&self.embed) + vector(&self.final_norm.scale_d);
        let head = self.head.as_ref().map_or(0, linear);
        (ends + head + self.layers.iter().map(layer).sum::<usize>()) as u64
    }

    /// Loads every weight of `source`, frozen, held as `holding` says. `loaded(done, total)`
    /// is called after each layer.
    pub fn load(
        source: &Source,
        holding: impl Into<Holding>,
        mut loaded: impl FnMut(usize, usize),
    ) -> Result<Decoder> {
        let (config, holding) = (source.config(), holding.into());
        let origin = Origin::File(source);
        let loader = Loader { origin, config, holding, sites: SiteMap::default() };
        Decoder::assemble(loader, &mut loaded)
    }

    /// A decoder of weights that are in memory, each asked for once, held as `holding` says.
    pub fn from_weights(
        config: &ModelConfig,
        weights: Given,
        holding: impl Into<Holding>,
    ) -> Result<Decoder> {
        config.check("model")?;
        let (origin, holding) = (Origin::Given(weights), holding.into());
        let loader = Loader { origin, config, holding, sites: SiteMap::default() };
        Decoder::assemble(loader, &mut |_, _| ())
    }

    fn assemble(mut loader: Loader, loaded: &mut dyn FnMut(usize, usize)) -> Result<Decoder> {
        let config = loader.config;
        let (v, d) = (config.vocab, config.hidden);
        let module = hf_module("embed");
        let name = module.clone().unwrap_or_default();
        let embed = loader.matrix(&format!("{name}.weight"), v, d)?;
        let embed_site = loader.sites.add("embed", SiteKind::Embed { v, d }, None, module);
        let mut layers = Vec::with_capacity(config.layers);
        for l in 0..config.layers {
            layers.push(loader.layer(l)?);
            loaded(l + 1, config.layers);
        }
        let final_norm = loader.norm("final_norm".into(), None, d)?;
        let (head, head_site) = if let Some(labels) = config.labels {
            let weight = loader.matrix(&format!("{SCORE}.weight"), labels, d)?;
            let kind = SiteKind::Linear { i: d, o: labels, bias: false };
            let site = loader.sites.add("logits", kind, None, Some(SCORE.into()));
            (Some(Linear { site, weight, bias: None }), site)
        } else if config.tied {
            let kind = SiteKind::Linear { i: d, o: v, bias: false };
            (None, loader.sites.add("logits", kind, None, hf_module("logits")))
        } else {
            let head = loader.linear("logits".into(), None, v, d, false)?;
            let site = head.site;
            (Some(head), site)
        };
        let (inv_freq, factor) = config.rope.inv_freq();
        let sites = Arc::new(loader.sites);
        Ok(Decoder {
            sites,
            embed,
            embed_site,
            layers,
            final_norm,
            head,
            head_site,
            rotation: Rotation::new(inv_freq, factor),
            config: Arc::new(config.clone()),
        })
    }
}
