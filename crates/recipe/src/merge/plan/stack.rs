//! The configuration of what comes out: the base's or the first model's, with the layers that were
//! stacked and the vocabulary that was chosen.

use luthier_core::Result;
use luthier_model::{ModelConfig, config::Arch};
use luthier_weights::{Config, Slice};
use serde_json::{Value, json};

use crate::merge::{models::Models, tokens::Vocabulary};

pub(super) fn config(
    config: &Config,
    models: &Models,
    slices: &[Slice],
    vocabulary: Option<&Vocabulary>,
) -> Result<ModelConfig> {
    let mut out = models.donor(config).source.config().clone();
    // One head that is its own needs a place; tied ones give their table.
    if models.iter().any(|opened| !opened.source.config().tied) && out.tied {
        out.tied = false;
        put(&mut out, "tie_word_embeddings", json!(false));
    }
    if let Some(vocabulary) = vocabulary {
        out.vocab = vocabulary.size();
        put(&mut out, "vocab_size", json!(vocabulary.size()));
    }
    let (mut sliding, mut no_rope) = (Vec::new(), Vec::new());
    for slice in slices {
        let source = &slice.sources[0];
        let from = models.at(models.index(&source.model)).source.config();
        for layer in source.layers.map_or(0..0, |(from, to)| from..to) {
            sliding.push(from.sliding_layers.get(layer).copied().unwrap_or(false));
            no_rope.push(from.no_rope_layers.get(layer).copied().unwrap_or(false));
        }
    }
    out.layers = sliding.len();
    (out.sliding_layers, out.no_rope_layers) = (sliding, no_rope);
    if !out.raw.is_empty() {
        per_layer(&mut out)?;
    }
    Ok(out)
}

fn put(out: &mut ModelConfig, key: &str, value: Value) {
    // A GGUF file has none; its configuration is composed from the fields.
    if !out.raw.is_empty() {
        out.raw.insert(key.into(), value);
    }
}

/// Writes the keys that count or list layers, where they would say something else.
fn per_layer(out: &mut ModelConfig) -> Result<()> {
    out.raw.insert("num_hidden_layers".into(), json!(out.layers));
    let kinds: Vec<&str> = out
        .sliding_layers
        .iter()
        .map(|s| if *s { "sliding_attention" } else { "full_attention" })
        .collect();
    let rotary: Vec<u8> = out.no_rope_layers.iter().map(|no| u8::from(!no)).collect();
    if out.raw.contains_key("layer_types") {
        out.raw.insert("layer_types".into(), json!(kinds));
    }
    if out.raw.contains_key("no_rope_layers") {
        out.raw.insert("no_rope_layers".into(), json!(rotary));
    }
    let read = ModelConfig::from_hf(&Value::Object(out.raw.clone()), "config.json")?;
    let listed = matches!(out.arch, Arch::Qwen2 | Arch::Qwen3 | Arch::SmolLM3);
    if listed && read.sliding_layers != out.sliding_layers {
        out.raw.insert("layer_types".into(), json!(kinds));
    }
    if out.arch == Arch::SmolLM3 && read.no_rope_layers != out.no_rope_layers {
        out.raw.insert("no_rope_layers".into(), json!(rotary));
    }
    Ok(())
}
