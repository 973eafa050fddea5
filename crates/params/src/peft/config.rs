//! `adapter_config.json` as PEFT 0.21.2 writes it, and what of a LoRA's can be read back.

use luthier_core::{Error, Result};
use serde_json::{Map, Value, json};

use super::{
    Base,
    load::{Reader, empty},
    modules,
    patterns::Patterns,
};
use crate::{Lora, LoraInit, Target, form::lora::Eva};

/// Settings that differ from PEFT's defaults.
pub(super) type Written = Vec<(&'static str, Value)>;

/// A template's keys with these settings, and with what every kind of adapter says.
pub(super) fn fill(template: &str, own: Written, base: &Base) -> Value {
    let mut config: Map<String, Value> =
        serde_json::from_str(template).expect("the template is JSON, a test reads it");
    let version = env!("CARGO_PKG_VERSION");
    config["base_model_name_or_path"] = json!(base.name);
    config["luthier"] = json!({ "base_sha256": base.sha256, "version": version });
    for (key, value) in own {
        config[key] = value;
    }
    Value::Object(config)
}

/// Every key of PEFT 0.21.2 for LoRA with its default, in its order, and `luthier`, which is ours.
/// PEFT compares the version with its own when it reads.
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

/// PEFT's word for where the factors began. Reading it, PEFT would take parts off the base for
/// `pissa` and `olora` or quantise it for `loftq`: the files need neither. With a LoRA bias it
/// knows its default only.
fn init(lora: &Lora) -> (Value, Value) {
    let Eva { rho, tau, use_label_mask, whiten, adjust_scaling_factors, center: _ } = lora.eva;
    match lora.init {
        _ if lora.bias => (json!(true), Value::Null),
        LoraInit::Gaussian => (json!("gaussian"), Value::Null),
        LoraInit::Orthogonal => (json!("orthogonal"), Value::Null),
        LoraInit::Eva => {
            let eva = json!({
                "adjust_scaling_factors": adjust_scaling_factors, "label_mask_value": -100,
                "rho": rho, "tau": tau, "use_label_mask": use_label_mask, "whiten": whiten,
            });
            (json!("eva"), eva)
        }
        _ => (json!(true), Value::Null),
    }
}

/// The settings of a LoRA over `targets`; `all` are the model's modules.
pub(super) fn lora(
    lora: &Lora,
    targets: &[(&str, Target)],
    all: &[&str],
    more: Written,
    base: &Base,
) -> Value {
    let bound: Vec<&str> = targets.iter().map(|(module, _)| *module).collect();
    let ranks: Vec<(&str, Value)> = targets.iter().map(|(m, t)| (*m, json!(t.r))).collect();
    let alphas: Vec<(&str, Value)> = targets.iter().map(|(m, t)| (*m, number(t.alpha))).collect();
    let (init, eva) = init(lora);
    let mut own: Written = vec![
        ("alpha_pattern", modules::pattern(&alphas, &number(lora.alpha))),
        ("eva_config", eva),
        ("init_lora_weights", init),
        ("lora_alpha", number(lora.alpha)),
        ("lora_bias", json!(lora.bias)),
        ("lora_dropout", json!(lora.dropout)),
        ("r", json!(lora.r)),
        ("rank_pattern", modules::pattern(&ranks, &json!(lora.r))),
        ("target_modules", modules::target_modules(&bound, all)),
        ("use_dora", json!(lora.dora)),
        ("use_rslora", json!(lora.rslora)),
    ];
    own.extend(more);
    fill(TEMPLATE, own, base)
}

/// What of a config matters for running a LoRA.
pub(super) struct Read {
    /// All but the sites and their patterns.
    pub lora: Lora,
    rank_pattern: Patterns<usize>,
    alpha_pattern: Patterns<f64>,
}

/// Keys that change what the tensors mean, in ways luthier does not know. Empty values are harmless.
const UNSUPPORTED: &[&str] = &[
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

impl Read {
    /// Reads a config.
    pub fn new(reader: &Reader) -> Result<Self> {
        let get = |key: &str| reader.get(key);
        let at = |key: &str| reader.at_config(key);
        reader.refuse(UNSUPPORTED)?;
        if let Some(bias) = get("bias").as_str().filter(|b| *b != "none") {
            let what = format!("expected \"none\", got \"{bias}\"");
            return Err(Error::input(at("bias"), what).hint("biases of the base would be changed"));
        }
        let whole = |key: &str, v: &Value| {
            let read = v.as_u64().filter(|r| *r > 0);
            read.map(|r| r as usize)
                .ok_or_else(|| Error::input(at(key), format!("expected a rank above 0, got {v}")))
        };
        let real = |key: &str, v: &Value| {
            v.as_f64().ok_or_else(|| Error::input(at(key), format!("expected a number, got {v}")))
        };
        let flag = |key: &str| get(key).as_bool().unwrap_or(false);
        let lora = Lora {
            r: whole("r", get("r"))?,
            alpha: real("lora_alpha", get("lora_alpha"))?,
            dropout: get("lora_dropout").as_f64().unwrap_or(0.0),
            rslora: flag("use_rslora"),
            dora: flag("use_dora"),
            bias: flag("lora_bias"),
            init: began(reader)?,
            eva: measured(reader)?,
            ..Lora::default()
        };
        let ranks = |v: &Value| whole("rank_pattern", v);
        let alphas = |v: &Value| real("alpha_pattern", v);
        Ok(Read {
            lora,
            rank_pattern: patterns(&at("rank_pattern"), get("rank_pattern"), ranks)?,
            alpha_pattern: patterns(&at("alpha_pattern"), get("alpha_pattern"), alphas)?,
        })
    }

    /// The rank the config gives a module.
    pub fn rank(&self, module: &str) -> usize {
        self.rank_pattern.of(module).unwrap_or(self.lora.r)
    }

    /// The alpha the config gives a module.
    pub fn alpha(&self, module: &str) -> f64 {
        self.alpha_pattern.of(module).unwrap_or(self.lora.alpha)
    }
}

/// Where the factors began, which for some ways says what the base is without.
fn began(reader: &Reader) -> Result<LoraInit> {
    const KEY: &str = "init_lora_weights";
    let Value::String(init) = reader.get(KEY) else { return Ok(LoraInit::Kaiming) };
    let moved = format!("\"{init}\" moves the base away from its published weights");
    let (what, hint) = match init.as_str() {
        "gaussian" => return Ok(LoraInit::Gaussian),
        "orthogonal" => return Ok(LoraInit::Orthogonal),
        "eva" => return Ok(LoraInit::Eva),
        "pissa" => return Ok(LoraInit::Pissa),
        "olora" => return Ok(LoraInit::Olora),
        // Its second factor was frozen; both are ordinary ones.
        "mica" => return Ok(LoraInit::Kaiming),
        "loftq" => (
            "\"loftq\" belongs to a base that PEFT quantises when it loads".to_string(),
            "merge the adapter with PEFT (merge_and_unload) and use the model",
        ),
        // `pissa_niter_N` does so by a random algorithm: the part taken off cannot be computed again.
        _ => (moved, "convert it with PEFT: path_initial_model_for_weight_conversion"),
    };
    Err(Error::input(reader.at_config(KEY), what).hint(hint))
}

fn measured(reader: &Reader) -> Result<Eva> {
    let config = reader.get("eva_config");
    if empty(config) || reader.get("init_lora_weights") != "eva" {
        return Ok(Eva::default());
    }
    let standard = Eva::default();
    let real = |key: &str, or: f64| config.get(key).and_then(Value::as_f64).unwrap_or(or);
    let flag = |key: &str, or: bool| config.get(key).and_then(Value::as_bool).unwrap_or(or);
    Ok(Eva {
        rho: real("rho", standard.rho),
        tau: real("tau", standard.tau),
        use_label_mask: flag("use_label_mask", standard.use_label_mask),
        whiten: flag("whiten", standard.whiten),
        adjust_scaling_factors: flag("adjust_scaling_factors", standard.adjust_scaling_factors),
        center: standard.center,
    })
}

fn patterns<T: Copy>(
    at: &str,
    value: &Value,
    read: impl Fn(&Value) -> Result<T>,
) -> Result<Patterns<T>> {
    let mut patterns = Patterns::default();
    let entries = match value {
        Value::Null => return Ok(patterns),
        Value::Object(entries) => entries,
        other => return Err(Error::input(at, format!("expected a table, got {other}"))),
    };
    for (key, value) in entries {
        patterns
            .add(key, read(value)?)
            .map_err(|e| Error::input(at, format!("`{key}` is not a usable pattern: {e}")))?;
    }
    Ok(patterns)
}
