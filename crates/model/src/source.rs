//! An opened checkpoint: a Hugging Face folder or a GGUF file, seen alike.
//!
//! Opening reads headers only and compares every tensor's name and shape with the configuration,
//! so that a wrong file is refused before any work begins.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use luthier_core::{Error, Result, io, nearest::suggest};
use luthier_kernels::{
    blocks::Blocks,
    num::{Held, Precision},
};
use rayon::prelude::*;
use serde_json::Value;

mod range;

use crate::{
    config::ModelConfig,
    file::DataFile,
    gguf::Gguf,
    names,
    quant::GgmlType,
    shard::{self, Entry},
};

/// An opened checkpoint.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    config: ModelConfig,
    weights: Weights,
    tensors: BTreeMap<String, Place>,
    sha256: OnceLock<String>,
}

#[derive(Debug)]
enum Weights {
    Folder(Vec<DataFile>),
    Gguf(Box<Gguf>),
}

/// Where a tensor lies.
#[derive(Debug)]
struct Place {
    shape: Vec<usize>,
    dtype: String,
    /// `None` for a format that is not read.
    ty: Option<GgmlType>,
    /// Index of the safetensors file; 0 for GGUF.
    file: usize,
    offset: u64,
    /// Number of heads whose rows GGUF interleaves.
    interleaved: Option<usize>,
}

