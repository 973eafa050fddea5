//! Trainable tokens on disk. PEFT calls the tensor `trainable_tokens_delta`, but what it holds are
//! the rows themselves: they take the place of the base's.

use std::collections::BTreeMap;

use luthier_core::{Error, Result, SiteInfo};
use serde_json::{Value, json};

use super::{
    card::Card,
    config::{self, Written},
    load::{Reader, path},
    module, modules,
    save::{About, Out},
};
use crate::{
    Globs, Params, Tokens,
    form::tokens::{ROWS, tied},
};

/// Every key of PEFT 0.21.2 with its default, in its order, and ours.
const TEMPLATE: &str = r#"{
    "auto_mapping": null, "base_model_name_or_path": null, "inference_mode": true,
    "init_weights": true, "luthier": null, "peft_type": "TRAINABLE_TOKENS",
    "peft_version": "0.21.2", "revision": null, "target_modules": null, "task_type": "CAUSAL_LM",
    "token_indices": []
}"#;

const SUFFIX: &str = ".trainable_tokens_delta";
/// Beside a LoRA the layer is wrapped once more.
const BESIDE: &str = ".token_adapter.trainable_tokens_delta";

pub(super) fn write(tokens: &Tokens, out: &mut Out) -> Result<About> {
    let mut bound = put(tokens, out, SUFFIX)?;
    // Alone, PEFT also keeps the copy of a head that follows.
    let (embed, head) = (out.sites.get("embed"), out.sites.get("logits"));
    if let (Some(embed), Some(head)) = (embed, head)
        && tied(out.bound.policy.model.as_ref())?
        && let Some(rows) = out.bound.var(&format!("{}.{ROWS}", embed.name))
    {
        out.put(module(head)?, SUFFIX, rows.as_detached_tensor());
    }
    bound.sort_unstable();
    let own: Written = vec![
        ("target_modules", modules::target_modules(&bound, &out.modules())),
        ("token_indices", json!(tokens.token_indices)),
    ];
    let settings = vec![("tokens", tokens.token_indices.len().to_string())];
    Ok(About {
        config: config::fill(TEMPLATE, own, out.base),
        card: Card {
            title: "Trained tokens",
            tag: "trainable_tokens",
            modules: bound.len(),
            settings,
        },
    })
}

/// Writes the tokens beside a LoRA; returns `trainable_token_indices`.
pub(super) fn write_beside(tokens: &Tokens, out: &mut Out) -> Result<Value> {
    let bound = put(tokens, out, BESIDE)?;
    let ids = &tokens.token_indices;
    let embed = out.sites.get("embed").and_then(|site| site.module.as_deref());
    if bound.len() == 1 && bound.first().copied() == embed {
        return Ok(json!(ids));
    }
    let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_string();
    Ok(json!(bound.iter().map(|module| (last(module), ids)).collect::<BTreeMap<_, _>>()))
}

fn put<'b>(tokens: &Tokens, out: &mut Out<'b>, suffix: &str) -> Result<Vec<&'b str>> {
    let mut bound: Vec<&'b str> = Vec::new();
    for site in tokens.targets(out.sites)? {
        let (module, rows) = (module(site)?, out.need(&format!("{}.{ROWS}", site.name))?);
        out.put(module, suffix, rows);
        bound.push(module);
    }
    Ok(bound)
}

pub(super) fn read(reader: &mut Reader) -> Result<Params> {
    let mut sites: Vec<&SiteInfo> = Vec::new();
    for key in reader.keys() {
        let Some(module) = path(&key).strip_suffix(SUFFIX) else {
            return Err(reader.unknown(&key));
        };
        take(reader, &key, module, &mut sites)?;
    }
    let token_indices = ids(reader, "token_indices", reader.get("token_indices"))?;
    Ok(Params { tokens: Some(tokens(reader, token_indices, sites)?), ..Params::default() })
}

/// Takes the tokens beside a LoRA, if there are any, and returns the keys that are something else.
pub(super) fn read_beside(
    reader: &mut Reader,
    keys: Vec<String>,
) -> Result<(Option<Tokens>, Vec<String>)> {
    const KEY: &str = "trainable_token_indices";
    let (mut sites, mut rest): (Vec<&SiteInfo>, Vec<String>) = (Vec::new(), Vec::new());
    for key in keys {
        match path(&key).strip_suffix(BESIDE) {
            Some(module) => take(reader, &key, module, &mut sites)?,
            None => rest.push(key),
        }
    }
    let chosen = match reader.get(KEY) {
        Value::Null => None,
        Value::Object(tables) => {
            let mut lists = tables.values();
            let first = lists.next().unwrap_or(&Value::Null);
            if lists.any(|list| list != first) {
                let what = "gives its tables different tokens";
                return Err(Error::input(reader.at_config(KEY), what)
                    .hint("tables that learn the same tokens can be read"));
            }
            Some(ids(reader, KEY, first)?)
        }
        list => Some(ids(reader, KEY, list)?),
    };
    match (chosen, sites.is_empty()) {
        (None, true) => Ok((None, rest)),
        (Some(chosen), false) => Ok((Some(tokens(reader, chosen, sites)?), rest)),
        (None, false) => Err(Error::input(reader.at_config(KEY), "is missing")
            .hint("the file has trained tokens, but nothing says which")),
        (Some(_), true) => {
            let what = "names tokens, but the file has none";
            Err(Error::input(reader.at_config(KEY), what))
        }
    }
}

fn take<'m>(
    reader: &mut Reader<'m>,
    key: &str,
    module: &str,
    sites: &mut Vec<&'m SiteInfo>,
) -> Result<()> {
    let site = reader.site(key, module)?;
    let rows = reader.take(key)?;
    reader.state.insert(format!("{}.{ROWS}", site.name), rows);
    sites.push(site);
    Ok(())
}

fn ids(reader: &Reader, key: &str, list: &Value) -> Result<Vec<u32>> {
    let wrong = || {
        let what = format!("expected a list of token ids, got {list}");
        Error::input(reader.at_config(key), what)
    };
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
    list.as_array().ok_or_else(wrong)?.iter().map(id).collect()
}

/// The form; a head that is the embedding must have the same rows and follows by itself.
fn tokens(
    reader: &mut Reader,
    token_indices: Vec<u32>,
    mut sites: Vec<&SiteInfo>,
) -> Result<Tokens> {
    sites.sort_by_key(|site| site.id);
    if let [embed, head] = sites[..]
        && head.name == "logits"
        && tied(reader.model.as_ref())?
    {
        let rows = |site: &SiteInfo| -> Result<Vec<f32>> {
            let rows = reader.state.get(&format!("{}.{ROWS}", site.name));
            let missing = || Error::failed(&site.name, "was taken a moment ago");
            Ok(rows.ok_or_else(missing)?.flatten_all()?.to_vec1::<f32>()?)
        };
        if rows(embed)? != rows(head)? {
            let what = "has other rows than the embedding, which it is in this model";
            let module = head.module.as_deref().unwrap_or(&head.name);
            return Err(Error::input(reader.at(module), what));
        }
        reader.state.remove(&format!("{}.{ROWS}", head.name));
        sites.pop();
    }
    let at = Globs(sites.iter().map(|site| site.name.clone()).collect());
    Ok(Tokens { token_indices, at })
}
