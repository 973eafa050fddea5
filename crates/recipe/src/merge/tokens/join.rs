//! One tokenizer with the tokens of another: its own, without those that have no row, then the others as
//! added tokens, as mergekit joins them. An added token is found in text as it is written; what a
//! byte-level vocabulary spells otherwise is in the table and never read.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use luthier_core::{Error, Result, io};
use luthier_model::Tokenizer;
use serde_json::{Map, Value, json};

use super::Words;

/// How tokens that stand beside a vocabulary are found in text, by token.
pub(in crate::merge) struct Flags(BTreeMap<String, Map<String, Value>>);

/// A token that is put behind the others.
pub(in crate::merge) struct Added {
    /// Its id.
    pub id: u32,
    /// The token.
    pub token: String,
    flags: Map<String, Value>,
}

const FLAGS: [&str; 5] = ["single_word", "lstrip", "rstrip", "normalized", "special"];

impl Flags {
    /// Of a model's folder; a file that holds all says only which tokens are special.
    pub(super) fn of(path: &Path, tokenizer: &Tokenizer) -> Result<Flags> {
        let mut all = BTreeMap::new();
        let file = path.join("tokenizer.json");
        if file.is_file() {
            let whole: Value = io::read_json(&file)?;
            let listed = whole["added_tokens"].as_array();
            for entry in listed.into_iter().flatten() {
                let Some(content) = entry["content"].as_str() else { continue };
                let flag = |key: &&str| (key.to_string(), entry[*key].clone());
                all.insert(content.to_string(), FLAGS.iter().map(flag).collect());
            }
        }
        for id in 0..tokenizer.vocab_size() as u32 {
            if let Some(token) = tokenizer.token(id).filter(|_| tokenizer.is_special(id)) {
                all.entry(token).or_insert_with(|| flags(true));
            }
        }
        Ok(Flags(all))
    }
}

fn flags(special: bool) -> Map<String, Value> {
    let flag = |key: &&str| {
        let on = match *key {
            "special" => special,
            "normalized" => !special,
            _ => false,
        };
        (key.to_string(), json!(on))
    };
    FLAGS.iter().map(flag).collect()
}

impl Added {
    /// As the first model that knows the token finds it.
    pub(super) fn new(token: &str, id: u32, known: &[&(Words, Flags)]) -> Added {
        let found = known.iter().find_map(|(_, flags)| flags.0.get(token));
        let flags = found.cloned().unwrap_or_else(|| flags(false));
        Added { id, token: token.to_string(), flags }
    }
}

/// The tokens of all that `target` lacks: those of vocabularies, then those that stand beside them.
pub(super) fn missing(known: &[&(Words, Flags)], target: &Words) -> Vec<String> {
    let mut found: [Vec<String>; 2] = [Vec::new(), Vec::new()];
    let mut seen = BTreeSet::new();
    for (words, flags) in known {
        let mut by_id: Vec<(&u32, &String)> = words.iter().map(|(token, id)| (id, token)).collect();
        by_id.sort_unstable();
        for (_, token) in by_id.into_iter().filter(|(_, token)| !target.contains_key(*token)) {
            if seen.insert(token) {
                found[usize::from(flags.0.contains_key(token))].push(token.clone());
            }
        }
    }
    found.concat()
}

/// Changes the tokenizer in `dir`, which is a model's own, to one of the tokens below `rows` and those
/// that are added.
pub(in crate::merge) fn edit(dir: &Path, rows: usize, added: &[Added]) -> Result<()> {
    let path = dir.join("tokenizer.json");
    if !path.is_file() {
        let what = "tokens can be added to a tokenizer.json only";
        return Err(Error::input(path.display().to_string(), what)
            .hint("load and save the tokenizer once with transformers, which writes one"));
    }
    let mut whole: Value = io::read_json(&path)?;
    let failed = |what: &str| Error::input(path.display().to_string(), what);
    let kept = |id: &Value| id.as_u64().is_none_or(|id| id < rows as u64);
    let gone = strip(&mut whole, rows, &failed)?;
    let list = whole["added_tokens"].as_array_mut();
    let list = list.ok_or_else(|| failed("has no list of added tokens"))?;
    list.retain(|entry| kept(&entry["id"]));
    for Added { id, token, flags } in added {
        let mut entry = Map::new();
        entry.insert("id".into(), json!(id));
        entry.insert("content".into(), json!(token));
        entry.extend(flags.clone());
        list.push(Value::Object(entry));
    }
    io::write_json(&path, &whole)?;
    // Companions that list the same tokens again.
    for (file, key) in
        [("tokenizer_config.json", "added_tokens_decoder"), ("added_tokens.json", "")]
    {
        let path = dir.join(file);
        if !path.is_file() {
            continue;
        }
        let mut about: Value = io::read_json(&path)?;
        let map = if key.is_empty() { Some(&mut about) } else { about.get_mut(key) };
        if let Some(map) = map.and_then(Value::as_object_mut) {
            map.retain(|name, id| match key.is_empty() {
                true => kept(id) && !gone.contains(name),
                false => name.parse::<usize>().is_ok_and(|id| id < rows),
            });
        }
        io::write_json(&path, &about)?;
    }
    Ok(())
}

/// Takes out of a vocabulary what has no row, with the merges that lead there; the tokens taken.
fn strip(
    whole: &mut Value,
    rows: usize,
    failed: &dyn Fn(&str) -> Error,
) -> Result<BTreeSet<String>> {
    let model = &mut whole["model"];
    let Some(vocab) = model["vocab"].as_object() else { return Ok(BTreeSet::new()) };
    let beyond = |id: &Value| id.as_u64().is_some_and(|id| id >= rows as u64);
    let gone: BTreeSet<String> =
        vocab.iter().filter(|(_, id)| beyond(id)).map(|(token, _)| token.clone()).collect();
    if gone.is_empty() {
        return Ok(gone);
    }
    if model["type"].as_str() != Some("BPE") {
        return Err(failed("has tokens without a row, which only a BPE vocabulary can do without")
            .hint("take another model's tokenizer: `tokenizer: {source: MODEL}`"));
    }
    if let Some(vocab) = model["vocab"].as_object_mut() {
        vocab.retain(|_, id| !beyond(id));
    }
    if let Some(merges) = model["merges"].as_array_mut() {
        let leads_there = |merge: &Value| {
            let pair: Vec<&str> = match merge {
                Value::String(text) => text.split(' ').collect(),
                Value::Array(pair) => pair.iter().filter_map(Value::as_str).collect(),
                _ => Vec::new(),
            };
            let joined = pair.concat();
            pair.iter().any(|token| gone.contains(*token)) || gone.contains(&joined)
        };
        merges.retain(|merge| !leads_there(merge));
    }
    Ok(gone)
}
