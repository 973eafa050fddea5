//! Reading an adapter folder: the tensors say what is adapted, the config says how strongly.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::Tensor;
use luthier_core::{Error, Model, Policy, Result, SiteInfo, StateDict, io, nearest::nearest};
use serde_json::{Map, Value};

use super::{Base, CONFIG, PREFIX, WEIGHTS, head, ia3, ln_tuning, lora, prompt, tokens};
use crate::{Bound, Params, Scope};

/// An adapter folder on its way to a form and variables.
pub(super) struct Reader<'m> {
    config_path: PathBuf,
    weights: PathBuf,
    config: Map<String, Value>,
    file: StateDict,
    pub model: &'m Arc<dyn Model>,
    /// Tensors of the file under our names.
    pub state: StateDict,
}

/// A tensor's key without PEFT's prefix.
pub(super) fn path(key: &str) -> &str {
    key.strip_prefix(PREFIX).unwrap_or(key)
}

/// Whether a setting says nothing.
pub(super) fn empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    }
}

impl<'m> Reader<'m> {
    /// A key of the config, for errors.
    pub fn at_config(&self, key: &str) -> String {
        format!("{}: {key}", self.config_path.display())
    }

    /// A tensor's key, for errors.
    pub fn at(&self, key: &str) -> String {
        format!("{}: {key}", self.weights.display())
    }

    /// A value of the config; `null` when it has none.
    pub fn get(&self, key: &str) -> &Value {
        self.config.get(key).unwrap_or(&Value::Null)
    }

    /// Refuses settings among `keys` that say something.
    pub fn refuse(&self, keys: &[&str]) -> Result<()> {
        match keys.iter().find(|key| !empty(self.get(key))) {
            None => Ok(()),
            Some(key) => {
                let what = format!("{} is not supported", self.get(key));
                Err(Error::input(self.at_config(key), what)
                    .hint("merge the adapter with PEFT (merge_and_unload) and use the model"))
            }
        }
    }

    /// Keys of the tensors that nobody has taken.
    pub fn keys(&self) -> Vec<String> {
        self.file.iter().map(|(key, _)| key.to_string()).collect()
    }

    /// Leaves a module out of `modules_to_save`: somebody has taken its tensors.
    pub fn save_no_more(&mut self, module: &str) {
        if let Some(Value::Array(modules)) = self.config.get_mut("modules_to_save") {
            modules.retain(|name| name != module);
        }
    }

    /// Takes a tensor out of the file.
    pub fn take(&mut self, key: &str) -> Result<Tensor> {
        self.file.remove(key).ok_or_else(|| Error::failed(self.at(key), "was taken already"))
    }

    /// The site whose weights live in `module`.
    pub fn site(&self, key: &str, module: &str) -> Result<&'m SiteInfo> {
        let sites = self.model.sites();
        sites.by_module(module).ok_or_else(|| {
            let known = sites.iter().filter_map(|s| s.module.as_deref());
            let near = nearest(module, known, 2).join(" or ");
            let what = format!("this model has no module {module}");
            let hint =
                if near.is_empty() { "the adapter is for another model".into() } else { near };
            Error::input(self.at(key), what).hint(format!("nearest: {hint}"))
        })
    }

    /// A tensor that belongs to nothing this kind of adapter has.
    pub fn unknown(&self, key: &str) -> Error {
        let (kind, expected) = match self.get("peft_type").as_str() {
            Some("IA3") => ("an IA3", "…ia3_l"),
            Some("LN_TUNING") => ("an LN_TUNING", "…ln_tuning_layers.weight"),
            Some("TRAINABLE_TOKENS") => ("a TRAINABLE_TOKENS", "…trainable_tokens_delta"),
            Some("PROMPT_TUNING") => ("a PROMPT_TUNING", "prompt_embeddings alone"),
            Some("PREFIX_TUNING") => ("a PREFIX_TUNING", "prompt_embeddings alone"),
            _ => ("a LORA", "…lora_A.weight, …lora_B.weight, …lora_B.bias or …lora_embedding_A/B"),
        };
        Error::input(self.at(key), format!("is not part of {kind} adapter"))
            .hint(format!("expected {expected}, or whole modules that modules_to_save names"))
    }

    /// The model that the config names.
    fn base(&self) -> Base {
        let text = |value: &Value| value.as_str().map(str::to_string);
        let name = text(self.get("base_model_name_or_path")).unwrap_or_default();
        Base { name, sha256: text(self.get("luthier").get("base_sha256").unwrap_or(&Value::Null)) }
    }
}

