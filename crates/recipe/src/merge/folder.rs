//! Everything in the output's folder besides the weights.

use std::{collections::BTreeMap, path::Path};

use luthier_core::{Error, Result, io};
use luthier_model::{ChatTemplate, Tokenizer};
use luthier_params::{own, peft};
use luthier_weights::{Config, Model};
use serde_json::json;

use super::{Merged, Options, models::Models, plan::Plan, tokens};
use crate::manifest::MANIFEST;

mod card;
mod templates;

use templates::TEMPLATES;

/// Files of a tokenizer that are copied as they are.
const TOKENIZER: [&str; 8] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];

/// Writes configuration, tokenizer, card and manifest beside the weights.
pub(super) fn finish(
    dir: &Path,
    text: &str,
    (config, models, plan): (&Config, &Models, &Plan),
    vocabulary: Option<&tokens::Vocabulary>,
    options: &Options<'_>,
) -> Result<Merged> {
    let mut notes = config.notes.clone();
    notes.extend(models.notes());
    notes.extend(plan.notes.iter().cloned());
    io::write_json(&dir.join("config.json"), &plan.config.to_hf_json(plan.dtype().config())?)?;
    io::write_json(&dir.join("generation_config.json"), &plan.config.to_generation_json())?;
    let donor = vocabulary.map_or_else(|| models.donor(config), |v| models.at(v.donor));
    tokenizer(dir, config, models, &donor.path, &mut notes)?;
    if let Some(vocabulary) = vocabulary.filter(|_| tokens::has_tokenizer(dir)) {
        let rows = models.at(vocabulary.donor).config().vocab;
        let size = Tokenizer::open(dir)?.vocab_size();
        if size > rows || !vocabulary.added.is_empty() {
            tokens::join::edit(dir, rows, &vocabulary.added)?;
        }
    }
    // A search writes JSON, which is YAML too.
    let toml = Path::new(&config.file).extension().is_some_and(|end| end == "toml");
    let name = match toml && !text.starts_with('{') {
        true => "mergekit_config.toml",
        false => "mergekit_config.yml",
    };
    io::write_bytes(&dir.join(name), text.as_bytes())?;
    io::write_bytes(&dir.join("README.md"), card::card(config, text).as_bytes())?;
    manifest(dir, text, models, options, &notes)?;
    Ok(Merged {
        model: dir.to_path_buf(),
        method: config.spec.name,
        layers: plan.config.layers,
        tensors: plan.tensors.len(),
        parameters: plan.parameters(),
        dtype: plan.dtype().config(),
        files: names(dir)?,
        notes,
        found: None,
    })
}

/// The donor's tokenizer, perhaps with another chat template.
fn tokenizer(
    dir: &Path,
    config: &Config,
    models: &Models,
    donor: &Path,
    notes: &mut Vec<String>,
) -> Result<()> {
    if !tokens::has_tokenizer(donor) {
        notes.push("no tokenizer stands beside the weights, so none is in the output".to_string());
        return Ok(());
    }
    if donor.is_dir() && config.chat_template.is_none() {
        for file in TOKENIZER.iter().filter(|file| donor.join(file).is_file()) {
            let (from, to) = (donor.join(file), dir.join(file));
            std::fs::copy(&from, &to).map_err(|e| Error::io(&from, e))?;
        }
        return Ok(());
    }
    let mut tokenizer = Tokenizer::open(donor)?;
    if let Some(template) = template(config, models)? {
        tokenizer.set_template(template);
    }
    tokenizer.save(dir)
}

/// The chat template that the file asks for.
fn template(config: &Config, models: &Models) -> Result<Option<ChatTemplate>> {
    let at = format!("{}: chat_template", config.file);
    match config.chat_template.as_deref() {
        None => Ok(None),
        Some("auto") => {
            // The one that most models have; of several, the first.
            let mut counts: Vec<(String, usize)> = Vec::new();
            for opened in models.iter() {
                let Ok(tokenizer) = Tokenizer::open(&opened.path) else { continue };
                let Some(source) = tokenizer.template().map(|t| t.source().trim()) else {
                    continue;
                };
                match counts.iter_mut().find(|(text, _)| text == source) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((source.to_string(), 1)),
                }
            }
            let most = counts.iter().map(|(_, count)| *count).max();
            let chosen = counts.iter().find(|(_, count)| Some(*count) == most);
            chosen.map(|(text, _)| ChatTemplate::new(at, text)).transpose()
        }
        Some(text) if text.contains('{') && text.len() >= 20 => {
            ChatTemplate::new(at, text).map(Some)
        }
        Some(name) => match TEMPLATES.iter().find(|(known, _)| *known == name) {
            Some((_, text)) => ChatTemplate::new(at, text).map(Some),
            None => Err(Error::input(at, format!("no template is called {name:?}"))
                .hint("auto, alpaca, chatml, exaone, llama3, mistral, or the text of a template")),
        },
    }
}

/// Names of the files in a folder, sorted.
fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let entry = entry.map_err(|e| Error::io(dir, e))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// `manifest.json`: what went in and what came out. It holds no times.
fn manifest(
    dir: &Path,
    text: &str,
    models: &Models,
    options: &Options<'_>,
    notes: &[String],
) -> Result<()> {
    let mut inputs = Vec::new();
    for opened in models.iter() {
        let mut input =
            BTreeMap::from([("role", json!("model")), ("name", json!(opened.model.to_string()))]);
        if options.hash {
            input.insert("sha256", json!(opened.source.sha256()?));
        }
        if let Some(dir) = opened.adapter.as_ref().filter(|_| options.hash) {
            let files = [own::WEIGHTS, peft::WEIGHTS].map(|name| dir.join(name));
            let weights = files.iter().find(|file| file.is_file());
            let sha256 = weights.map(|file| io::sha256_file(file)).transpose()?;
            input.insert("adapter_sha256", json!(sha256));
        }
        inputs.push(input);
    }
    let mut outputs = Vec::new();
    for name in names(dir)? {
        let path = dir.join(&name);
        let bytes = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
        let mut output = BTreeMap::from([("path", json!(name)), ("bytes", json!(bytes))]);
        if options.hash || !name.ends_with(".safetensors") {
            output.insert("sha256", json!(io::sha256_file(&path)?));
        }
        outputs.push(output);
    }
    let manifest = json!({
        "luthier": env!("CARGO_PKG_VERSION"),
        "command": options.command,
        "recipe_sha256": io::sha256(text.as_bytes()),
        "seed": options.seed,
        "inputs": inputs,
        "outputs": outputs,
        "notes": notes,
    });
    io::write_json(&dir.join(MANIFEST), &manifest)
}

/// Whether a name is that of a model on the hub rather than of a file.
pub(super) fn on_hub(model: &Model) -> bool {
    let name = &model.name;
    !Path::new(name).exists()
        && name.matches('/').count() == 1
        && !name.starts_with(['/', '.', '~'])
}
