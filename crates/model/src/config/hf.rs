//! `config.json`, both generations: `torch_dtype`, `rope_theta` and `rope_scaling` at the top
//! (transformers 4) or `dtype` and `rope_parameters` (transformers 5).

use luthier_core::{Error, Result};
use serde_json::{Map, Value};

use super::keys::Keys;
use super::{Arch, ModelConfig, Rope, Scaling};

/// What transformers assumes where the file is silent.
struct Defaults {
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    max_positions: usize,
    theta: f64,
    tied: bool,
    bos: &'static [u32],
    eos: &'static [u32],
    pad: &'static [u32],
}

fn defaults(arch: Arch) -> Defaults {
    let llama = Defaults {
        kv_heads: None,
        head_dim: None,
        max_positions: 2048,
        theta: 1e4,
        tied: false,
        bos: &[1],
        eos: &[2],
        pad: &[],
    };
    match arch {
        Arch::Llama => llama,
        Arch::Mistral => Defaults { kv_heads: Some(8), max_positions: 4096 * 32, ..llama },
        Arch::Qwen2 => {
            Defaults { kv_heads: Some(32), max_positions: 32768, bos: &[], eos: &[], ..llama }
        }
        Arch::Qwen3 => Defaults {
            kv_heads: Some(32),
            head_dim: Some(128),
            max_positions: 32768,
            bos: &[],
            eos: &[],
            ..llama
        },
        Arch::SmolLM3 => Defaults {
            kv_heads: Some(4),
            max_positions: 32768,
            theta: 2e6,
            tied: true,
            bos: &[128_000],
            eos: &[128_001],
            pad: &[128_004],
            ..llama
        },
    }
}

impl ModelConfig {
    /// Reads the content of a `config.json`; `at` names the file in errors.
    pub fn from_hf(json: &Value, at: &str) -> Result<Self> {
        let Value::Object(raw) = json else {
            return Err(Error::input(at, "expected a JSON object"));
        };
        let keys = Keys { map: raw, at: at.to_string() };
        let arch = read_arch(&keys)?;
        refuse_unsupported(&keys)?;
        let defaults = defaults(arch);
        let (hidden, heads) = (keys.need("hidden_size")?, keys.need("num_attention_heads")?);
        let layers = keys.need("num_hidden_layers")?;
        if layers > super::MAX_LAYERS {
            let what = format!("num_hidden_layers: at most {}, got {layers}", super::MAX_LAYERS);
            return Err(Error::input(at, what));
        }
        let kv_heads = match (raw.get("num_key_value_heads"), defaults.kv_heads) {
            // Absent means the class's default, null means as many as query heads.
            (None, Some(n)) => n,
            _ => keys.size("num_key_value_heads")?.unwrap_or(heads),
        };
        let head_dim = match keys.size("head_dim")?.or(defaults.head_dim) {
            Some(e) => e,
            None => hidden.checked_div(heads).unwrap_or(0),
        };
        let attention_bias = keys.flag("attention_bias", false)?;
        let max_positions = keys.size("max_position_embeddings")?.unwrap_or(defaults.max_positions);
        let (qkv_bias, o_bias) = match arch {
            Arch::Llama | Arch::Qwen3 | Arch::SmolLM3 => (attention_bias, attention_bias),
            Arch::Mistral => (false, false),
            Arch::Qwen2 => (true, false),
        };
        let no_rope_layers = no_rope(&keys, arch, layers)?;
        let labels = labels(&keys)?;
        let (sliding_window, sliding_layers) = sliding(&keys, arch, layers, &no_rope_layers)?;
        let mut config = ModelConfig {
            arch,
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            ffn: keys.need("intermediate_size")?,
            vocab: keys.need("vocab_size")?,
            max_positions,
            rms_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope: rope(&keys, head_dim, max_positions, defaults.theta)?,
            tied: keys.flag("tie_word_embeddings", defaults.tied)? && labels.is_none(),
            labels,
            qkv_bias,
            o_bias,
            mlp_bias: matches!(arch, Arch::Llama | Arch::SmolLM3)
                && keys.flag("mlp_bias", false)?,
            qk_norm: arch == Arch::Qwen3,
            bos: keys.ids("bos_token_id", defaults.bos)?.first().copied(),
            eos: keys.ids("eos_token_id", defaults.eos)?,
            pad: keys.ids("pad_token_id", defaults.pad)?.first().copied(),
            sliding_window,
            sliding_layers,
            no_rope_layers,
            raw: raw.clone(),
            generation: Map::new(),
        };
        config.check(at)?;
        config.forget_impossible_ids(at);
        Ok(config)
    }

