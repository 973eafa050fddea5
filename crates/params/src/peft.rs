//! LoRA adapters in PEFT's layout: `adapter_config.json`, `adapter_model.safetensors`, `README.md`.
//!
//! Tensor keys are `base_model.model.` + Hugging Face module path + suffix. The config carries one
//! key of ours, `luthier`, with the hash of the base model; PEFT skips keys it does not know.

use luthier_core::{SiteInfo, SiteKind};

mod card;
mod config;
mod load;
mod modules;
mod save;

pub use load::load;
pub use save::save;

/// Configuration file of an adapter folder.
pub const CONFIG: &str = "adapter_config.json";
/// Weights file of an adapter folder.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before every module path.
const PREFIX: &str = "base_model.model.";

/// The model an adapter belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// Hub id, built-in name or path, as others should load it.
    pub name: String,
    /// Hash of its weights, when known.
    pub sha256: Option<String>,
}

/// Our name of a part, and PEFT's suffix for it.
type Part = (&'static str, &'static str);

const LINEAR: &[Part] =
    &[("lora_A", ".lora_A.weight"), ("lora_B", ".lora_B.weight"), ("lora_B.bias", ".lora_B.bias")];
const EMBED: &[Part] =
    &[("lora_embedding_A", ".lora_embedding_A"), ("lora_embedding_B", ".lora_embedding_B")];

fn parts(site: &SiteInfo) -> &'static [Part] {
    match site.kind {
        SiteKind::Embed { .. } => EMBED,
        _ => LINEAR,
    }
}
