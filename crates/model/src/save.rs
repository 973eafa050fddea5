//! Writing a model as a Hugging Face folder, one tensor in memory at a time.

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use luthier_core::{Error, Result, io};
use serde_json::{Map, Value, json};

use crate::config::ModelConfig;

mod stream;

pub use stream::{Announced, Stream};

/// How weights are written. Rounding is to the nearest, ties to even.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaveDtype {
    /// 32-bit float.
    F32,
    /// The upper half of a 32-bit float.
    BF16,
    /// 16-bit IEEE float.
    F16,
}

impl SaveDtype {
    /// Bytes per value.
    pub fn bytes(self) -> usize {
        match self {
            SaveDtype::F32 => 4,
            SaveDtype::BF16 | SaveDtype::F16 => 2,
        }
    }

    /// The name in a safetensors header.
    pub fn safetensors(self) -> &'static str {
        match self {
            SaveDtype::F32 => "F32",
            SaveDtype::BF16 => "BF16",
            SaveDtype::F16 => "F16",
        }
    }

    /// The name in `config.json`.
    pub fn config(self) -> &'static str {
        match self {
            SaveDtype::F32 => "float32",
            SaveDtype::BF16 => "bfloat16",
            SaveDtype::F16 => "float16",
        }
    }
}

/// How a model is written.
#[derive(Clone, Debug)]
pub struct Save {
    /// Number format of all weights.
    pub dtype: SaveDtype,
    /// Bytes after which another shard begins.
    pub shard_bytes: u64,
    /// Further entries of the files' `__metadata__` (`format` is always there).
    pub metadata: Vec<(String, String)>,
}

impl Default for Save {
    fn default() -> Self {
        Save { dtype: SaveDtype::F32, shard_bytes: 5_000_000_000, metadata: Vec::new() }
    }
}

/// One weight file to come: which tensors, in which order.
struct Shard<'a> {
    file: String,
    tensors: Vec<(&'a str, &'a [usize], u64)>,
}

/// Writes weights, `config.json` and `generation_config.json` to `dir`; returns the paths.
///
/// `tensors` lists Hugging Face names and shapes (see [`crate::names::tensors`]); `load` is called
/// once for each, in that order. Every file appears whole or not at all; when one fails, those
/// this call created are removed again.
pub fn save_hf(
    dir: &Path,
    config: &ModelConfig,
    tensors: &[(String, Vec<usize>)],
    mut load: impl FnMut(&str) -> Result<Vec<f32>>,
    save: &Save,
) -> Result<Vec<PathBuf>> {
    let config_json = config.to_hf_json(save.dtype.config())?;
    let shards = split(tensors, save)?;
    refuse_other_weights(dir, &shards)?;
    let mut written = Written::default();
    for shard in &shards {
        let path = dir.join(&shard.file);
        written.file(&path, |path| write_shard(path, shard, save, &mut load))?;
    }
    if shards.len() > 1 {
        let index = index(&shards);
        written.file(&dir.join(INDEX), |path| io::write_json(path, &index))?;
    }
    written.file(&dir.join("config.json"), |path| io::write_json(path, &config_json))?;
    let generation = config.to_generation_json();
    written.file(&dir.join("generation_config.json"), |path| io::write_json(path, &generation))?;
    Ok(std::mem::take(&mut written.done))
}

const INDEX: &str = "model.safetensors.index.json";

/// Files of this call. Dropped before the end, it removes those that were not there before.
#[derive(Default)]
struct Written {
    done: Vec<PathBuf>,
    new: Vec<PathBuf>,
}

impl Written {
    fn file(&mut self, path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let existed = path.exists();
        write(path).inspect_err(|_| self.undo())?;
        self.done.push(path.to_path_buf());
        if !existed {
            self.new.push(path.to_path_buf());
        }
        Ok(())
    }

    fn undo(&self) {
        for path in &self.new {
            if let Err(e) = std::fs::remove_file(path) {
                tracing::warn!("{}: could not be removed: {e}", path.display());
            }
        }
    }
}

fn bytes_of(name: &str, shape: &[usize], dtype: SaveDtype) -> Result<u64> {
    let bytes = shape.iter().try_fold(dtype.bytes() as u64, |n, d| n.checked_mul(*d as u64));
    bytes.ok_or_else(|| Error::failed(name, format!("shape {shape:?} is absurd")))
}

/// A tensor to come: name, shape, bytes.
type Coming<'a> = (&'a str, &'a [usize], u64);

