//! A model that is nothing but its sites and their weights, read when asked for: enough to bind an
//! adapter to it and to fold it away, a tensor at a time.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{Device, Tensor, Var};
use luthier_core::{
    Affine, Ctx, Error, Learned, Model, Result, SiteId, SiteInfo, SiteKind, SiteMap,
};
use luthier_model::{ModelConfig, Source, names::hf_module};

const TABLE: &str = "model.embed_tokens.weight";

/// The sites of a checkpoint, with those of its weights that an adapter holds whole.
#[derive(Clone)]
pub(in crate::merge) struct Skeleton {
    source: Arc<Source>,
    sites: Arc<SiteMap>,
    learned: BTreeMap<String, Var>,
}

impl Skeleton {
    pub(in crate::merge) fn new(source: Arc<Source>) -> Self {
        let sites = Arc::new(sites(source.config()));
        Skeleton { source, sites, learned: BTreeMap::new() }
    }

    fn weight_name(&self, site: &SiteInfo) -> Result<String> {
        let module = site.module.as_deref();
        let module = module.ok_or_else(|| Error::failed(&site.name, "this site has no weights"))?;
        let tied = site.name == "logits" && self.source.config().tied;
        Ok(if tied { TABLE.to_string() } else { format!("{module}.weight") })
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        if let Some(var) = self.learned.get(name) {
            return Ok(var.as_detached_tensor());
        }
        let shape = self.source.shape(name)?.to_vec();
        Ok(Tensor::from_vec(self.source.load_f32(name)?, shape, &Device::Cpu)?)
    }

    fn no_pass(&self) -> Error {
        Error::failed(self.source.path().display().to_string(), "is open for its weights alone")
    }
}

impl Model for Skeleton {
    fn sites(&self) -> &SiteMap {
        &self.sites
    }

    fn n_layers(&self) -> usize {
        self.source.config().layers
    }

    fn vocab(&self) -> usize {
        self.source.config().vocab
    }

    fn width(&self) -> usize {
        self.source.config().hidden
    }

    fn embed(&self, _ids_n: &[u32], _ctx: &mut Ctx) -> Result<Tensor> {
        Err(self.no_pass())
    }

    fn block(&self, _layer: usize, _h_nd: Tensor, _ctx: &mut Ctx) -> Result<Tensor> {
        Err(self.no_pass())
    }

    fn unembed(&self, _h_nd: &Tensor, _ctx: &mut Ctx) -> Result<Tensor> {
        Err(self.no_pass())
    }

    fn affine(&self, site: SiteId) -> Result<Affine> {
        let info = self.sites.info(site);
        let name = self.weight_name(info)?;
        let b_o = match info.kind {
            SiteKind::Linear { bias: true, .. } => {
                Some(self.read(&name.replace(".weight", ".bias"))?)
            }
            _ => None,
        };
        Ok(Affine { w_oi: self.read(&name)?, b_o })
    }

    fn learn(&self, sites: &[SiteId]) -> Result<Learned> {
        let (mut model, mut vars) = (self.clone(), Vec::new());
        for site in sites {
            let info = self.sites.info(*site);
            let weight = self.weight_name(info)?;
            let mut names = vec![weight.clone()];
            if matches!(info.kind, SiteKind::Linear { bias: true, .. }) {
                names.push(weight.replace(".weight", ".bias"));
            }
            for name in names {
                // A tied head and the table are one variable.
                if model.learned.contains_key(&name) {
                    continue;
                }
                let var = Var::from_tensor(&self.read(&name)?)?;
                model.learned.insert(name.clone(), var.clone());
                vars.push((name, var));
            }
        }
        Ok((Arc::new(model), vars))
    }

    fn resting(&self, _learns: &dyn Fn(&Tensor) -> bool) -> Result<Arc<dyn Model>> {
        // Nothing learns here: a variable that rests has the value it has.
        Ok(Arc::new(self.clone()))
    }
}

/// The sites of a decoder, which are the same, in the same order, once it is loaded.
fn sites(config: &ModelConfig) -> SiteMap {
    let c = config;
    let (d, f, v) = (c.hidden, c.ffn, c.vocab);
    let (qd, kd) = (c.q_width(), c.kv_width());
    let mut map = SiteMap::default();
    map.add("embed", SiteKind::Embed { v, d }, None, hf_module("embed"));
    for l in 0..c.layers {
        let linear = |i, o, bias| Some(SiteKind::Linear { i, o, bias });
        let norm = |d| Some(SiteKind::Norm { d });
        let watched = |d| Some(SiteKind::Activation { d });
        let head_norm = if c.qk_norm { norm(c.head_dim) } else { None };
        let kinds = [
            ("resid_pre", watched(d)),
            ("attn_norm", norm(d)),
            ("attn.q", linear(d, qd, c.qkv_bias)),
            ("attn.k", linear(d, kd, c.qkv_bias)),
            ("attn.v", linear(d, kd, c.qkv_bias)),
            ("attn.q_norm", head_norm),
            ("attn.k_norm", head_norm),
            ("attn.pattern", watched(c.heads)),
            ("attn.z", watched(qd)),
            ("attn.o", linear(qd, d, c.o_bias)),
            ("attn.out", watched(d)),
            ("resid_mid", watched(d)),
            ("mlp_norm", norm(d)),
            ("mlp.gate", linear(d, f, c.mlp_bias)),
            ("mlp.up", linear(d, f, c.mlp_bias)),
            ("mlp.act", watched(f)),
            ("mlp.down", linear(f, d, c.mlp_bias)),
            ("mlp.out", watched(d)),
            ("resid_post", watched(d)),
        ];
        for (part, kind) in kinds.into_iter().filter_map(|(part, kind)| Some((part, kind?))) {
            let name = format!("layers.{l}.{part}");
            let module = hf_module(&name);
            map.add(name, kind, Some(l), module);
        }
    }
    map.add("final_norm", SiteKind::Norm { d }, None, hf_module("final_norm"));
    map.add("logits", SiteKind::Linear { i: d, o: v, bias: false }, None, hf_module("logits"));
    map
}

#[cfg(test)]
mod tests {
    use luthier_model::{Decoder, Precision, names::tensors};
    use serde_json::json;

    use super::*;

    #[test]
    fn the_sites_are_those_of_a_loaded_decoder() {
        for (model_type, class) in [
            ("llama", "LlamaForCausalLM"),
            ("qwen2", "Qwen2ForCausalLM"),
            ("qwen3", "Qwen3ForCausalLM"),
        ] {
            let config = json!({
                "architectures": [class], "model_type": model_type, "vocab_size": 24,
                "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
                "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2,
                "rms_norm_eps": 1e-5, "max_position_embeddings": 32,
                "tie_word_embeddings": model_type == "qwen3",
            });
            let config = ModelConfig::from_hf(&config, "config.json").unwrap();
            let list = tensors(&config);
            let given = |name: &str| {
                let (_, dims) = list.iter().find(|(n, _)| n == name).unwrap();
                Ok(vec![0.5f32; dims.iter().product()])
            };
            let decoder = Decoder::from_weights(&config, &given, Precision::F32).unwrap();
            let ours = sites(&config);
            let row = |s: &SiteInfo| (s.name.clone(), s.kind, s.layer, s.module.clone());
            let got: Vec<_> = ours.iter().map(row).collect();
            let want: Vec<_> = decoder.sites().iter().map(row).collect();
            assert_eq!(got, want, "{model_type}");
        }
    }
}
