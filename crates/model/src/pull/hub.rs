//! Models from a hub of Hugging Face's kind, through `hf-hub`.
//!
//! Files arrive in hf-hub's own cache layout under luthier's model folder. A file that was cut off
//! is continued where it stopped. Once every file of a model is here, `.complete` beside them says
//! so, and from then on the network is not asked again.

use std::{
    env, fs,
    path::{Component, Path, PathBuf},
};

use hf_hub::{
    Repo,
    api::sync::{Api, ApiBuilder, ApiError, ApiRepo},
};
use luthier_core::{Error, Result, io};
use serde_json::Value;

use super::{Progress, disk, refuse_offline};

/// Companions of the weights, brought if the model has them.
const COMPANIONS: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "README.md",
];
const COMPLETE: &str = ".luthier-complete";

/// A hub and the folder that keeps what it gave.
pub struct Hub {
    pub endpoint: String,
    pub token: Option<String>,
    pub cache: PathBuf,
}

impl Hub {
    /// The public hub, or `HF_ENDPOINT`; `HF_TOKEN` opens gated models.
    pub fn from_env(cache: PathBuf) -> Self {
        let set = |name: &str| env::var(name).ok().filter(|v| !v.is_empty());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_string());
        Hub { endpoint, token: set("HF_TOKEN"), cache }
    }

    /// The folder of `org/name`, or the file of `org/name:file.gguf`.
    pub fn bring(&self, name: &str, offline: bool, progress: Progress<'_>) -> Result<PathBuf> {
        let (id, file) = name.split_once(':').map_or((name, None), |(id, file)| (id, Some(file)));
        if let Some(here) = self.complete(id, file) {
            return Ok(here);
        }
        if offline {
            return Err(refuse_offline(name));
        }
        let api = self.api().map_err(|e| failed(name, "the hub's address", &e))?;
        let repo = api.model(id.to_string());
        let info = repo.info().map_err(|e| failed(name, "the list of files", &e))?;
        let listed: Vec<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        let fetch = |wanted: &str| self.fetch(&repo, id, wanted, progress);
        if let Some(gguf) = gguf(name, file, &listed)? {
            let path = fetch(&gguf)?;
            return self.finish(&path, &[gguf.as_str()]).map(|()| path);
        }
        let mut brought: Vec<String> = Vec::new();
        for wanted in COMPANIONS.iter().filter(|c| listed.contains(c)) {
            fetch(wanted)?;
            brought.push(wanted.to_string());
        }
        for wanted in self.weights(name, &listed, &fetch)? {
            fetch(&wanted)?;
            brought.push(wanted);
        }
        let config = self.snapshot(id).map(|dir| dir.join("config.json"));
        let config =
            config.ok_or_else(|| Error::failed(name, "the hub's cache has no snapshot"))?;
        let names: Vec<&str> = brought.iter().map(String::as_str).collect();
        self.finish(&config, &names)?;
        Ok(config.parent().map(Path::to_path_buf).unwrap_or_default())
    }

    fn api(&self) -> Result<Api, ApiError> {
        ApiBuilder::new()
            .with_endpoint(self.endpoint.clone())
            .with_cache_dir(self.cache.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            .with_retries(3)
            .build()
    }

    fn fetch(
        &self,
        repo: &ApiRepo,
        id: &str,
        file: &str,
        progress: Progress<'_>,
    ) -> Result<PathBuf> {
        let here = self.snapshot(id).map(|dir| dir.join(file)).filter(|path| path.exists());
        if let Some(path) = here {
            return Ok(path);
        }
        // Names come from the hub; one that leaves the model's folder is an attack.
        if Path::new(file).components().any(|c| !matches!(c, Component::Normal(_))) {
            return Err(Error::failed(
                format!("{id}/{file}"),
                "this is not a file inside the model",
            ));
        }
        let meter = Meter { label: format!("{id}/{file}"), done: 0, all: 0, progress };
        let path = repo.download_with_progress(file, meter).map_err(|e| match e {
            ApiError::IoError(source) => disk(&self.cache, 0, Error::io(&self.cache, source)),
            other => failed(id, file, &other),
        })?;
        verify(&path, id, file)?;
        Ok(path)
    }

    /// The weight files: what the index lists, or the single file.
    fn weights(
        &self,
        name: &str,
        listed: &[&str],
        fetch: &dyn Fn(&str) -> Result<PathBuf>,
    ) -> Result<Vec<String>> {
        const INDEX: &str = "model.safetensors.index.json";
        if listed.contains(&INDEX) {
            let index: Value = io::read_json(&fetch(INDEX)?)?;
            let map = index["weight_map"]
                .as_object()
                .ok_or_else(|| Error::failed(format!("{name}/{INDEX}"), "no weight_map inside"))?;
            let mut shards: Vec<String> =
                map.values().filter_map(|v| v.as_str().map(String::from)).collect();
            shards.sort();
            shards.dedup();
            shards.insert(0, INDEX.to_string());
            return Ok(shards);
        }
        if listed.contains(&"model.safetensors") {
            return Ok(vec!["model.safetensors".to_string()]);
        }
        Err(Error::input(name, "this model has neither model.safetensors nor a GGUF file")
            .hint("older .bin weights are pickles, which luthier does not open"))
    }

    fn root(&self, id: &str) -> PathBuf {
        self.cache.join(Repo::model(id.to_string()).folder_name())
    }

    /// The folder of the revision that was last brought.
    fn snapshot(&self, id: &str) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.root(id).join("refs").join("main")).ok()?;
        Some(self.root(id).join("snapshots").join(commit.trim()))
    }

    /// The model, if an earlier run brought all of it.
    fn complete(&self, id: &str, file: Option<&str>) -> Option<PathBuf> {
        let dir = self.snapshot(id)?;
        let list = fs::read_to_string(dir.join(COMPLETE)).ok()?;
        let all = list.lines().all(|name| dir.join(name).exists());
        let path = match file {
            Some(file) => dir.join(file),
            None => match list.lines().collect::<Vec<_>>()[..] {
                [only] => dir.join(only),
                _ => dir,
            },
        };
        (all && path.exists()).then_some(path)
    }

    fn finish(&self, beside: &Path, files: &[&str]) -> Result<()> {
        let mut list = files.join("\n");
        list.push('\n');
        io::write_bytes(&beside.with_file_name(COMPLETE), list.as_bytes())
    }
}

