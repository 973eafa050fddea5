//! Adapters in PEFT's layout: `adapter_config.json`, `adapter_model.safetensors`, `README.md`.
//!
//! Tensor keys are `base_model.model.` + Hugging Face module path + suffix. The config carries one
//! key of ours, `luthier`, with the hash of the base model; PEFT skips keys it does not know.
//!
//! | `peft_type` | forms |
//! |---|---|
//! | `LORA` | `lora`, with `tokens` (`trainable_token_indices`), `full`, `ln_tuning` and `head` (`modules_to_save`) |
//! | `IA3` | `ia3`, with `full`, `ln_tuning` and `head` |
//! | `LN_TUNING` | `ln_tuning`, with `full` |
//! | `TRAINABLE_TOKENS` | `tokens` |
//! | `PROMPT_TUNING`, `PREFIX_TUNING` | `prompt` |
//!
//! PiSSA and OLoRA are written as PEFT's own conversion does: a plain LoRA of twice the rank that
//! needs no changed base. They are read either way.

use std::path::Path;

use luthier_core::{Error, Result, SiteInfo};
use serde::{Deserialize, Serialize};

use crate::{Params, form::full::Parts};

mod card;
mod config;
mod head;
mod ia3;
mod ln_tuning;
mod load;
mod lora;
mod modules;
mod patterns;
mod prompt;
mod save;
mod tokens;
mod whole;

pub use load::load;
pub use patterns::Patterns;
pub use save::save;

/// Configuration file of an adapter folder.
pub const CONFIG: &str = "adapter_config.json";
/// Weights file of an adapter folder.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before every module path.
const PREFIX: &str = "base_model.model.";

/// The model an adapter belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Hub id, built-in name or path, as others should load it.
    pub name: String,
    /// Hash of its weights, when known.
    pub sha256: Option<String>,
}

impl Base {
    /// Refuses the adapter in `dir` on another model than this one, if both hashes are known.
    pub(crate) fn check(&self, dir: &Path, sha256: Option<&str>) -> Result<()> {
        let Some((theirs, ours)) = self.sha256.as_deref().zip(sha256) else { return Ok(()) };
        if theirs == ours {
            return Ok(());
        }
        let what = format!(
            "was trained on another base model: expected weights with SHA-256 {theirs}, got {ours}"
        );
        let name = if self.name.is_empty() { "not recorded" } else { &self.name };
        Err(Error::input(dir.display().to_string(), what).hint(format!("its base is {name}")))
    }
}

/// Whether one of PEFT's files can hold all that these forms learn.
pub(crate) fn holds(params: &Params) -> bool {
    let mut keys: Vec<&str> = params.named().iter().map(|(key, _)| *key).collect();
    // A new head is one more module to save, beside an adapter of weights.
    if params.head.is_some() && params.lora.is_none() && params.ia3.is_none() {
        return false;
    }
    keys.retain(|key| *key != "head");
    let only = |known: &[&str]| keys.iter().all(|key| known.contains(key));
    let has = |key: &str| keys.contains(&key);
    // PEFT keeps whole modules, and one of them cannot be adapted too.
    let biases = params.full.as_ref().is_some_and(|full| full.parts == Parts::Bias);
    if biases {
        return false;
    }
    keys.is_empty()
        || has("lora") && only(&["lora", "tokens", "full", "ln_tuning"])
        || has("ia3") && only(&["ia3", "full", "ln_tuning"])
        || has("ln_tuning") && only(&["ln_tuning", "full"])
        || has("tokens") && only(&["tokens"])
        || has("prompt") && only(&["prompt"])
}

/// The Hugging Face module of a site.
fn module(site: &SiteInfo) -> Result<&str> {
    site.module.as_deref().ok_or_else(|| {
        Error::failed(&site.name, "has no Hugging Face name to save its adapter under")
    })
}
