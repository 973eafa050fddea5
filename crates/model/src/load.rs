//! From an opened checkpoint to a decoder: every tensor checked, then moved into place.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use luthier_core::{Result, SiteKind, SiteMap};
use luthier_kernels::{Frozen, Rotation, num::Precision};

use crate::{
    config::ModelConfig,
    decoder::{Decoder, Layer, LayerSites},
    names::hf_module,
    source::Source,
    weight::{Linear, Norm, Weight},
};

struct Loader<'a> {
    source: &'a Source,
    config: &'a ModelConfig,
    holding: Holding,
    sites: SiteMap,
}

/// How a model's weights are held in memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holding {
    /// The arithmetic of matrix products; weights are expanded to it.
    pub precision: Precision,
    /// Quantised weights stay as their file has them: the least memory, and the fastest for a few
    /// tokens at a time. Large batches are faster with expanded weights.
    pub stored: bool,
}

impl From<Precision> for Holding {
    fn from(precision: Precision) -> Self {
        Holding { precision, stored: false }
    }
}

impl Loader<'_> {
    fn vector(&self, name: &str, d: usize) -> Result<Tensor> {
        let data = self.source.load_f32(name)?;
        Ok(Tensor::from_vec(data, d, &Device::Cpu)?)
    }

    fn matrix(&self, name: &str, o: usize, i: usize) -> Result<Weight> {
        let Holding { precision, stored } = self.holding;
        if stored && let Some(blocks) = self.source.load_blocks(name)? {
            return Ok(Weight::Frozen(Frozen::quantised(blocks, precision)));
        }
        Ok(Weight::Frozen(Frozen::held(self.source.load_held(name, precision)?, o, i)?))
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
        let weight = self.matrix(&format!("{module}.weight"), o, i)?;
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
    /// Loads every weight of `source`, frozen, held as `holding` says. `loaded(done, total)`
    /// is called after each layer.
    pub fn load(
        source: &Source,
        holding: impl Into<Holding>,
        mut loaded: impl FnMut(usize, usize),
    ) -> Result<Decoder> {
        let config = source.config().clone();
        let mut loader =
            Loader { source, config: &config, holding: holding.into(), sites: SiteMap::default() };
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
        let (head, head_site) = if config.tied {
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
            config: Arc::new(config),
        })
    }
}