impl Source {
    /// Opens a Hugging Face folder or a GGUF file and checks its headers.
    pub fn open(path: &Path) -> Result<Self> {
        let at = path.display().to_string();
        let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::input(&at, "no such file or folder")
                .hint("give a model folder or a .gguf file, or fetch one with `luthier pull`"),
            _ => Error::io(path, e),
        })?;
        let source = match metadata.is_dir() {
            true => Self::open_folder(path)?,
            false => Self::open_gguf(path)?,
        };
        source.check()?;
        Ok(source)
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "safetensors" || e == "json") {
            return Err(Error::input(path.display().to_string(), "expected a model folder")
                .hint("give the folder that holds config.json and the weights"));
        }
        let gguf = Gguf::open(path)?;
        let config = ModelConfig::from_gguf(&gguf)?;
        // Converters reorder the rows of q and k for these two; see `uninterleave`.
        let reordered = matches!(gguf.text("general.architecture")?, "llama" | "smollm3");
        let mut tensors = BTreeMap::new();
        for info in gguf.tensors() {
            if matches!(info.name.as_str(), "rope_freqs.weight") {
                continue;
            }
            let Some(name) = names::hf_tensor(&info.name) else {
                let what = format!("tensor {} has no place in this architecture", info.name);
                return Err(Error::input(path.display().to_string(), what));
            };
            let interleaved = match () {
                _ if !reordered => None,
                _ if name.contains(".q_proj.") => Some(config.heads),
                _ if name.contains(".k_proj.") => Some(config.kv_heads),
                _ => None,
            };
            let place = Place {
                shape: info.shape.clone(),
                dtype: info.ty.name(),
                ty: Some(info.ty),
                file: 0,
                offset: info.offset,
                interleaved,
            };
            tensors.insert(name, place);
        }
        let weights = Weights::Gguf(Box::new(gguf));
        let path = path.to_path_buf();
        Ok(Source { path, config, weights, tensors, sha256: OnceLock::new() })
    }

    fn open_folder(path: &Path) -> Result<Self> {
        let at = path.display().to_string();
        let config_path = path.join("config.json");
        if !config_path.is_file() {
            let found = Error::input(&at, "is not a model folder: config.json is missing");
            return Err(match () {
                _ if path.join("adapter_config.json").is_file() => found
                    .hint("this is an adapter: give it as the adapter, and its base as the model"),
                _ if shard::any_file(path, ".gguf") => found.hint("give the .gguf file itself"),
                _ => found.hint("a model folder holds config.json and model.safetensors"),
            });
        }
        let json: Value = io::read_json(&config_path)?;
        let mut config = ModelConfig::from_hf(&json, &config_path.display().to_string())?;
        let generation = path.join("generation_config.json");
        if generation.is_file() {
            let json: Value = io::read_json(&generation)?;
            config = config.with_generation(&json, &generation.display().to_string())?;
        }
        let (files, entries) = shard::open_folder(path)?;
        let place = |(file, entry): (usize, Entry)| {
            let ty = entry.float();
            let Entry { dtype, shape, offset } = entry;
            Place { shape, dtype, ty, file, offset, interleaved: None }
        };
        let tensors = entries.into_iter().map(|(name, entry)| (name, place(entry))).collect();
        let (path, weights) = (path.to_path_buf(), Weights::Folder(files));
        Ok(Source { path, config, weights, tensors, sha256: OnceLock::new() })
    }

    /// Compares names and shapes with what the configuration asks for.
    fn check(&self) -> Result<()> {
        let expected = names::tensors(&self.config);
        for (name, shape) in &expected {
            self.check_shape(name, shape)?;
        }
        let expected: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let unused = |name: &str| {
            // Old files store rotary frequencies, which follow from the configuration; a tied
            // head may have been written out a second time.
            !(expected.contains(name)
                || name.ends_with(".rotary_emb.inv_freq")
                || name == "lm_head.weight" && self.config.tied)
        };
        let extra: Vec<&str> = self.tensor_names().filter(|name| unused(name)).take(4).collect();
        if !extra.is_empty() {
            let arch = self.config.arch.model_type();
            let what = format!("tensors that {arch} has no use for: {}", extra.join(", "));
            return Err(Error::input(self.at(), what)
                .hint("the configuration leaves something out, or the weights are quantised"));
        }
        Ok(())
    }

    fn check_shape(&self, name: &str, expected: &[usize]) -> Result<()> {
        let got = &self.place(name)?.shape;
        if got == expected {
            return Ok(());
        }
        let what = format!("tensor {name}: expected shape {expected:?}, got {got:?}");
        Err(Error::input(self.at(), what).hint("configuration and weights are of two models"))
    }

    /// What the model is made of.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The GGUF file, if it is one: its keys hold the tokenizer.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.weights {
            Weights::Gguf(gguf) => Some(gguf),
            Weights::Folder(_) => None,
        }
    }

    /// Hugging Face names of all stored tensors, in name order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Sizes of a tensor.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.place(name)?.shape)
    }

    /// How a tensor is stored: `BF16`, `Q4_1`, ….
    pub fn dtype_name(&self, name: &str) -> Result<&str> {
        Ok(&self.place(name)?.dtype)
    }

    /// The values of a tensor in row order, in f32.
    pub fn load_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.load(name, DataFile::read_f32)
    }

    /// The values of a tensor in row order, as products of `precision` read them.
    pub fn load_held(&self, name: &str, precision: Precision) -> Result<Held> {
        Ok(match precision {
            Precision::F32 => Held::F32(self.load(name, DataFile::read_f32)?),
            Precision::Bf16 => Held::Bf16(self.load(name, DataFile::read_bf16)?),
        })
    }

    fn load<T: Copy + Default + Send + Sync>(
        &self,
        name: &str,
        read: impl Fn(&DataFile, GgmlType, u64, &mut [T]) -> Result<()>,
    ) -> Result<Vec<T>> {
        let place = self.place(name)?;
        let ty = place.ty.ok_or_else(|| {
            let what = format!("tensor {name}: stored as {}, expected a float", place.dtype);
            Error::input(self.at(), what).hint("F32, F16 and BF16 weights can be read")
        })?;
        let mut out = vec![T::default(); place.shape.iter().product()];
        match &self.weights {
            Weights::Folder(files) => read(&files[place.file], ty, place.offset, &mut out)?,
            Weights::Gguf(gguf) => read(gguf.file(), ty, place.offset, &mut out)?,
        }
        match place.interleaved {
            Some(heads) => Ok(uninterleave(&out, place.shape[0], heads)),
            None => Ok(out),
        }
    }

    /// The stored blocks of a quantised matrix, its rows in the same order as those of
    /// [`Source::load_f32`]; `None` for plain floats, and where a block reaches into the next row.
    pub fn load_blocks(&self, name: &str) -> Result<Option<Blocks>> {
        let place = self.place(name)?;
        let (Some(ty), Weights::Gguf(gguf), [o, i]) = (place.ty, &self.weights, &place.shape[..])
        else {
            return Ok(None);
        };
        let row = match ty.bytes_for(*i) {
            Some(row) if ty.block_elements() > 1 => row,
            _ => return Ok(None),
        };
        // The header was believed only after its sizes were found to lie within the file.
        let mut bytes = vec![0u8; o * row];
        gguf.file().read(place.offset, &mut bytes)?;
        let bytes = match place.interleaved {
            Some(heads) => uninterleave(&bytes, *o, heads),
            None => bytes,
        };
        let blocks = Blocks::new(ty, bytes, *o, *i);
        blocks.map(Some).map_err(|e| Error::failed(self.at(), format!("tensor {name}: {e}")))
    }

    /// As [`Source::load_f32`], refusing another shape than `expected`.
    pub fn load_checked(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        self.check_shape(name, expected)?;
        self.load_f32(name)
    }

    /// SHA-256 of the weights: of the file if there is one, of `hash  name` lines if there are
    /// several. Computed once.
    pub fn sha256(&self) -> Result<&str> {
        if let Some(hash) = self.sha256.get() {
            return Ok(hash);
        }
        let paths: Vec<&Path> = match &self.weights {
            Weights::Folder(files) => files.iter().map(DataFile::path).collect(),
            Weights::Gguf(gguf) => vec![gguf.path()],
        };
        let hashes: Vec<String> =
            paths.par_iter().map(|p| io::sha256_file(p)).collect::<Result<_>>()?;
        let hash = match hashes.as_slice() {
            [one] => one.clone(),
            many => {
                let name = |p: &&Path| p.file_name().unwrap_or_default().display().to_string();
                let lines = many.iter().zip(&paths).map(|(h, p)| format!("{h}  {}\n", name(p)));
                io::sha256(lines.collect::<String>().as_bytes())
            }
        };
        Ok(self.sha256.get_or_init(|| hash))
    }

    fn at(&self) -> String {
        self.path.display().to_string()
    }

    fn place(&self, name: &str) -> Result<&Place> {
        self.tensors.get(name).ok_or_else(|| {
            let error = Error::input(self.at(), format!("tensor {name} is missing"));
            match suggest(name, self.tensors.keys().map(String::as_str)) {
                _ if name == "lm_head.weight" => {
                    error.hint("config.json says that the head is not tied to the embeddings")
                }
                text if text.starts_with("known:") => {
                    error.hint("the weights are of another model")
                }
                text => error.hint(text),
            }
        })
    }
}