/// Large files are kept under their SHA-256, which the hub announced; the content must have it.
fn verify(path: &Path, id: &str, file: &str) -> Result<()> {
    let blob = fs::canonicalize(path).map_err(|e| Error::io(path, e))?;
    let name = blob.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if name.len() != 64 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    let got = io::sha256_file(&blob)?;
    if got == name {
        return Ok(());
    }
    for damaged in [&blob, path] {
        fs::remove_file(damaged).map_err(|e| Error::io(damaged, e))?;
    }
    let what = format!("expected SHA-256 {name}, got {got}; the file was removed");
    Err(Error::failed(format!("{id}/{file}"), what).hint("the download was damaged; try again"))
}

/// The GGUF file that is meant, if one is.
fn gguf(name: &str, file: Option<&str>, listed: &[&str]) -> Result<Option<String>> {
    let all: Vec<&str> = listed.iter().copied().filter(|f| f.ends_with(".gguf")).collect();
    match (file, &all[..]) {
        (Some(file), _) if listed.contains(&file) => Ok(Some(file.to_string())),
        (Some(file), _) => Err(Error::input(name, format!("the model has no file {file}"))
            .hint(luthier_core::nearest::suggest(file, all.iter().copied()))),
        (None, _)
            if listed.iter().any(|f| f.starts_with("model") && f.ends_with(".safetensors")) =>
        {
            Ok(None)
        }
        (None, [only]) => Ok(Some(only.to_string())),
        (None, []) => Ok(None),
        (None, several) => {
            Err(Error::input(name, format!("the model has {} GGUF files", several.len()))
                .hint(format!("name one: {name}:{}", several.join(&format!(", {name}:")))))
        }
    }
}

fn failed(name: &str, file: &str, error: &ApiError) -> Error {
    Error::failed(name, format!("{file} could not be brought from the hub: {error}")).hint(
        "check the name and the network (HF_TOKEN for gated models, HF_ENDPOINT for a mirror), then repeat: what is here already stays; a local folder works as well",
    )
}

/// Passes hf-hub's progress on.
struct Meter<'a> {
    label: String,
    done: u64,
    all: u64,
    progress: Progress<'a>,
}

impl hf_hub::api::Progress for Meter<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        (self.done, self.all) = (0, size as u64);
        (self.progress)(&self.label, 0, Some(self.all));
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.progress)(&self.label, self.done, Some(self.all));
    }

    fn finish(&mut self) {
        (self.progress)(&self.label, self.all, Some(self.all));
    }
}

#[cfg(test)]
mod tests;
