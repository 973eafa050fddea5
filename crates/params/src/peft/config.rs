//! `adapter_config.json` as PEFT 0.21.2 writes it, and what of it can be read back.

use std::path::Path;

use luthier_core::{Error, Result};
use regex::Regex;
use serde_json::{Map, Value, json};

use super::{Base, modules};
use crate::{Lora, LoraInit, Target};

/// Every key of PEFT 0.21.2 with its default, in its order, and `luthier`, which is ours. PEFT
/// compares the version with its own when it reads.
const TEMPLATE: &str = r#"{
    "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null,
    "auto_mapping": null, "base_model_name_or_path": null, "bias": "none", "corda_config": null,
    "ensure_weight_tying": false, "eva_config": null, "exclude_modules": null,
    "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
    "kasa_config": null, "layer_replication": null, "layers_pattern": null,
    "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 8, "lora_bias": false,
    "lora_dropout": 0.0, "lora_ga_config": null, "luthier": null, "megatron_config": null,
    "megatron_core": "megatron.core", "modules_to_save": null, "monteclora_config": null,
    "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 8,
    "rank_pattern": {}, "revision": null, "target_modules": null, "target_parameters": null,
    "task_type": "CAUSAL_LM", "trainable_token_indices": null, "use_bdlora": null,
    "use_dora": false, "use_qalora": false, "use_rslora": false, "velora_config": null
}"#;

/// A whole number without a fraction, as Python would have written it.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

/// All keys in PEFT's order, with ours among them.
pub(super) fn write(lora: &Lora, targets: &[(&str, Target)], all: &[&str], base: &Base) -> Value {
    let bound: Vec<&str> = targets.iter().map(|(module, _)| *module).collect();
    let ranks: Vec<(&str, Value)> = targets.iter().map(|(m, t)| (*m, json!(t.r))).collect();
    let alphas: Vec<(&str, Value)> = targets.iter().map(|(m, t)| (*m, number(t.alpha))).collect();
    let init = match lora.init {
        LoraInit::Kaiming => json!(true),
        LoraInit::Gaussian => json!("gaussian"),
    };
    let own = [
        ("alpha_pattern", modules::pattern(&alphas, &number(lora.alpha))),
        ("base_model_name_or_path", json!(base.name)),
        ("init_lora_weights", init),
        ("lora_alpha", number(lora.alpha)),
        ("lora_bias", json!(lora.bias)),
        ("lora_dropout", json!(lora.dropout)),
        ("luthier", json!({ "base_sha256": base.sha256, "version": env!("CARGO_PKG_VERSION") })),
        ("r", json!(lora.r)),
        ("rank_pattern", modules::pattern(&ranks, &json!(lora.r))),
        ("target_modules", modules::target_modules(&bound, all)),
        ("use_rslora", json!(lora.rslora)),
    ];
    let mut config: Map<String, Value> =
        serde_json::from_str(TEMPLATE).expect("the template is JSON, a test reads it");
    for (key, value) in own {
        config[key] = value;
    }
    Value::Object(config)
}

/// What of a config matters for running the adapter.
pub(super) struct Read {
    pub r: usize,
    pub alpha: f64,
    pub dropout: f64,
    pub rslora: bool,
    pub bias: bool,
    pub init: LoraInit,
    pub base_sha256: Option<String>,
    rank_pattern: Vec<(Regex, usize)>,
    alpha_pattern: Vec<(Regex, f64)>,
}

/// Keys that change what the tensors mean, in ways luthier does not know. Empty values are harmless.
const UNSUPPORTED: &[&str] = &[
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

/// Ways to begin that leave the base as it was, so that the saved factors are the whole difference.
const PLAIN_INITS: &[&str] = &["gaussian", "eva", "orthogonal"];

fn empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    }
}

impl Read {
    /// Reads a config; `path` is for errors.
    pub fn new(path: &Path, config: &Map<String, Value>) -> Result<Self> {
        let at = |key: &str| format!("{}: {key}", path.display());
        let get = |key: &str| config.get(key).unwrap_or(&Value::Null);
        match get("peft_type").as_str() {
            Some("LORA") => {}
            other => {
                let what = format!("expected \"LORA\", got {}", json!(other));
                return Err(Error::input(at("peft_type"), what)
                    .hint("other kinds of adapter cannot be read yet"));
            }
        }
        if let Some(key) = UNSUPPORTED.iter().find(|key| !empty(get(key))) {
            let what = format!("{} is not supported", get(key));
            return Err(Error::input(at(key), what).hint("only plain LoRA adapters can be read"));
        }
        if let Some(bias) = get("bias").as_str().filter(|b| *b != "none") {
            let what = format!("expected \"none\", got \"{bias}\"");
            return Err(Error::input(at("bias"), what).hint("biases of the base would be changed"));
        }
        let init = match get("init_lora_weights") {
            Value::String(init) if !PLAIN_INITS.contains(&init.as_str()) => {
                let what = format!("\"{init}\" moves the base away from its published weights");
                return Err(Error::input(at("init_lora_weights"), what)
                    .hint("convert it with PEFT: path_initial_model_for_weight_conversion"));
            }
            Value::String(init) if init == "gaussian" => LoraInit::Gaussian,
            _ => LoraInit::Kaiming,
        };
        let whole = |key: &str, v: &Value| {
            let read = v.as_u64().filter(|r| *r > 0);
            read.map(|r| r as usize)
                .ok_or_else(|| Error::input(at(key), format!("expected a rank above 0, got {v}")))
        };
        let real = |key: &str, v: &Value| {
            v.as_f64().ok_or_else(|| Error::input(at(key), format!("expected a number, got {v}")))
        };
        Ok(Read {
            r: whole("r", get("r"))?,
            alpha: real("lora_alpha", get("lora_alpha"))?,
            dropout: get("lora_dropout").as_f64().unwrap_or(0.0),
            rslora: get("use_rslora").as_bool().unwrap_or(false),
            bias: get("lora_bias").as_bool().unwrap_or(false),
            init,
            base_sha256: config
                .get("luthier")
                .and_then(|own| own.get("base_sha256"))
                .and_then(Value::as_str)
                .map(str::to_string),
            rank_pattern: patterns(&at("rank_pattern"), get("rank_pattern"), |v| {
                whole("rank_pattern", v)
            })?,
            alpha_pattern: patterns(&at("alpha_pattern"), get("alpha_pattern"), |v| {
                real("alpha_pattern", v)
            })?,
        })
    }

    /// The rank the config gives a module.
    pub fn rank(&self, module: &str) -> usize {
        first(&self.rank_pattern, module).unwrap_or(self.r)
    }

    /// The alpha the config gives a module.
    pub fn alpha(&self, module: &str) -> f64 {
        first(&self.alpha_pattern, module).unwrap_or(self.alpha)
    }
}

/// In PEFT the first key that matches the end of a path, at a dot, decides.
fn first<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, value)| *value)
}

fn patterns<T>(
    at: &str,
    value: &Value,
    read: impl Fn(&Value) -> Result<T>,
) -> Result<Vec<(Regex, T)>> {
    let none = Map::new();
    let entries = match value {
        Value::Null => &none,
        Value::Object(entries) => entries,
        other => return Err(Error::input(at, format!("expected a table, got {other}"))),
    };
    let entry = |(key, value): (&String, &Value)| {
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{key})$"))
            .map_err(|e| Error::input(at, format!("`{key}` is not a usable pattern: {e}")))?;
        Ok((regex, read(value)?))
    };
    entries.iter().map(entry).collect()
}
