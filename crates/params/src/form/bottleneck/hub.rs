//! Adapter folders of adapter-hub's `adapters` 1.x: `adapter_config.json`, `adapter.safetensors`.
//!
//! Tensors are called `…layers.{i}.{attention_adapters,output_adapters}.adapters.{name}.` and
//! `adapter_down.0.{weight,bias}`, `adapter_up.{weight,bias}`, or with `phm_layer`
//! `{W_left,W_right,W,b,phm_rule}` in place of the last part, `scaling` where that is learned, and
//! `…shared_parameters.{name}.phm_rule`. What its models would compute and ours would not is refused
//! by its key.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use luthier_core::{Error, Model, Result, StateDict, io};
use regex::Regex;
use serde_json::{Map, Value};

use super::{Bottleneck, LearnedScaling, NonLinearity, Phm, Scaling};
use crate::{Bound, Globs, Params, Scope};

/// Configuration file of a folder.
pub const CONFIG: &str = "adapter_config.json";
/// Weights file of a folder.
pub const WEIGHTS: &str = "adapter.safetensors";

/// Binds the adapter in `dir` to `model`. Its variables can be trained further.
pub fn load(dir: &Path, model: &Arc<dyn Model>) -> Result<Bound> {
    let (path, weights) = (dir.join(CONFIG), dir.join(WEIGHTS));
    let file: Map<String, Value> = io::read_json(&path)?;
    let read = Read::new(&path, &file, model.width(), model.n_layers())?;
    if !weights.exists() && dir.join("pytorch_adapter.bin").exists() {
        let at = dir.join("pytorch_adapter.bin").display().to_string();
        return Err(Error::input(at, "a pickled adapter cannot be read safely")
            .hint("save it again with use_safetensors=True: that writes adapter.safetensors"));
    }
    let state = read.rename(&weights, StateDict::load(&weights)?)?;
    let form = Params { bottleneck: Some(read.form), ..Params::default() };
    form.bind_in(model, Scope::given(state)).map_err(|e| Error::within(weights.display(), e))
}

/// What a configuration says.
struct Read {
    form: Bottleneck,
    /// Our sites behind attention and MLP, below `layers.{i}.`.
    attention: &'static str,
    output: &'static str,
}

impl Read {
    fn new(path: &Path, file: &Map<String, Value>, width: usize, layers: usize) -> Result<Self> {
        let nothing = Map::new();
        let settings = file.get("config").and_then(Value::as_object).unwrap_or(&nothing);
        let keys = Keys { path, settings };
        if let Some(kind) = settings.get("architecture").filter(|a| !a.is_null()) {
            return Err(keys.refuse("architecture", format!("expected a bottleneck, got {kind}")));
        }
        if let Some(theirs) = file.get("hidden_size").and_then(Value::as_u64)
            && theirs != width as u64
        {
            let at = format!("{}: hidden_size", path.display());
            return Err(Error::input(at, format!("is {theirs}, the model is {width} wide"))
                .hint("the adapter was trained on another base model"));
        }
        for (key, usual) in [
            ("original_ln_after", true),
            ("ln_before", false),
            ("ln_after", false),
            ("use_gating", false),
            ("cross_adapter", false),
            ("factorized_phm_rule", false),
            ("shared_W_phm", false),
            ("learn_phm", true),
            ("phm_bias", true),
        ] {
            if keys.flag(key, usual)? != usual {
                return Err(keys.refuse(key, format!("expected {usual}, got {}", !usual)));
            }
        }
        if settings.get("inv_adapter").is_some_and(|v| !v.is_null()) {
            return Err(keys.refuse("inv_adapter", "invertible adapters are not known".into()));
        }
        let parallel = keys.flag("is_parallel", false)?;
        let stream = !parallel && keys.flag("original_ln_before", false)?;
        if stream && settings.get("residual_before_ln").is_some_and(|v| v != &Value::Bool(true)) {
            return Err(keys.refuse("residual_before_ln", "expected true".into()));
        }
        let (attention, output) =
            if stream { ("resid_mid", "resid_post") } else { ("attn.out", "mlp.out") };
        let mut at = Vec::new();
        for (key, site) in [("mh_adapter", attention), ("output_adapter", output)] {
            if keys.flag(key, false)? {
                at.push(format!("layers.*.{site}"));
            }
        }
        let mut exclude = Vec::new();
        for layer in settings.get("leave_out").and_then(Value::as_array).into_iter().flatten() {
            match layer.as_u64().filter(|layer| *layer < layers as u64) {
                Some(layer) => exclude.push(format!("layers.{layer}.**")),
                None => return Err(keys.refuse("leave_out", format!("no layer {layer}"))),
            }
        }
        let form = Bottleneck {
            at: Globs(at),
            exclude: Globs(exclude),
            reduction_factor: keys.number("reduction_factor", 16.0)?,
            non_linearity: non_linearity(&keys, file.contains_key("version"))?,
            parallel,
            scaling: scaling(&keys)?,
            dropout: keys.number("dropout", 0.0)?,
            phm: phm(&keys)?,
            ..Bottleneck::default()
        };
        Ok(Read { form, attention, output })
    }