/// Undoes the row order of GGUF's llama: a head's rows lie there as pairs `(j, j + e/2)`, because
/// its runtime rotates neighbours, where Hugging Face rotates the two halves of a head.
fn uninterleave<T: Copy + Default + Send + Sync>(
    stored: &[T],
    rows: usize,
    heads: usize,
) -> Vec<T> {
    let width = stored.len() / rows;
    let mut out = vec![T::default(); stored.len()];
    out.par_chunks_mut(width).enumerate().for_each(|(row, out)| {
        let from = stored_row(row, rows, heads);
        out.copy_from_slice(&stored[from * width..(from + 1) * width]);
    });
    out
}

/// Where such a file has row `row` of `rows`.
fn stored_row(row: usize, rows: usize, heads: usize) -> usize {
    let e = rows / heads;
    let (head, within) = (row / e, row % e);
    let (part, j) = (within / (e / 2), within % (e / 2));
    head * e + 2 * j + part
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The converter's own definition: `[heads, 2, e/2]` with the last two axes swapped.
    fn interleave(rows: &[f32], heads: usize) -> Vec<f32> {
        let half = rows.len() / heads / 2;
        let mut out = Vec::new();
        for head in 0..heads {
            for j in 0..half {
                for part in 0..2 {
                    out.push(rows[head * 2 * half + part * half + j]);
                }
            }
        }
        out
    }

    #[test]
    fn the_row_order_of_llama_is_undone() {
        let rows: Vec<f32> = (0..24).map(|x| x as f32).collect();
        let stored = interleave(&rows, 3);
        assert_ne!(stored, rows);
        assert_eq!(uninterleave(&stored, 24, 3), rows);
        let wide: Vec<f32> = stored.iter().flat_map(|x| [*x, -x]).collect();
        let back: Vec<f32> = rows.iter().flat_map(|x| [*x, -x]).collect();
        assert_eq!(uninterleave(&wide, 24, 3), back);
    }
}