    /// Takes over a `generation_config.json`: it may name more ids that end a text.
    pub fn with_generation(mut self, json: &Value, at: &str) -> Result<Self> {
        let Value::Object(map) = json else {
            return Err(Error::input(at, "expected a JSON object"));
        };
        let keys = Keys { map, at: at.to_string() };
        for id in keys.ids("eos_token_id", &[])? {
            if !self.eos.contains(&id) {
                self.eos.push(id);
            }
        }
        self.generation = map.clone();
        self.forget_impossible_ids(at);
        Ok(self)
    }
}

fn read_arch(keys: &Keys) -> Result<Arch> {
    let supported = || Arch::ALL.map(Arch::model_type).join(", ");
    let Some(model_type) = keys.text("model_type")? else {
        return Err(Error::input(&keys.at, "key model_type is missing")
            .hint(format!("supported: {}", supported())));
    };
    Arch::ALL.into_iter().find(|a| a.model_type() == model_type).ok_or_else(|| {
        Error::input(&keys.at, format!("model_type {model_type:?} is not supported"))
            .hint(format!("supported: {}", supported()))
    })
}

/// How many labels the head scores, by the class of the model: those that are named, or else two.
fn labels(keys: &Keys) -> Result<Option<usize>> {
    let class = keys.get("architectures").and_then(|all| all.get(0)).and_then(Value::as_str);
    if !class.is_some_and(|class| class.ends_with(super::SCORING)) {
        return Ok(None);
    }
    let named = keys.get("id2label").and_then(Value::as_object).map(Map::len);
    Ok(Some(named.or(keys.size("num_labels")?).unwrap_or(2)))
}

/// What would change the forward pass and is not built.
fn refuse_unsupported(keys: &Keys) -> Result<()> {
    if let Some(act) = keys.text("hidden_act")?
        && !matches!(act.as_str(), "silu" | "swish")
    {
        return Err(keys.bad("hidden_act", "\"silu\"", &Value::String(act)));
    }
    if let Some(q) = keys.get("quantization_config") {
        let method = q.get("quant_method").and_then(Value::as_str).unwrap_or("unknown method");
        let what =
            format!("the weights are quantised ({method}), which luthier does not read here");
        return Err(Error::input(&keys.at, what)
            .hint("take the unquantised folder, or a GGUF file for a quantised model"));
    }
    Ok(())
}

/// Per layer: true where rotary positions are not applied. The file says 1 where they are.
fn no_rope(keys: &Keys, arch: Arch, layers: usize) -> Result<Vec<bool>> {
    if arch != Arch::SmolLM3 {
        return Ok(vec![false; layers]);
    }
    if let Some(value) = keys.get("no_rope_layers") {
        let flag = |v: &Value| v.as_bool().or_else(|| v.as_u64().map(|n| n != 0)).map(|b| !b);
        let list: Option<Vec<bool>> = value.as_array().and_then(|l| l.iter().map(flag).collect());
        let list = list.filter(|l| l.len() >= layers);
        let expected = format!("a list of at least {layers} zeros and ones");
        let mut list = list.ok_or_else(|| keys.bad("no_rope_layers", &expected, value))?;
        list.truncate(layers);
        return Ok(list);
    }
    let every = keys.size("no_rope_layer_interval")?.unwrap_or(4);
    if every == 0 {
        return Err(Error::input(&keys.at, "key no_rope_layer_interval: expected 1 or more"));
    }
    Ok((0..layers).map(|i| (i + 1).is_multiple_of(every)).collect())
}