    /// The tensors under our names.
    fn rename(&self, path: &Path, file: StateDict) -> Result<StateDict> {
        let own = regex(
            r"(?:^|\.)layers\.(\d+)\.(attention|output)_adapters\.adapters\.([^.]+)\.(adapter_down\.0|adapter_up|scaling)(?:\.([A-Za-z_]+))?$",
        );
        let shared = regex(r"(?:^|\.)shared_parameters\.([^.]+)\.phm_rule$");
        let mut state = StateDict::default();
        // A model with a head may hold shared parameters under two names; an adapter has one.
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for (key, tensor) in file.iter() {
            let at = || format!("{}: {key}", path.display());
            let (name, ours) = if let Some(found) = own.captures(key) {
                let site = if &found[2] == "attention" { self.attention } else { self.output };
                let part = match (&found[4], found.get(5)) {
                    ("scaling", None) => "adapter_scaling".to_string(),
                    ("adapter_down.0", Some(last)) => format!("adapter_down.{}", last.as_str()),
                    ("adapter_up", Some(last)) => format!("adapter_up.{}", last.as_str()),
                    _ => return Err(unknown(at())),
                };
                (found[3].to_string(), format!("layers.{}.{site}.{part}", &found[1]))
            } else if let Some(found) = shared.captures(key) {
                (found[1].to_string(), "bottleneck.phm_rule".to_string())
            } else {
                return Err(unknown(at()));
            };
            if let Some((other, first)) = names.iter().find(|(known, _)| **known != name) {
                let what = format!("belongs to adapter `{name}`, but {first} to `{other}`");
                return Err(Error::input(at(), what).hint("save each adapter by itself"));
            }
            names.entry(name).or_insert_with(|| key.to_string());
            state.insert(ours, tensor.clone());
        }
        Ok(state)
    }
}

fn regex(text: &str) -> Regex {
    Regex::new(text).expect("a fixed expression")
}

fn unknown(at: String) -> Error {
    Error::input(at, "is not part of a bottleneck adapter of a Llama model")
        .hint("expected …layers.0.output_adapters.adapters.NAME.adapter_down.0.weight and the like")
}

/// `config` of a file, with the file's name for errors.
struct Keys<'a> {
    path: &'a Path,
    settings: &'a Map<String, Value>,
}

impl Keys<'_> {
    fn refuse(&self, key: &str, what: String) -> Error {
        Error::input(format!("{}: config.{key}", self.path.display()), what).hint(
            "adapters of this kind cannot be read; luthier reads plain bottlenecks and Compacter",
        )
    }

    fn flag(&self, key: &str, usual: bool) -> Result<bool> {
        match self.settings.get(key) {
            None | Some(Value::Null) => Ok(usual),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.refuse(key, format!("expected true or false, got {other}"))),
        }
    }

    fn number(&self, key: &str, usual: f64) -> Result<f64> {
        match self.settings.get(key) {
            None | Some(Value::Null) => Ok(usual),
            Some(value) => value
                .as_f64()
                .ok_or_else(|| self.refuse(key, format!("expected a number, got {value}"))),
        }
    }

    fn size(&self, key: &str, usual: usize) -> Result<usize> {
        match self.settings.get(key) {
            None | Some(Value::Null) => Ok(usual),
            Some(value) => value
                .as_u64()
                .map(|size| size as usize)
                .ok_or_else(|| self.refuse(key, format!("expected a whole number, got {value}"))),
        }
    }
}

fn non_linearity(keys: &Keys, versioned: bool) -> Result<NonLinearity> {
    let name = keys.settings.get("non_linearity").and_then(Value::as_str).unwrap_or_default();
    Ok(match (name, versioned) {
        ("relu", _) => NonLinearity::Relu,
        // Files from before versions were written called the tanh form so.
        ("gelu", false) | ("gelu_new" | "gelu_pytorch_tanh", _) => NonLinearity::GeluNew,
        ("gelu", true) | ("gelu_orig", false) => NonLinearity::Gelu,
        ("swish" | "silu", _) => NonLinearity::Swish,
        _ => {
            let what = format!("expected relu, gelu, gelu_new or swish, got `{name}`");
            return Err(keys.refuse("non_linearity", what));
        }
    })
}

fn scaling(keys: &Keys) -> Result<Scaling> {
    match keys.settings.get("scaling").and_then(Value::as_str) {
        None => Ok(Scaling::By(keys.number("scaling", 1.0)?)),
        Some("learned") => Ok(Scaling::Learned(LearnedScaling::Learned)),
        Some("channel") => Ok(Scaling::Learned(LearnedScaling::Channel)),
        Some(other) => Err(keys.refuse("scaling", format!("got `{other}`"))),
    }
}

fn phm(keys: &Keys) -> Result<Option<Phm>> {
    if !keys.flag("phm_layer", false)? {
        return Ok(None);
    }
    Ok(Some(Phm {
        division: keys.size("phm_dim", 4)?,
        rank: keys.size("phm_rank", 1)?,
        shared: keys.flag("shared_phm_rule", true)?,
        factorized: keys.flag("factorized_phm_W", true)?,
        init_range: keys.number("phm_init_range", 1e-4)?,
    }))
}