fn split<'a>(tensors: &'a [(String, Vec<usize>)], save: &Save) -> Result<Vec<Shard<'a>>> {
    let mut groups: Vec<(u64, Vec<Coming>)> = vec![(0, Vec::new())];
    let mut seen = BTreeSet::new();
    for (name, shape) in tensors {
        if !seen.insert(name.as_str()) {
            return Err(Error::failed(name, "is listed twice"));
        }
        let bytes = bytes_of(name, shape, save.dtype)?;
        let last = groups.len() - 1;
        if groups[last].0 > 0 && groups[last].0.saturating_add(bytes) > save.shard_bytes {
            groups.push((0, Vec::new()));
        }
        let last = groups.len() - 1;
        groups[last].0 += bytes;
        groups[last].1.push((name, shape, bytes));
    }
    let n = groups.len();
    let file = |i: usize| match n {
        1 => "model.safetensors".to_string(),
        _ => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
    };
    let shards = groups.into_iter().enumerate();
    Ok(shards.map(|(i, (_, tensors))| Shard { file: file(i), tensors }).collect())
}

/// Weights of an earlier save beside the new ones would be loaded instead of them.
fn refuse_other_weights(dir: &Path, shards: &[Shard]) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    let index = shards.len() > 1;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let weights = name == INDEX
            || name.starts_with("model") && name.ends_with(".safetensors")
            || name.starts_with("pytorch_model");
        let ours = shards.iter().any(|s| s.file == name) || (name == INDEX && index);
        if weights && !ours {
            let at = dir.join(name).display().to_string();
            return Err(Error::input(at, "other weights are in the output folder already")
                .hint("choose an empty folder"));
        }
    }
    Ok(())
}

fn index(shards: &[Shard]) -> Value {
    let total: u64 = shards.iter().flat_map(|s| &s.tensors).map(|t| t.2).sum();
    let mut map = Map::new();
    for shard in shards {
        map.extend(shard.tensors.iter().map(|(name, ..)| (name.to_string(), json!(shard.file))));
    }
    map.sort_keys();
    json!({"metadata": {"total_size": total}, "weight_map": map})
}

fn header(shard: &Shard, save: &Save) -> Vec<u8> {
    let mut metadata = Map::new();
    metadata.insert("format".into(), "pt".into());
    metadata.extend(save.metadata.iter().map(|(k, v)| (k.clone(), json!(v))));
    let mut map = Map::new();
    map.insert("__metadata__".into(), metadata.into());
    let mut begin = 0;
    for (name, shape, bytes) in &shard.tensors {
        let end = begin + bytes;
        let entry = json!({
            "dtype": save.dtype.safetensors(), "shape": shape, "data_offsets": [begin, end],
        });
        map.insert(name.to_string(), entry);
        begin = end;
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    // Readers that map the file want the data aligned.
    text.resize(text.len().next_multiple_of(8), b' ');
    text
}

fn write_shard(
    path: &Path,
    shard: &Shard,
    save: &Save,
    load: &mut impl FnMut(&str) -> Result<Vec<f32>>,
) -> Result<()> {
    // The writer's closure can only fail with an IO error; another one is kept here.
    let mut failed = None;
    let written = io::write_atomic(path, |out| {
        let header = header(shard, save);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (name, shape, _) in &shard.tensors {
            let checked = load(name).and_then(|values| check(name, shape, values, save.dtype));
            match checked {
                Ok(values) => write_values(out, &values, save.dtype)?,
                Err(e) => {
                    failed = Some(e);
                    return Err(std::io::Error::other("no tensor"));
                }
            }
        }
        Ok(())
    });
    match failed {
        Some(e) => Err(e),
        None => written,
    }
}

fn check(name: &str, shape: &[usize], values: Vec<f32>, dtype: SaveDtype) -> Result<Vec<f32>> {
    let expected: usize = shape.iter().product();
    if values.len() != expected {
        let what = format!("expected {expected} values of shape {shape:?}, got {}", values.len());
        return Err(Error::failed(name, what));
    }
    let overflows = |x: &&f32| x.is_finite() && f16::from_f32(**x).is_infinite();
    if dtype == SaveDtype::F16
        && let Some(x) = values.iter().find(overflows)
    {
        return Err(Error::failed(name, format!("{x} is too large for float16"))
            .hint("save as bfloat16 or float32"));
    }
    Ok(values)
}

fn write_values(out: &mut dyn Write, values: &[f32], dtype: SaveDtype) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(values.len().min(1 << 18) * dtype.bytes());
    for values in values.chunks(1 << 18) {
        bytes.clear();
        match dtype {
            SaveDtype::F32 => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
            SaveDtype::BF16 => {
                bytes.extend(values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()));
            }
            SaveDtype::F16 => {
                bytes.extend(values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()));
            }
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}
