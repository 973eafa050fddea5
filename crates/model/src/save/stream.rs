//! Writing a model whose numbers come in pieces: in any order, from any thread.
//!
//! The headers follow from names and shapes, so every number's place in its file is known before the
//! first one is there.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use half::{bf16, f16, slice::HalfFloatSliceExt};
use luthier_core::{Error, Result, io};
use luthier_kernels::num::narrow;
use serde_json::{Map, Value, json};

use super::{INDEX, SaveDtype};

/// A tensor to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// Its name.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub dtype: SaveDtype,
}

#[derive(Debug)]
struct Place {
    file: usize,
    offset: u64,
    len: usize,
    dtype: SaveDtype,
}

/// Weight files that are being filled.
#[derive(Debug)]
pub struct Stream {
    files: Vec<(PathBuf, File)>,
    places: BTreeMap<String, Place>,
    dir: PathBuf,
}

impl Announced {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> u64 {
        (self.len() * self.dtype.bytes()) as u64
    }
}

impl Stream {
    /// Makes the files in `dir`, a new shard after every `shard_bytes`, with their headers, and the
    /// index if they are several.
    pub fn create(dir: &Path, tensors: &[Announced], shard_bytes: u64) -> Result<Stream> {
        let mut shards: Vec<(u64, Vec<&Announced>)> = vec![(0, Vec::new())];
        for tensor in tensors {
            let full = shards.last().is_some_and(|(bytes, list)| {
                !list.is_empty() && bytes + tensor.bytes() > shard_bytes
            });
            if full {
                shards.push((0, Vec::new()));
            }
            if let Some((bytes, list)) = shards.last_mut() {
                *bytes += tensor.bytes();
                list.push(tensor);
            }
        }
        let n = shards.len();
        let mut stream =
            Stream { files: Vec::new(), places: BTreeMap::new(), dir: dir.to_path_buf() };
        let mut map = Map::new();
        for (i, (bytes, list)) in shards.iter().enumerate() {
            let name = match n {
                1 => "model.safetensors".to_string(),
                _ => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
            };
            map.extend(list.iter().map(|tensor| (tensor.name.clone(), json!(name))));
            stream.begin(&dir.join(name), *bytes, list)?;
        }
        if n > 1 {
            let total: u64 = shards.iter().map(|(bytes, _)| bytes).sum();
            map.sort_keys();
            let index = json!({"metadata": {"total_size": total}, "weight_map": map});
            io::write_json(&dir.join(INDEX), &index)?;
        }
        Ok(stream)
    }

    /// One file with its header, as long as it will be.
    fn begin(&mut self, path: &Path, bytes: u64, tensors: &[&Announced]) -> Result<()> {
        let mut map = Map::new();
        map.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut from = 0;
        for tensor in tensors {
            let to = from + tensor.bytes();
            let entry = json!({
                "dtype": tensor.dtype.safetensors(),
                "shape": tensor.shape,
                "data_offsets": [from, to],
            });
            if map.insert(tensor.name.clone(), entry).is_some() {
                return Err(Error::failed(&tensor.name, "is listed twice"));
            }
            from = to;
        }
        let mut text = Value::Object(map).to_string().into_bytes();
        // Readers that map the file want the data aligned.
        text.resize(text.len().next_multiple_of(8), b' ');
        let failed = |e| Error::io(path, e);
        let file = File::create(path).map_err(failed)?;
        write_at(&file, &(text.len() as u64).to_le_bytes(), 0).map_err(failed)?;
        write_at(&file, &text, 8).map_err(failed)?;
        let mut offset = 8 + text.len() as u64;
        file.set_len(offset + bytes).map_err(failed)?;
        for tensor in tensors {
            let (file, dtype, len) = (self.files.len(), tensor.dtype, tensor.len());
            self.places.insert(tensor.name.clone(), Place { file, offset, len, dtype });
            offset += tensor.bytes();
        }
        self.files.push((path.to_path_buf(), file));
        Ok(())
    }

    /// Writes the numbers of a tensor that begin at `from`.
    pub fn put(&self, name: &str, from: usize, values: &[f32]) -> Result<()> {
        let place = self.places.get(name);
        let place = place.ok_or_else(|| Error::failed(name, "is no tensor of this model"))?;
        if from + values.len() > place.len {
            let what = format!("{} numbers at {from} of {}", values.len(), place.len);
            return Err(Error::failed(name, what));
        }
        let mut bytes = vec![0u8; values.len() * place.dtype.bytes()];
        match place.dtype {
            SaveDtype::F32 => {
                let pairs = bytes.chunks_exact_mut(4).zip(values);
                pairs.for_each(|(to, x)| to.copy_from_slice(&x.to_le_bytes()));
            }
            SaveDtype::BF16 => {
                let mut short = vec![bf16::ZERO; values.len()];
                narrow(values, &mut short);
                let pairs = bytes.chunks_exact_mut(2).zip(short);
                pairs.for_each(|(to, x)| to.copy_from_slice(&x.to_le_bytes()));
            }
            SaveDtype::F16 => {
                let mut short = vec![f16::ZERO; values.len()];
                short.convert_from_f32_slice(values);
                let large = values.iter().zip(&short);
                if let Some((x, _)) = large.clone().find(|(x, y)| x.is_finite() && y.is_infinite())
                {
                    return Err(Error::failed(name, format!("{x} is too large for float16"))
                        .hint("write bfloat16 or float32"));
                }
                let pairs = bytes.chunks_exact_mut(2).zip(short);
                pairs.for_each(|(to, x)| to.copy_from_slice(&x.to_le_bytes()));
            }
        }
        let (path, file) = &self.files[place.file];
        let at = place.offset + (from * place.dtype.bytes()) as u64;
        write_at(file, &bytes, at).map_err(|e| Error::io(path, e))
    }

    /// Lets everything reach the disk; the files that were written.
    pub fn finish(self) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for (path, file) in self.files {
            file.sync_all().map_err(|e| Error::io(&path, e))?;
            paths.push(path);
        }
        if paths.len() > 1 {
            paths.push(self.dir.join(INDEX));
        }
        Ok(paths)
    }
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset)? {
            0 => return Err(std::io::ErrorKind::WriteZero.into()),
            n => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}
