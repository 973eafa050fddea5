//! Virtual tokens on disk: prompt tuning and prefix tuning, one tensor each.

use luthier_core::{Error, Model, Result, SiteKind};
use serde_json::json;

use super::{
    card::Card,
    config::{self, Written},
    load::Reader,
    save::{About, Out},
};
use crate::{
    Params, Prompt, PromptKind,
    form::prompt::{
        peft::{PROMPT, TENSOR, prefix_from_peft, prefix_to_peft},
        prefix_sites,
    },
};

/// Every key of PEFT 0.21.2 for prompt tuning with its default, in its order, and ours.
const PROMPT_TEMPLATE: &str = r#"{
    "auto_mapping": null, "base_model_name_or_path": null, "inference_mode": true,
    "luthier": null, "modules_to_save": null, "num_attention_heads": null, "num_layers": null,
    "num_transformer_submodules": 1, "num_virtual_tokens": null, "peft_type": "PROMPT_TUNING",
    "peft_version": "0.21.2", "prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": null,
    "revision": null, "task_type": "CAUSAL_LM", "token_dim": null, "tokenizer_kwargs": null,
    "tokenizer_name_or_path": null
}"#;

/// The same for prefix tuning.
const PREFIX_TEMPLATE: &str = r#"{
    "auto_mapping": null, "base_model_name_or_path": null, "encoder_hidden_size": null,
    "inference_mode": true, "init_weights": null, "luthier": null, "modules_to_save": null,
    "num_attention_heads": null, "num_layers": null, "num_transformer_submodules": 1,
    "num_virtual_tokens": null, "peft_type": "PREFIX_TUNING", "peft_version": "0.21.2",
    "prefix_projection": false, "revision": null, "task_type": "CAUSAL_LM", "token_dim": null
}"#;

pub(super) fn write(prompt: &Prompt, out: &mut Out) -> Result<About> {
    let model = out.bound.policy.model.as_ref();
    let mut own: Written = vec![
        ("num_layers", json!(model.n_layers())),
        ("num_virtual_tokens", json!(prompt.n_virtual)),
    ];
    let (template, title, tag) = match prompt.kind {
        PromptKind::Prompt => {
            let learned = out.need(PROMPT)?;
            out.put_alone(TENSOR, learned);
            own.push(("num_attention_heads", json!(heads(model)?.0)));
            own.push(("token_dim", json!(model.width())));
            (PROMPT_TEMPLATE, "Prompt tuning", "prompt_tuning")
        }
        PromptKind::Prefix => {
            let layers = prefix_sites(out.sites, model.n_layers())?;
            let width = layers.first().map_or(0, |at| at.width);
            let of = |name: &str| out.bound.var(name).map(|var| var.as_detached_tensor());
            let tensor = prefix_to_peft(of, &layers, |l| model.rotation(l))?;
            for at in &layers {
                out.need(&format!("{}.prefix", at.k.name))?;
                out.need(&format!("{}.prefix", at.v.name))?;
            }
            out.put_alone(TENSOR, tensor);
            // Keys and values have heads of their own.
            own.push(("num_attention_heads", json!(width / heads(model)?.1)));
            own.push(("token_dim", json!(width)));
            own.push(("encoder_hidden_size", json!(width)));
            (PREFIX_TEMPLATE, "Prefix tuning", "prefix_tuning")
        }
    };
    let settings = vec![("virtual tokens", prompt.n_virtual.to_string())];
    let modules = match prompt.kind {
        PromptKind::Prompt => 1,
        PromptKind::Prefix => 2 * model.n_layers(),
    };
    Ok(About {
        config: config::fill(template, own, out.base),
        card: Card { title, tag, modules, settings },
    })
}

/// Query heads of a model and the numbers of one.
fn heads(model: &dyn Model) -> Result<(usize, usize)> {
    let sites = model.sites();
    let pattern = sites.get("layers.0.attn.pattern").map(|site| &site.kind);
    let width = sites.get("layers.0.attn.q").and_then(|q| q.linear());
    match (pattern, width) {
        (Some(&SiteKind::Activation { d }), Some((_, o))) if d > 0 => Ok((d, o / d)),
        _ => Err(Error::failed("layers.0.attn.pattern", "does not tell how many heads there are")),
    }
}

pub(super) fn read(reader: &mut Reader) -> Result<Params> {
    reader.refuse(&["modules_to_save", "prefix_projection"])?;
    if let Some(key) = reader.keys().iter().find(|key| *key != TENSOR) {
        return Err(reader.unknown(key));
    }
    let tensor = reader.take(TENSOR)?;
    let (n_virtual, width) = tensor.dims2().map_err(|_| {
        Error::input(reader.at(TENSOR), "expected a matrix, a row per virtual token")
    })?;
    let told = reader.get("num_virtual_tokens");
    if told.as_u64() != Some(n_virtual as u64) {
        let what = format!("is {told}, but the file has {n_virtual} virtual tokens");
        return Err(Error::input(reader.at_config("num_virtual_tokens"), what));
    }
    let model = reader.model.as_ref();
    let kind = match reader.get("peft_type").as_str() {
        Some("PREFIX_TUNING") => {
            let layers = prefix_sites(model.sites(), model.n_layers())?;
            reader.state = prefix_from_peft(&tensor, &layers, |l| model.rotation(l))?;
            PromptKind::Prefix
        }
        _ if width != model.width() => {
            let what =
                format!("has {width} numbers per virtual token, this model {}", model.width());
            return Err(Error::input(reader.at(TENSOR), what)
                .hint("the prompt was trained on another base model"));
        }
        _ => {
            reader.state.insert(PROMPT, tensor);
            PromptKind::Prompt
        }
    };
    let prompt = Prompt { n_virtual, kind, ..Prompt::default() };
    Ok(Params { prompt: Some(prompt), ..Params::default() })
}