/// What can be read; the rest is told what comes nearest.
const KINDS: &str = "LORA, IA3, LN_TUNING, TRAINABLE_TOKENS, PROMPT_TUNING or PREFIX_TUNING";

/// Kinds that give no weight: PEFT cannot merge them either.
const PROMPTS: &[&str] = &[
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "CPT",
    "CARTRIDGE",
    "ADAPTION_PROMPT",
    "POLY",
    "XLORA",
];

fn refuse_kind(reader: &Reader) -> Error {
    let kind = reader.get("peft_type");
    let what = format!("expected {KINDS}, got {kind}");
    let hint = match kind.as_str() {
        Some(kind) if PROMPTS.contains(&kind) => {
            "it is no change of weights, so nothing else can stand for it: run it with PEFT"
        }
        Some("ADALORA" | "LOHA" | "LOKR" | "FOURIERFT" | "GRALORA" | "C3A" | "DELORA") => {
            "turn it into a LoRA with PEFT's convert_to_lora, or merge it and use the model"
        }
        _ => "merge it with PEFT (merge_and_unload) and use the model",
    };
    Error::input(reader.at_config("peft_type"), what).hint(hint)
}

/// Binds the adapter in `dir` to `model`. Its variables can be trained further.
///
/// `base_sha256` is the hash of the model at hand; it is compared when the adapter knows its own.
pub fn load(dir: &Path, model: &Arc<dyn Model>, base_sha256: Option<&str>) -> Result<Bound> {
    let (config_path, weights) = (dir.join(CONFIG), dir.join(WEIGHTS));
    let config: Map<String, Value> = io::read_json(&config_path)?;
    let (file, state) = (StateDict::default(), StateDict::default());
    let mut reader = Reader { config_path, weights, config, file, model, state };
    let read = match reader.get("peft_type").as_str() {
        Some("LORA") => lora::read,
        Some("IA3") => ia3::read,
        Some("LN_TUNING") => ln_tuning::read,
        Some("TRAINABLE_TOKENS") => tokens::read,
        Some("PROMPT_TUNING" | "PREFIX_TUNING") => prompt::read,
        _ => return Err(refuse_kind(&reader)),
    };
    reader.base().check(dir, base_sha256)?;
    if !reader.weights.exists() && dir.join("adapter_model.bin").exists() {
        let at = dir.join("adapter_model.bin").display().to_string();
        return Err(Error::input(at, "a pickled adapter cannot be read safely")
            .hint("load it with PEFT and save it again: that writes adapter_model.safetensors"));
    }
    reader.file = StateDict::load(&reader.weights)?;
    if reader.file.is_empty() {
        let at = reader.weights.display().to_string();
        return Err(Error::input(at, "holds no adapter tensor"));
    }
    let head = head::read(&mut reader)?;
    let mut form = read(&mut reader)?;
    form.head = head;
    let Reader { weights, state, .. } = reader;
    bind(form, model, state).map_err(|e| Error::within(weights.display(), e))
}

fn bind(form: Params, model: &Arc<dyn Model>, state: StateDict) -> Result<Bound> {
    let mut scope = Scope::given(state);
    let (mut policy, mut forms) = (Policy::plain(model.clone()), Vec::new());
    for (key, part) in form.named() {
        policy = match (key, &form.lora) {
            // As it is: what luthier would not begin with may well be read.
            ("lora", Some(lora)) => {
                let targets = lora.resolve(model.sites())?;
                lora.bind_targets(policy, &targets, &mut scope)?
            }
            _ => part.bind(policy, &mut scope)?,
        };
        forms.resize(scope.params().len(), key);
    }
    policy.hooks.virtual_tokens = form.virtual_tokens();
    Ok(Bound { policy, params: scope.finish()?, forms, form })
}
