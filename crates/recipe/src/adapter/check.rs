//! Which programs will run an adapter, from its files alone.
//!
//! A program that loads an adapter and computes something else than PEFT does counts as refusing it.
//! The rules are those of PEFT 0.21, of vLLM's loader (`peft_helper`, `parse_fine_tuned_lora_name`)
//! and of llama.cpp's `convert_lora_to_gguf.py`.

use std::path::{Path, PathBuf};

use luthier_core::Result;
use luthier_params::own;
use serde::Serialize;
use serde_json::Value;

use super::{
    folder::{Factors, Folder},
    lora::Seen,
    peft::Settings,
};

/// What was found in an adapter folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checked {
    /// The folder.
    pub adapter: PathBuf,
    /// PEFT's name of its type, or `luthier` for files of our own.
    pub kind: String,
    /// The base it names.
    pub base: Option<String>,
    /// Modules with factors of LoRA.
    pub modules: usize,
    /// Smallest and largest rank among them.
    pub ranks: Option<[usize; 2]>,
    /// Who runs it.
    pub runtimes: Vec<Runtime>,
}

/// One program's answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Runtime {
    /// `PEFT`, `vLLM` or `llama.cpp`.
    pub name: &'static str,
    /// Whether it runs the adapter, and as it was meant.
    pub accepts: bool,
    /// Why not.
    pub reasons: Vec<String>,
    /// What to know where it does.
    pub notes: Vec<String>,
}

/// Types that PEFT 0.21.2 knows.
const TYPES: &[&str] = &[
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "LORA",
    "ADALORA",
    "ADAMSS",
    "BOFT",
    "ADAPTION_PROMPT",
    "IA3",
    "BEFT",
    "LILY",
    "LOHA",
    "LOKR",
    "OFT",
    "POLY",
    "LN_TUNING",
    "VERA",
    "FROD",
    "PVERA",
    "FOURIERFT",
    "GLORA",
    "XLORA",
    "HRA",
    "VBLORA",
    "UNILORA",
    "CPT",
    "MISS",
    "RANDLORA",
    "ROAD",
    "TRAINABLE_TOKENS",
    "HIRA",
    "SHIRA",
    "C3A",
    "WAVEFT",
    "OSF",
    "DELORA",
    "GRALORA",
    "CARTRIDGE",
    "TINYLORA",
    "PSOFT",
    "PEANUT",
    "SHADOW",
    "SUPERTUNING",
    "DEFT",
];

/// How the tensors of types other than LoRA end.
const SUFFIXES: [(&str, &str); 3] = [
    ("IA3", ".ia3_l"),
    ("LN_TUNING", ".ln_tuning_layers.weight"),
    ("TRAINABLE_TOKENS", ".trainable_tokens_delta"),
];

/// What to do about most of it.
pub(super) const CONVERT: &str = "`luthier adapter convert` makes a plain LoRA of it";

/// Weights in the layout of adapter-hub's library `adapters`.
const ADAPTER_HUB: [&str; 2] = ["adapter.safetensors", "pytorch_adapter.bin"];

/// Types whose files luthier reads and whose change is one of matrices.
const CONVERTIBLE: [&str; 2] = ["IA3", "TRAINABLE_TOKENS"];

/// Looks into an adapter folder.
pub fn check(dir: &Path) -> Result<Checked> {
    let (_, base) = luthier_params::base_of(dir)?;
    let adapter = dir.to_path_buf();
    let strange = |kind: &str, reason: String| {
        let no = |name| Runtime::new(name, vec![reason.clone()], Vec::new());
        let runtimes = ["PEFT", "vLLM", "llama.cpp"].map(no).into();
        let (adapter, base) = (adapter.clone(), base.clone());
        Ok(Checked { adapter, kind: kind.into(), base, modules: 0, ranks: None, runtimes })
    };
    if dir.join(own::CONFIG).is_file() {
        let files = format!("its files ({}, {}) are luthier's own", own::CONFIG, own::WEIGHTS);
        return strange("luthier", format!("{files}; {CONVERT} if it folds"));
    }
    if ADAPTER_HUB.iter().any(|file| dir.join(file).is_file()) {
        return strange("adapter-hub", "its files are those of the adapters library".into());
    }
    let folder = Folder::open(dir)?;
    let kind = folder.get("peft_type").as_str().unwrap_or("unknown").to_string();
    let factors = folder.factors();
    let ranks = factors.values().filter_map(Factors::rank);
    let ranks = ranks.clone().min().zip(ranks.max()).map(|(least, most)| [least, most]);
    let settings = Settings::of(&folder);
    let (modules, runtimes) = match kind.as_str() {
        "LORA" => {
            let seen = Seen { folder: &folder, settings: &settings, factors: &factors };
            (factors.len(), vec![seen.peft(), seen.vllm(), seen.llama_cpp()])
        }
        _ => (0, other_type(&kind, &folder)),
    };
    Ok(Checked { adapter, kind, base, modules, ranks, runtimes })
}

impl Runtime {
    pub(super) fn new(name: &'static str, reasons: Vec<String>, notes: Vec<String>) -> Self {
        Runtime { name, accepts: reasons.is_empty(), reasons, notes }
    }
}

/// The first names of a list, and how many more there are.
pub(super) fn some(names: &[&str]) -> String {
    let shown = names[..names.len().min(2)].join(", ");
    match names.len().saturating_sub(2) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Whether a key is set to something with a meaning.
pub(super) fn set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        _ => true,
    }
}

fn other_type(kind: &str, folder: &Folder) -> Vec<Runtime> {
    let mut reasons = Vec::new();
    let mut notes = Vec::new();
    if !TYPES.contains(&kind) {
        reasons.push(match folder.get("peft_type") {
            Value::Null => "adapter_config.json has no peft_type".to_string(),
            other => format!("PEFT 0.21.2 knows no type {other}"),
        });
    } else if let Some((_, suffix)) = SUFFIXES.iter().find(|(known, _)| *known == kind) {
        let saved = saved_modules(folder);
        let strange: Vec<&str> =
            folder.names().filter(|n| !n.ends_with(suffix) && !saved_whole(n, &saved)).collect();
        if !strange.is_empty() {
            reasons.push(format!("tensors that are not of type {kind}: {}", some(&strange)));
        }
    } else {
        notes.push(format!("the tensors of a {kind} adapter were not looked at"));
    }
    let mut lora_only = format!("runs LoRA alone, this is {kind}");
    if CONVERTIBLE.contains(&kind) {
        lora_only += &format!("; {CONVERT}");
    }
    let no = |name| Runtime::new(name, vec![lora_only.clone()], Vec::new());
    vec![Runtime::new("PEFT", reasons, notes), no("vLLM"), no("llama.cpp")]
}

/// `modules_to_save`: modules that are saved whole.
pub(super) fn saved_modules(folder: &Folder) -> Vec<&str> {
    let all = folder.get("modules_to_save").as_array().into_iter().flatten();
    all.filter_map(Value::as_str).collect()
}

/// Whether a tensor belongs to a module that is saved whole.
pub(super) fn saved_whole(name: &str, saved: &[&str]) -> bool {
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    // A head that is tied to a saved embedding is saved with it.
    let tied = module.ends_with("lm_head") && saved.iter().any(|s| s.ends_with("embed_tokens"));
    tied || saved.iter().any(|s| module == *s || module.ends_with(&format!(".{s}")))
}
