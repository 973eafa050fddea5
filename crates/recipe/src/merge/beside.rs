//! Files that belong beside models: Fisher values, masks, inner products. Safetensors files of tensors
//! under the names of the weights they are about, read a piece at a time.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use luthier_core::{Error, Result};
use luthier_weights::{Config, Input, Layout};
use serde_json::{Map, Value};

/// A header beyond this is no header (the limit of the format's own reader).
const LONGEST_HEADER: u64 = 100_000_000;

/// All files of a merge by the name that the configuration gives them.
#[derive(Default)]
pub(super) struct Files(BTreeMap<String, Numbers>);

/// What one operand is read from: the largest of what these files have for a tensor.
pub(super) type Beside = (Vec<String>, String);

struct Numbers {
    path: PathBuf,
    file: File,
    places: BTreeMap<String, Place>,
}

struct Place {
    dtype: String,
    shape: Vec<usize>,
    offset: u64,
}

impl Files {
    /// Opens every file that an input names; a path is as given, or beside the configuration.
    pub(super) fn open(config: &Config) -> Result<Files> {
        let inputs: Vec<&Input> = match &config.layout {
            Layout::Models(inputs) => inputs.iter().collect(),
            Layout::Slices(slices) => slices.iter().flat_map(|slice| &slice.sources).collect(),
        };
        let mut files = BTreeMap::new();
        for name in inputs.iter().flat_map(|input| &input.beside) {
            if files.contains_key(name) {
                continue;
            }
            let beside = Path::new(&config.file).parent().map(|dir| dir.join(name));
            let path = match beside {
                Some(beside) if !Path::new(name).exists() && beside.exists() => beside,
                _ => PathBuf::from(name),
            };
            files.insert(name.clone(), Numbers::open(path)?);
        }
        Ok(Files(files))
    }

    /// The shape of what a file has for a tensor.
    pub(super) fn shape(&self, name: &str, tensor: &str) -> Option<&[usize]> {
        Some(&self.0.get(name)?.places.get(tensor)?.shape)
    }

    /// Numbers of an operand.
    pub(super) fn read(
        &self,
        (names, tensor): &Beside,
        from: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let mut more = Vec::new();
        for (i, name) in names.iter().enumerate() {
            let file = self.0.get(name).ok_or_else(|| Error::failed(name, "was not opened"))?;
            if i == 0 {
                file.read(tensor, from, out)?;
                continue;
            }
            more.resize(out.len(), 0f32);
            file.read(tensor, from, &mut more)?;
            out.iter_mut().zip(&more).for_each(|(y, x)| *y = y.max(*x));
        }
        Ok(())
    }
}

/// Bytes of a number in a format, and how it is read.
type Format = (usize, fn(&[u8]) -> f32);

/// The format of this name.
fn format(dtype: &str) -> Option<Format> {
    fn bytes<const N: usize>(b: &[u8]) -> [u8; N] {
        let mut all = [0; N];
        all.copy_from_slice(b);
        all
    }
    Some(match dtype {
        "F64" => (8, |b| f64::from_le_bytes(bytes(b)) as f32),
        "F32" => (4, |b| f32::from_le_bytes(bytes(b))),
        "F16" => (2, |b| f16::from_le_bytes(bytes(b)).to_f32()),
        "BF16" => (2, |b| bf16::from_le_bytes(bytes(b)).to_f32()),
        "BOOL" | "U8" => (1, |b| f32::from(b[0])),
        _ => return None,
    })
}

impl Numbers {
    fn open(path: PathBuf) -> Result<Numbers> {
        let broken = |what: String| {
            Error::input(path.display().to_string(), format!("not a safetensors file: {what}"))
        };
        let file = File::open(&path).map_err(|e| Error::io(&path, e))?;
        let size = file.metadata().map_err(|e| Error::io(&path, e))?.len();
        let mut length = [0; 8];
        read_at(&file, &mut length, 0).map_err(|_| broken("it ends before its header".into()))?;
        let length = u64::from_le_bytes(length);
        if length > LONGEST_HEADER || length > size.saturating_sub(8) {
            return Err(broken(format!("a header of {length} bytes in a file of {size}")));
        }
        let mut text = vec![0; length as usize];
        read_at(&file, &mut text, 8).map_err(|e| Error::io(&path, e))?;
        let entries: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|e| broken(format!("its header: {e}")))?;
        let mut places = BTreeMap::new();
        for (name, entry) in entries.iter().filter(|(name, _)| *name != "__metadata__") {
            let numbers = |key: &str| -> Option<Vec<u64>> {
                entry.get(key)?.as_array()?.iter().map(Value::as_u64).collect()
            };
            let dtype = entry.get("dtype").and_then(Value::as_str).unwrap_or_default().to_string();
            let (Some(shape), Some(offsets)) = (numbers("shape"), numbers("data_offsets")) else {
                return Err(broken(format!("{name} has no shape or no place")));
            };
            let ([from, to], Some((width, _))) = (&offsets[..], format(&dtype)) else {
                let what = format!("{name} is stored as {dtype}; expected a float, BOOL or U8");
                return Err(Error::input(path.display().to_string(), what));
            };
            let bytes = shape.iter().try_fold(width as u64, |n, dim| n.checked_mul(*dim));
            if to.checked_sub(*from) != bytes || *to > size - 8 - length {
                return Err(broken(format!("{name} is not where the header says")));
            }
            let shape = shape.into_iter().map(|n| n as usize).collect();
            places.insert(name.clone(), Place { dtype, shape, offset: 8 + length + from });
        }
        Ok(Numbers { path, file, places })
    }

    fn read(&self, tensor: &str, from: usize, out: &mut [f32]) -> Result<()> {
        let place = self.places.get(tensor);
        let missing = || Error::input(self.path.display().to_string(), format!("has no {tensor}"));
        let Place { dtype, offset, shape } = place.ok_or_else(missing)?;
        let (width, number) = format(dtype).ok_or_else(missing)?;
        if from + out.len() > shape.iter().product() {
            let what = format!("{tensor} has shape {shape:?}, which is too small");
            return Err(Error::input(self.path.display().to_string(), what));
        }
        let mut bytes = vec![0; out.len() * width];
        read_at(&self.file, &mut bytes, offset + (from * width) as u64)
            .map_err(|e| Error::io(&self.path, e))?;
        out.iter_mut().zip(bytes.chunks_exact(width)).for_each(|(y, b)| *y = number(b));
        Ok(())
    }
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                bytes = &mut bytes[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}
