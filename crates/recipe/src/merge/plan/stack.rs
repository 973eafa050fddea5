//! The configuration of what comes out: the base's or the first model's, with the layers that were
//! stacked and the vocabulary that was chosen.

use luthier_core::Result;
use luthier_model::{ModelConfig, config::Arch};
use luthier_weights::{Config, Slice};
use serde_json::{Value, json};

use crate::merge::{models::Models, tokens::Vocabulary};

/// Keys that name special tokens.
const SPECIAL: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

pub(super) fn config(
    config: &Config,
    models: &Models,
    slices: &[Slice],
    vocabulary: Option<&Vocabulary>,
) -> Result<ModelConfig> {
    let mut out = models.donor(config).config().clone();
    // One head that is its own needs a place; tied ones give their table.
    if models.iter().any(|opened| !opened.config().tied) && out.tied {
        out.tied = false;
        put(&mut out, "tie_word_embeddings", json!(false));
    }
    if let Some(vocabulary) = vocabulary {
        out.vocab = vocabulary.size;
        put(&mut out, "vocab_size", json!(vocabulary.size));
        special(&mut out, models.at(vocabulary.donor).config());
    }
    let (mut sliding, mut no_rope) = (Vec::new(), Vec::new());
    for slice in slices {
        let source = &slice.sources[0];
        let from = models.at(models.index(&source.model)).config();
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

/// Takes over which tokens begin and end a text: they are those of the tokenizer.
fn special(out: &mut ModelConfig, donor: &ModelConfig) {
    if (out.bos, &out.eos, out.pad) == (donor.bos, &donor.eos, donor.pad) {
        return;
    }
    (out.bos, out.eos, out.pad) = (donor.bos, donor.eos.clone(), donor.pad);
    for key in SPECIAL {
        let value = donor.raw.get(key).cloned().unwrap_or(Value::Null);
        put(out, key, value);
        if out.generation.contains_key(key) {
            let value = donor.generation.get(key).cloned().unwrap_or(Value::Null);
            out.generation.insert(key.into(), value);
        }
    }
}

/// Leaves out special tokens that have no row; what was left out.
pub(in crate::merge) fn drop_beyond(out: &mut ModelConfig) -> Vec<String> {
    let rows = out.vocab as u64;
    let fits = |id: &Value| id.as_u64().is_none_or(|id| id < rows);
    let mut gone = Vec::new();
    for map in [&mut out.raw, &mut out.generation] {
        for key in SPECIAL {
            let Some(value) = map.get_mut(key) else { continue };
            let before = value.clone();
            if let Value::Array(ids) = value {
                ids.retain(fits);
            }
            if !fits(value) || value.as_array().is_some_and(Vec::is_empty) {
                *value = Value::Null;
            }
            if *value != before {
                let note = format!("{key}: {before} names a token without a row, and is left out");
                gone.extend((!gone.contains(&note)).then_some(note));
            }
        }
    }
    let small = |id: &u32| u64::from(*id) < rows;
    (out.bos, out.pad) = (out.bos.filter(small), out.pad.filter(small));
    out.eos.retain(small);
    gone
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
