//! `config.json` and `generation_config.json` as transformers 5 reads them.

use luthier_core::{Error, Result};
use serde_json::{Map, Value, json};

use super::{Arch, ModelConfig, Rope, Scaling};

/// The release of transformers whose layout is written.
const TRANSFORMERS: &str = "5.23.0";

impl ModelConfig {
    /// The content of `config.json` for weights stored as `dtype` (`float32`, `bfloat16`,
    /// `float16`). A file that was read is written back with only what changed; for a GGUF source
    /// a new one is composed.
    pub fn to_hf_json(&self, dtype: &str) -> Result<Map<String, Value>> {
        if self.raw.is_empty() {
            return self.compose(dtype);
        }
        let read = ModelConfig::from_hf(&Value::Object(self.raw.clone()), "config.json")?;
        let mut map = self.raw.clone();
        let key = if map.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
        map.insert(key.into(), dtype.into());
        if read.vocab != self.vocab {
            map.insert("vocab_size".into(), self.vocab.into());
        }
        if read.tied != self.tied {
            map.insert("tie_word_embeddings".into(), self.tied.into());
        }
        Ok(map)
    }

    /// The same body with a head that scores labels of these names.
    pub fn scoring(mut self, names: &[String]) -> Result<Self> {
        if self.raw.is_empty() {
            self.raw = self.compose("float32")?;
        }
        let numbered = names.iter().enumerate();
        let by_id: Map<String, Value> =
            numbered.clone().map(|(i, name)| (i.to_string(), json!(name))).collect();
        let by_name: Map<String, Value> =
            numbered.map(|(i, name)| (name.clone(), json!(i))).collect();
        self.raw.insert("architectures".into(), json!([self.arch.scoring_class()]));
        self.raw.insert("id2label".into(), Value::Object(by_id));
        self.raw.insert("label2id".into(), Value::Object(by_name));
        self.raw.remove("num_labels");
        (self.labels, self.tied) = (Some(names.len()), false);
        Ok(self)
    }

    fn compose(&self, dtype: &str) -> Result<Map<String, Value>> {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_string(), value);
        put("architectures", json!([self.arch.class()]));
        put("attention_dropout", json!(0.0));
        put("bos_token_id", json!(self.bos));
        put("dtype", json!(dtype));
        put("eos_token_id", self.eos_json());
        put("hidden_act", json!("silu"));
        put("hidden_size", json!(self.hidden));
        put("initializer_range", json!(0.02));
        put("intermediate_size", json!(self.ffn));
        put("max_position_embeddings", json!(self.max_positions));
        put("model_type", json!(self.arch.model_type()));
        put("num_attention_heads", json!(self.heads));
        put("num_hidden_layers", json!(self.layers));
        put("num_key_value_heads", json!(self.kv_heads));
        put("pad_token_id", json!(self.pad));
        put("rms_norm_eps", json!(self.rms_eps));
        put("rope_parameters", self.rope.to_json()?);
        put("tie_word_embeddings", json!(self.tied));
        put("transformers_version", json!(TRANSFORMERS));
        put("use_cache", json!(true));
        put("vocab_size", json!(self.vocab));
        // Qwen 2 and SmolLM3 do not declare the key, but transformers honours it there, too.
        if !matches!(self.arch, Arch::Qwen2 | Arch::SmolLM3)
            || self.head_dim * self.heads != self.hidden
        {
            put("head_dim", json!(self.head_dim));
        }
        if matches!(self.arch, Arch::Llama | Arch::Qwen3 | Arch::SmolLM3) {
            put("attention_bias", json!(self.o_bias));
        }
        if matches!(self.arch, Arch::Llama | Arch::SmolLM3) {
            put("mlp_bias", json!(self.mlp_bias));
        }
        if self.arch == Arch::Llama {
            put("pretraining_tp", json!(1));
        } else {
            put("sliding_window", json!(self.sliding_window));
        }
        if matches!(self.arch, Arch::Qwen2 | Arch::Qwen3 | Arch::SmolLM3) {
            let kind = |s: &bool| if *s { "sliding_attention" } else { "full_attention" };
            put("use_sliding_window", json!(self.sliding_window.is_some()));
            put("layer_types", self.sliding_layers.iter().map(kind).collect());
        }
        if self.arch == Arch::SmolLM3 {
            put("no_rope_layers", self.no_rope_layers.iter().map(|no| u8::from(!no)).collect());
        }
        map.sort_keys();
        Ok(map)
    }

    /// The content of `generation_config.json`.
    pub fn to_generation_json(&self) -> Map<String, Value> {
        if !self.generation.is_empty() {
            return self.generation.clone();
        }
        let mut map = Map::new();
        map.insert("_from_model_config".into(), true.into());
        let ids = [
            ("bos_token_id", json!(self.bos)),
            ("eos_token_id", self.eos_json()),
            ("pad_token_id", json!(self.pad)),
        ];
        map.extend(ids.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.into(), v)));
        map.insert("transformers_version".into(), TRANSFORMERS.into());
        map
    }

    fn eos_json(&self) -> Value {
        match self.eos.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        }
    }
}

