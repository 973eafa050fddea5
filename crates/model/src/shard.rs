//! The safetensors files of a folder: where each tensor lies, checked before it is believed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use luthier_core::{Error, Result, io};
use serde::Deserialize;
use serde_json::Value;

use crate::{file::DataFile, quant::GgmlType};

/// The largest header the safetensors library itself accepts.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor's place in the file.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The file's own name for the number format.
    pub dtype: String,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Position of the first byte in the file.
    pub offset: u64,
}

impl Entry {
    /// The format, if it is a float that luthier reads.
    pub fn float(&self) -> Option<GgmlType> {
        match self.dtype.as_str() {
            "F32" => Some(GgmlType::F32),
            "F16" => Some(GgmlType::F16),
            "BF16" => Some(GgmlType::BF16),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Bits of a value in the formats of the safetensors library; `None` for a name it does not know.
fn bits(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ"
        | "F8_E5M2FNUZ" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "I64" | "U64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

/// Reads and checks the header of `file`.
fn read_header(file: &DataFile) -> Result<BTreeMap<String, Entry>> {
    let at = file.path().display().to_string();
    let bad = |what: String| Error::input(&at, what);
    let cut = |what: String| bad(what).hint("the download may have been cut short; fetch it again");
    if file.size() < 8 {
        return Err(cut(format!("not a safetensors file: {} bytes", file.size())));
    }
    let mut length = [0; 8];
    file.read(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(bad(format!("not a safetensors file: a header of {length} bytes")));
    }
    let start = 8 + length;
    if start > file.size() {
        return Err(cut(format!("header of {length} bytes in a file of {}", file.size())));
    }
    let mut text = vec![0; length as usize];
    file.read(8, &mut text)?;
    let header: BTreeMap<String, Value> =
        serde_json::from_slice(&text).map_err(|e| bad(format!("safetensors header: {e}")))?;

    let mut entries = BTreeMap::new();
    let mut spans = Vec::with_capacity(header.len());
    for (name, value) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let raw = RawEntry::deserialize(value).map_err(|e| bad(format!("tensor {name}: {e}")))?;
        let (begin, end) = raw.data_offsets;
        let bits = bits(&raw.dtype)
            .ok_or_else(|| bad(format!("tensor {name}: unknown type {:?}", raw.dtype)))?;
        let total = raw.shape.iter().try_fold(bits, |n, d| n.checked_mul(*d));
        let size = total.filter(|bits| bits.is_multiple_of(8)).map(|bits| (bits / 8) as u64);
        if size.is_none() || end.checked_sub(begin) != size {
            return Err(bad(format!(
                "tensor {name}: shape {:?} of {} does not fill bytes {begin} to {end}",
                raw.shape, raw.dtype
            )));
        }
        // Whether the end is within the file is checked below, for all of them at once.
        let offset = start.checked_add(begin);
        let offset = offset.ok_or_else(|| bad(format!("tensor {name}: offset {begin}")))?;
        spans.push((begin, end, name.clone()));
        entries.insert(name, Entry { dtype: raw.dtype, shape: raw.shape, offset });
    }
    spans.sort();
    let mut covered = 0;
    for (begin, end, name) in &spans {
        if *begin != covered {
            return Err(bad(format!(
                "tensor {name}: begins at byte {begin}, expected {covered} (gap or overlap)"
            )));
        }
        covered = *end;
    }
    let data = file.size() - start;
    if covered > data {
        return Err(cut(format!("the header describes {covered} bytes of data, there are {data}")));
    }
    if covered < data {
        return Err(bad(format!("the header describes {covered} of {data} bytes of data")));
    }
    Ok(entries)
}

/// Whether a folder holds a file whose name ends so.
pub(crate) fn any_file(folder: &Path, end: &str) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|e| e.file_name().to_string_lossy().ends_with(end))
}

/// The names of the weight files of a folder, and the tensors an index promises.
fn shard_names(folder: &Path) -> Result<(Vec<String>, BTreeMap<String, String>)> {
    if folder.join("model.safetensors").is_file() {
        return Ok((vec!["model.safetensors".into()], BTreeMap::new()));
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        let found = Error::input(
            folder.display().to_string(),
            "holds neither model.safetensors nor model.safetensors.index.json",
        );
        let pickle =
            any_file(folder, ".bin") || any_file(folder, ".pth") || any_file(folder, ".pt");
        return Err(match pickle {
            true => found.hint(
                "pickled weights can run code when read, luthier does not read them; convert \
                 them once with transformers: save_pretrained(…) writes safetensors",
            ),
            false => found.hint("the weights may not be downloaded yet"),
        });
    }
    let at = index.display().to_string();
    let json: Value = io::read_json(&index)?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| Error::input(&at, "key weight_map: expected an object"))?;
    let mut promised = BTreeMap::new();
    for (tensor, file) in map {
        // A name, not a path: an index must not reach out of its folder.
        let name = file.as_str().filter(|f| Path::new(f).file_name().is_some_and(|n| n == *f));
        let name = name.ok_or_else(|| {
            Error::input(&at, format!("weight_map of {tensor}: expected a file name, got {file}"))
        })?;
        promised.insert(tensor.clone(), name.to_string());
    }
    let names: BTreeSet<String> = promised.values().cloned().collect();
    Ok((names.into_iter().collect(), promised))
}

/// The files of a folder, and each tensor's file and place.
type Opened = (Vec<DataFile>, BTreeMap<String, (usize, Entry)>);

/// Opens the weight files of a folder: the files, and each tensor's file and place.
pub(crate) fn open_folder(folder: &Path) -> Result<Opened> {
    let (names, promised) = shard_names(folder)?;
    let mut files = Vec::with_capacity(names.len());
    let mut tensors: BTreeMap<String, (usize, Entry)> = BTreeMap::new();
    for (i, name) in names.iter().enumerate() {
        let path = folder.join(name);
        if !path.is_file() {
            let what = format!("is missing; the index lists {} weight files", names.len());
            return Err(Error::input(path.display().to_string(), what)
                .hint("the download may be incomplete; fetch it again"));
        }
        let file = DataFile::open(&path)?;
        for (tensor, entry) in read_header(&file)? {
            if let Some((other, _)) = tensors.insert(tensor.clone(), (i, entry)) {
                let what = format!("tensor {tensor} is also in {}", names[other]);
                return Err(Error::input(path.display().to_string(), what));
            }
        }
        files.push(file);
    }
    for (tensor, file) in &promised {
        if tensors.get(tensor).is_none_or(|(i, _)| names[*i] != *file) {
            let what = format!("tensor {tensor} is missing, though the index places it here");
            return Err(Error::input(folder.join(file).display().to_string(), what));
        }
    }
    Ok((files, tensors))
}