fn sliding(
    keys: &Keys,
    arch: Arch,
    layers: usize,
    no_rope: &[bool],
) -> Result<(Option<usize>, Vec<bool>)> {
    let full = (None, vec![false; layers]);
    let absent = !keys.map.contains_key("sliding_window");
    let window = match arch {
        Arch::Llama => return Ok(full),
        // transformers' class default stands in for an absent key.
        Arch::Mistral | Arch::Qwen2 | Arch::Qwen3 if absent => Some(4096),
        _ => keys.size("sliding_window")?,
    };
    let used = arch == Arch::Mistral || keys.flag("use_sliding_window", false)?;
    let Some(window) = window.filter(|_| used) else { return Ok(full) };
    if arch == Arch::Mistral {
        return Ok((Some(window), vec![true; layers]));
    }
    let listed = match keys.get("layer_types") {
        Some(value) => {
            let one = |v: &Value| match v.as_str() {
                Some("sliding_attention") => Some(true),
                Some("full_attention") => Some(false),
                _ => None,
            };
            let list: Option<Vec<bool>> =
                value.as_array().and_then(|l| l.iter().map(one).collect());
            let expected = format!("{layers} times full_attention or sliding_attention");
            let list = list.filter(|l| l.len() == layers);
            Some(list.ok_or_else(|| keys.bad("layer_types", &expected, value))?)
        }
        None => None,
    };
    let from = keys.size("max_window_layers")?.unwrap_or(28);
    let layers = listed.unwrap_or_else(|| match arch {
        Arch::SmolLM3 => no_rope.to_vec(),
        _ => (0..layers).map(|i| i >= from).collect(),
    });
    Ok((Some(window), layers))
}

fn rope(keys: &Keys, dim: usize, max_positions: usize, default_theta: f64) -> Result<Rope> {
    let empty = Map::new();
    let old = keys.get("rope_scaling");
    let (name, value) = match old.filter(|v| v.as_object().is_none_or(|m| !m.is_empty())) {
        Some(value) => ("rope_scaling", Some(value)),
        None => ("rope_parameters", keys.get("rope_parameters")),
    };
    let map = match value {
        None => &empty,
        Some(Value::Object(map)) => map,
        Some(other) => return Err(keys.bad(name, "an object", other)),
    };
    let inner = Keys { map, at: format!("{}: {name}", keys.at) };
    let theta = match inner.number("rope_theta")? {
        Some(theta) => theta,
        None => keys.number("rope_theta")?.unwrap_or(default_theta),
    };
    for source in [&inner, keys] {
        if let Some(part) = source.number("partial_rotary_factor")?.filter(|p| *p != 1.0) {
            let what = format!("partial_rotary_factor {part}: only whole heads can rotate");
            return Err(Error::input(&source.at, what));
        }
    }
    let kind = match inner.text("rope_type")? {
        Some(kind) => kind,
        None => inner.text("type")?.unwrap_or_else(|| "default".into()),
    };
    let need = |key: &str| {
        let missing = || Error::input(&inner.at, format!("key {key} is missing for {kind:?}"));
        inner.number(key)?.ok_or_else(missing)
    };
    let original = || -> Result<usize> {
        let key = "original_max_position_embeddings";
        // A key at the top wins over the inner one, as in transformers.
        Ok(keys.size(key)?.or(inner.size(key)?).unwrap_or(max_positions))
    };
    let or = |key: &str, default: f64| -> Result<f64> {
        Ok(inner.number(key)?.filter(|x| *x != 0.0).unwrap_or(default))
    };
    let scaling = match kind.as_str() {
        "default" => Scaling::None,
        "linear" => Scaling::Linear { factor: need("factor")? },
        "llama3" => Scaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_max_positions: original()?,
        },
        "yarn" => {
            let original = original()?;
            let factor = inner.number("factor")?;
            Scaling::Yarn {
                factor: factor.unwrap_or(max_positions as f64 / original as f64),
                original_max_positions: original,
                beta_fast: or("beta_fast", 32.0)?,
                beta_slow: or("beta_slow", 1.0)?,
                attention_factor: inner.number("attention_factor")?,
                mscale: inner.number("mscale")?,
                mscale_all_dim: inner.number("mscale_all_dim")?,
                truncate: inner.flag("truncate", true)?,
            }
        }
        other => {
            return Err(Error::input(&inner.at, format!("rope type {other:?} is not supported"))
                .hint("supported: default, linear, llama3, yarn"));
        }
    };
    Ok(Rope { theta, dim, scaling })
}
