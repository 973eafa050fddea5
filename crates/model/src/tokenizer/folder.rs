//! Tokenizers in Hugging Face folders: `tokenizer.json` and its companions.

use std::{collections::BTreeMap, path::Path};

use luthier_core::{Error, Result, io};
use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use super::Tokenizer;
use crate::template::ChatTemplate;

/// The named special tokens that templates see.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

fn object(path: &Path) -> Result<Map<String, Value>> {
    if path.exists() { io::read_json(path) } else { Ok(Map::new()) }
}

/// A special token is written as a string or as an object with `content`.
fn spelling(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

pub fn load(dir: &Path) -> Result<Tokenizer> {
    let path = dir.join("tokenizer.json");
    let name = path.display().to_string();
    if !path.exists() {
        let hint = if dir.join("tokenizer.model").exists() {
            "tokenizer.model is the older format; loading and saving the model once with transformers writes tokenizer.json"
        } else {
            "a model folder holds config.json, tokenizer.json and *.safetensors"
        };
        return Err(Error::input(name, "no such file").hint(hint));
    }
    let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
    let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| {
        Error::input(name.as_str(), format!("not a readable tokenizer: {e}"))
            .hint("the file may have been cut short; fetch it again")
    })?;
    drop(bytes);
    let mut config = object(&dir.join("tokenizer_config.json"))?;
    let map = object(&dir.join("special_tokens_map.json"))?;
    add_tokens(&mut inner, dir, &config).map_err(|e| Error::input(name.as_str(), e.to_string()))?;

    let mut special = BTreeMap::new();
    for key in NAMES {
        let token = config.get(key).and_then(spelling).or_else(|| map.get(key).and_then(spelling));
        if let Some(token) = token {
            special.insert(key.to_string(), token.to_string());
        }
    }

    let mut eos = ids(object(&dir.join("generation_config.json"))?.get("eos_token_id"));
    eos.extend(ids(object(&dir.join("config.json"))?.get("eos_token_id")));
    let add_bos = config.get("add_bos_token").and_then(Value::as_bool);
    let template = template(dir, &mut config)?;
    Tokenizer::assemble(name, inner, special, config, eos, add_bos, template)
}

/// Tokens that only `added_tokens.json` or `added_tokens_decoder` know, in the order of their ids.
fn add_tokens(
    inner: &mut tokenizers::Tokenizer,
    dir: &Path,
    config: &Map<String, Value>,
) -> Result<(), tokenizers::Error> {
    let mut missing: BTreeMap<u64, AddedToken> = BTreeMap::new();
    let listed = object(&dir.join("added_tokens.json"))?;
    for (token, id) in &listed {
        if let Some(id) = id.as_u64() {
            missing.insert(id, AddedToken::from(token.as_str(), true));
        }
    }
    let decoder = config.get("added_tokens_decoder").and_then(Value::as_object);
    for (id, entry) in decoder.into_iter().flatten() {
        let (Ok(id), Some(content)) = (id.parse(), spelling(entry)) else { continue };
        let flag = |key: &str| entry.get(key).and_then(Value::as_bool);
        let token = AddedToken::from(content, flag("special").unwrap_or(true))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .single_word(flag("single_word").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(false));
        missing.insert(id, token);
    }
    missing.retain(|_, token| inner.token_to_id(&token.content).is_none());
    for (id, token) in missing {
        let content = token.content.clone();
        inner.add_tokens([token])?;
        let got = inner.token_to_id(&content);
        if got.map(u64::from) != Some(id) {
            return Err(format!(
                "the added token {content} should have id {id}, but {got:?} is the next free one"
            )
            .into());
        }
    }
    Ok(())
}

fn ids(value: Option<&Value>) -> Vec<u32> {
    let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(single) => one(single).into_iter().collect(),
        None => Vec::new(),
    }
}

/// `chat_template.jinja` wins over the entry in the configuration, which is removed from it.
fn template(dir: &Path, config: &mut Map<String, Value>) -> Result<Option<ChatTemplate>> {
    let (path, entry) = (dir.join("chat_template.jinja"), config.remove("chat_template"));
    if path.exists() {
        return ChatTemplate::new(path.display().to_string(), &io::read_text(&path)?).map(Some);
    }
    let name = format!("{} chat_template", dir.join("tokenizer_config.json").display());
    let source = match &entry {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => source.as_str(),
        Some(Value::Array(list)) => {
            let named = |name: &str| list.iter().find(|t| t["name"].as_str() == Some(name));
            let chosen = named("default").or_else(|| list.first());
            chosen.and_then(|t| t["template"].as_str()).ok_or_else(|| {
                Error::input(name.as_str(), "the list holds no `default` entry with a `template`")
            })?
        }
        Some(_) => {
            return Err(Error::input(name, "expected a string or a list of {name, template}"));
        }
    };
    ChatTemplate::new(name, source).map(Some)
}

pub fn save(tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    io::write_bytes(&dir.join("tokenizer.json"), tokenizer.to_json()?.as_bytes())?;
    let mut config = tokenizer.config.clone();
    // The general class reads tokenizer.json as it is; model-specific ones would rebuild parts of it.
    config.insert("tokenizer_class".to_string(), json!("PreTrainedTokenizerFast"));
    for (name, token) in &tokenizer.special {
        config.insert(name.clone(), json!(token));
    }
    config.entry("clean_up_tokenization_spaces").or_insert(json!(false));
    io::write_json(&dir.join("tokenizer_config.json"), &config)?;
    match &tokenizer.template {
        Some(t) => io::write_bytes(&dir.join("chat_template.jinja"), t.source().as_bytes()),
        None => Ok(()),
    }
}
