//! A configuration from GGUF keys, and from the tensors where keys do not say it.

use luthier_core::{Error, Result};
use serde_json::Map;

use super::{Arch, ModelConfig, Rope, Scaling};
use crate::gguf::Gguf;

/// `general.architecture` and what it is here.
const ARCHS: [(&str, Arch); 4] = [
    ("llama", Arch::Llama),
    ("qwen2", Arch::Qwen2),
    ("qwen3", Arch::Qwen3),
    ("smollm3", Arch::SmolLM3),
];

/// Factors of relatives of Llama that share its name. They would change the forward pass.
const FOREIGN: [&str; 6] = [
    "attention.scale",
    "attention.clamp_kqv",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "final_logit_softcapping",
];

impl ModelConfig {
    /// Reads the keys of an opened GGUF file.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let at = file.path().display().to_string();
        let name = file.text("general.architecture")?;
        refuse_unsupported(file, name, &at)?;
        let named = ARCHS.iter().find(|(n, _)| *n == name).map(|(_, arch)| *arch);
        let named = named.ok_or_else(|| {
            let supported = ARCHS.map(|(n, _)| n).join(", ");
            Error::input(&at, format!("architecture {name:?} is not supported"))
                .hint(format!("supported: {supported}"))
        })?;
        let key = |k: &str| format!("{name}.{k}");
        let size = |k: &str| file.uint(&key(k)).map(clamp);
        let opt_size = |k: &str| file.opt_uint(&key(k)).map(|n| n.map(clamp));
        let has = |tensor: &str| file.tensor(tensor).is_some();

        let (hidden, layers) = (size("embedding_length")?, size("block_count")?);
        if layers > super::MAX_LAYERS {
            let what = format!("{}: at most {}", key("block_count"), super::MAX_LAYERS);
            return Err(Error::input(&at, format!("{what}, got {layers}")));
        }
        let heads = size("attention.head_count")?;
        let equal = hidden.checked_div(heads).unwrap_or(0);
        let head_dim = opt_size("attention.key_length")?.unwrap_or(equal);
        let max_positions = size("context_length")?;
        let qkv_bias = has("blk.0.attn_q.bias");
        let o_bias = has("blk.0.attn_output.bias");
        // Biases on q, k and v alone are what Qwen 2 is: the same computation under its own name.
        let arch = match named {
            Arch::Llama if qkv_bias && !o_bias => Arch::Qwen2,
            arch => arch,
        };
        let embedding = file.tensor("token_embd.weight").ok_or_else(|| {
            Error::input(&at, "tensor token_embd.weight is missing")
                .hint("this may be one part of a split model, or a vocabulary without weights")
        })?;
        let id = |k: &str| -> Result<Option<u32>> {
            let id = file.opt_uint(&format!("tokenizer.ggml.{k}_token_id"))?;
            Ok(id.and_then(|id| u32::try_from(id).ok()))
        };
        let mut eos: Vec<u32> = Vec::new();
        for end in ["eos", "eot", "eom"] {
            eos.extend(id(end)?.filter(|id| !eos.contains(id)));
        }
        let mut config = ModelConfig {
            arch,
            hidden,
            layers,
            heads,
            kv_heads: opt_size("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            ffn: size("feed_forward_length")?,
            vocab: embedding.shape.first().copied().unwrap_or(0),
            max_positions,
            rms_eps: file.float(&key("attention.layer_norm_rms_epsilon"))?,
            rope: rope(file, name, head_dim, max_positions)?,
            labels: None,
            tied: !has("output.weight"),
            qkv_bias,
            o_bias,
            mlp_bias: has("blk.0.ffn_down.bias"),
            qk_norm: has("blk.0.attn_q_norm.weight"),
            bos: id("bos")?,
            eos,
            pad: id("padding")?,
            sliding_window: None,
            sliding_layers: vec![false; layers],
            // No key says which layers SmolLM3 leaves out: llama.cpp, too, takes every fourth.
            no_rope_layers: (0..layers)
                .map(|i| arch == Arch::SmolLM3 && (i + 1).is_multiple_of(4))
                .collect(),
            raw: Map::new(),
            generation: Map::new(),
        };
        if config.qk_norm != (arch == Arch::Qwen3) {
            let what = format!("norms on query and key heads do not belong to {name}");
            return Err(Error::input(&at, what));
        }
        config.check(&at)?;
        for other in ["attention.value_length", "rope.dimension_count"] {
            if let Some(got) = opt_size(other)?.filter(|n| *n != head_dim) {
                let what = format!("{}: expected the head width {head_dim}, got {got}", key(other));
                return Err(Error::input(&at, what));
            }
        }
        config.forget_impossible_ids(&at);
        Ok(config)
    }
}