impl Rope {
    /// `rope_parameters` of `config.json`.
    fn to_json(&self) -> Result<Value> {
        let theta = self.theta;
        Ok(match &self.scaling {
            Scaling::None => json!({"rope_theta": theta, "rope_type": "default"}),
            Scaling::Linear { factor } => {
                json!({"factor": factor, "rope_theta": theta, "rope_type": "linear"})
            }
            Scaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                json!({
                    "factor": factor,
                    "high_freq_factor": high_freq_factor,
                    "low_freq_factor": low_freq_factor,
                    "original_max_position_embeddings": original_max_positions,
                    "rope_theta": theta,
                    "rope_type": "llama3",
                })
            }
            Scaling::Yarn {
                factor,
                original_max_positions,
                beta_fast,
                beta_slow,
                attention_factor,
                mscale,
                mscale_all_dim,
                truncate,
            } => {
                let mut map = Map::new();
                if let Some(f) = attention_factor {
                    map.insert("attention_factor".into(), json!(f));
                }
                map.insert("beta_fast".into(), json!(beta_fast));
                map.insert("beta_slow".into(), json!(beta_slow));
                map.insert("factor".into(), json!(factor));
                for (key, value) in [("mscale", mscale), ("mscale_all_dim", mscale_all_dim)] {
                    if let Some(m) = value {
                        map.insert(key.into(), json!(m));
                    }
                }
                map.insert(
                    "original_max_position_embeddings".into(),
                    json!(original_max_positions),
                );
                map.insert("rope_theta".into(), json!(theta));
                map.insert("rope_type".into(), json!("yarn"));
                map.insert("truncate".into(), json!(truncate));
                Value::Object(map)
            }
            Scaling::Factors(factors) => self
                .as_llama3(factors)
                .ok_or_else(|| {
                    Error::failed(
                        "rope_freqs.weight",
                        "no rope type of config.json has these frequency factors",
                    )
                    .hint("only Llama 3's can be saved as a Hugging Face folder")
                })?
                .to_json()?,
        })
    }

    /// The Llama 3 scaling that these factors came from. GGUF converters compute them with the
    /// ramp from 1 to 4 over a context of 8192; its factor is the largest one.
    fn as_llama3(&self, factors: &[f32]) -> Option<Rope> {
        let factor = f64::from(factors.iter().copied().reduce(f32::max)?);
        let (given, _) = self.inv_freq();
        let candidate = Rope {
            scaling: Scaling::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_positions: 8192,
            },
            ..self.clone()
        };
        let (computed, _) = candidate.inv_freq();
        let equal = given.iter().zip(&computed).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs());
        equal.then_some(candidate)
    }
}