/// Sizes are compared with far smaller bounds later; here they only must fit.
fn clamp(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn refuse_unsupported(file: &Gguf, name: &str, at: &str) -> Result<()> {
    if let Some(kind) = file.opt_text("general.type")?.filter(|kind| *kind != "model") {
        return Err(Error::input(at, format!("holds no model but general.type {kind:?}"))
            .hint("give the base model here"));
    }
    if file.opt_uint("split.count")?.unwrap_or(1) > 1 {
        return Err(Error::input(at, "is one part of a split model")
            .hint("join the parts with `llama-gguf-split --merge`"));
    }
    if file.opt_uint(&format!("{name}.expert_count"))?.unwrap_or(0) > 0 {
        return Err(Error::input(at, "a mixture of experts is not supported"));
    }
    for key in FOREIGN.map(|k| format!("{name}.{k}")) {
        if let Some(x) = file.opt_float(&key)?.filter(|x| *x != 0.0 && *x != 1.0) {
            return Err(Error::input(at, format!("key {key} = {x} is not supported")));
        }
    }
    Ok(())
}

fn rope(file: &Gguf, name: &str, dim: usize, max_positions: usize) -> Result<Rope> {
    let at = || file.path().display().to_string();
    let key = |k: &str| format!("{name}.rope.{k}");
    let theta = file.opt_float(&key("freq_base"))?.unwrap_or(1e4);
    let legacy = file.opt_float(&key("scale_linear"))?;
    let kind = match file.opt_text(&key("scaling.type"))? {
        Some(kind) => kind,
        None if legacy.is_some() => "linear",
        None => "none",
    };
    let factor = || -> Result<f64> {
        match file.opt_float(&key("scaling.factor"))?.or(legacy) {
            Some(factor) => Ok(factor),
            None => file.float(&key("scaling.factor")),
        }
    };
    let mut scaling = match kind {
        "none" | "" => Scaling::None,
        "linear" => match factor()? {
            1.0 => Scaling::None,
            factor => Scaling::Linear { factor },
        },
        "yarn" => {
            let factor = factor()?;
            let original = file.opt_uint(&key("scaling.original_context_length"))?;
            let slope = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
            Scaling::Yarn {
                factor,
                original_max_positions: original.map_or(max_positions, clamp),
                beta_fast: file.opt_float(&key("scaling.yarn_beta_fast"))?.unwrap_or(32.0),
                beta_slow: file.opt_float(&key("scaling.yarn_beta_slow"))?.unwrap_or(1.0),
                // GGUF's factor multiplies the usual one; transformers' replaces it.
                attention_factor: file
                    .opt_float(&key("scaling.attn_factor"))?
                    .filter(|f| *f != 1.0)
                    .map(|f| f * slope),
                mscale: None,
                mscale_all_dim: None,
                truncate: true,
            }
        }
        other => {
            let what = format!("key {}: {other:?} is not supported", key("scaling.type"));
            return Err(Error::input(at(), what).hint("supported: none, linear, yarn"));
        }
    };
    if file.tensor("rope_freqs.weight").is_some() {
        let factors = file.load_f32("rope_freqs.weight")?;
        if factors.iter().any(|f| *f != 1.0) {
            if scaling != Scaling::None {
                let what = format!("both rope_freqs.weight and {kind} scaling are given");
                return Err(Error::input(at(), what));
            }
            scaling = Scaling::Factors(factors);
        }
    }
    Ok(Rope { theta, dim, scaling })
}
