//! The header, read front to back and checked against the length of the file.

use std::{collections::BTreeMap, io::Read};

use luthier_core::{Error, Result};

use super::{Array, TensorInfo, Value};
use crate::quant::GgmlType;

/// Version, keys with values, and the tensors' places.
pub(super) type Sections = (u32, BTreeMap<String, Value>, Vec<TensorInfo>);

/// Reads the header of a file of `len` bytes from its beginning; `at` names the file.
pub(super) fn read(input: impl Read, at: &str, len: u64) -> Result<Sections> {
    let mut header = Header { input, at, left: len };
    let (version, values, raw) = header.sections()?;
    let tensors = place(at, &values, raw, len - header.left, len)?;
    Ok((version, values, tensors))
}

/// A tensor's line in the table, before its position is known.
struct RawInfo {
    name: String,
    shape: Vec<usize>,
    ty: u32,
    offset: u64,
}

/// Turns relative offsets into places within the file.
fn place(
    at: &str,
    values: &BTreeMap<String, Value>,
    raw: Vec<RawInfo>,
    header_end: u64,
    len: u64,
) -> Result<Vec<TensorInfo>> {
    let alignment = match values.get("general.alignment") {
        None => 32,
        Some(v) => {
            v.as_uint().filter(|a| a.is_power_of_two() && *a <= 1 << 20).ok_or_else(|| {
                Error::input(at, "key general.alignment: expected a power of two up to 1048576")
            })?
        }
    };
    // `header_end` is at most the file's length, far from wrapping around.
    let start = header_end.next_multiple_of(alignment);
    let mut tensors = Vec::with_capacity(raw.len());
    for info in raw {
        let bad = |what: String| Error::input(at, format!("tensor {}: {what}", info.name));
        let ty = GgmlType::from_id(info.ty).map_err(|what| {
            let known: Vec<String> = GgmlType::all().map(GgmlType::name).collect();
            bad(format!("stored as {what}")).hint(format!("readable: {}", known.join(", ")))
        })?;
        let elements = info.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let elements = elements.ok_or_else(|| bad(format!("shape {:?} is absurd", info.shape)))?;
        let row = info.shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(ty.block_elements()) {
            let n = ty.block_elements();
            return Err(bad(format!("rows of {row} values do not fill {ty:?} blocks of {n}")));
        }
        let bytes = ty.bytes_for(elements).ok_or_else(|| bad("absurd size".into()))? as u64;
        if !info.offset.is_multiple_of(alignment) {
            return Err(bad(format!("offset {} is not a multiple of {alignment}", info.offset)));
        }
        let offset = start.checked_add(info.offset);
        let end = offset.and_then(|offset| offset.checked_add(bytes));
        let (Some(offset), true) = (offset, end.is_some_and(|end| end <= len)) else {
            return Err(bad(format!(
                "{bytes} bytes at {start} + {} reach past the end of the file ({len} bytes)",
                info.offset
            ))
            .hint("the download may have been cut short; fetch it again"));
        };
        tensors.push(TensorInfo { name: info.name, shape: info.shape, ty, offset, bytes });
    }
    Ok(tensors)
}

/// The header, consumed front to back.
struct Header<'a, R> {
    input: R,
    at: &'a str,
    left: u64,
}

/// Smallest number of bytes a tensor's line, a key with its value and a text can take.
const MIN_INFO: u64 = 8 + 4 + 4 + 8;
const MIN_PAIR: u64 = 8 + 4 + 1;
const MIN_TEXT: u64 = 8;
/// Smallest inner array: type and length.
const MIN_ARRAY: u64 = 4 + 8;
/// Arrays of arrays deeper than this are not a model's metadata.
const MAX_DEPTH: usize = 4;

impl<R: Read> Header<'_, R> {
    fn sections(&mut self) -> Result<(u32, BTreeMap<String, Value>, Vec<RawInfo>)> {
        let magic: [u8; 4] = self.bytes("magic")?;
        if &magic != b"GGUF" {
            return Err(self.bad(format!("not a GGUF file: it begins with {magic:02x?}")));
        }
        let version = u32::from_le_bytes(self.bytes("version")?);
        match version {
            2 | 3 => {}
            _ if matches!(version.swap_bytes(), 2 | 3) => {
                return Err(self.bad("big-endian GGUF is not supported"));
            }
            _ => return Err(self.bad(format!("GGUF version {version}: expected 2 or 3"))),
        }
        let n_tensors = self.length("tensors", MIN_INFO)?;
        let n_pairs = self.length("keys", MIN_PAIR)?;
        let mut values = BTreeMap::new();
        for i in 0..n_pairs {
            let key = self.text(&format!("key {i}"))?;
            let value = self.value(&key)?;
            if values.contains_key(&key) {
                return Err(self.bad(format!("key {key} appears twice")));
            }
            values.insert(key, value);
        }
        let mut tensors = Vec::with_capacity(n_tensors.min(1 << 12));
        for i in 0..n_tensors {
            tensors.push(self.tensor(i)?);
        }
        Ok((version, values, tensors))
    }

    fn tensor(&mut self, i: usize) -> Result<RawInfo> {
        let name = self.text(&format!("tensor {i}"))?;
        let n_dims = u32::from_le_bytes(self.bytes(&name)?);
        if n_dims > 4 {
            return Err(self.bad(format!("tensor {name}: {n_dims} dimensions, expected up to 4")));
        }
        let mut shape = Vec::with_capacity(n_dims as usize);
        for _ in 0..n_dims {
            let dim = u64::from_le_bytes(self.bytes(&name)?);
            let dim = usize::try_from(dim)
                .map_err(|_| self.bad(format!("tensor {name}: dimension {dim} is absurd")))?;
            shape.push(dim);
        }
        // The file lists the innermost dimension first.
        shape.reverse();
        let ty = u32::from_le_bytes(self.bytes(&name)?);
        let offset = u64::from_le_bytes(self.bytes(&name)?);
        Ok(RawInfo { name, shape, ty, offset })
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        Ok(match u32::from_le_bytes(self.bytes(key)?) {
            0 => Value::U8(u8::from_le_bytes(self.bytes(key)?)),
            1 => Value::I8(i8::from_le_bytes(self.bytes(key)?)),
            2 => Value::U16(u16::from_le_bytes(self.bytes(key)?)),
            3 => Value::I16(i16::from_le_bytes(self.bytes(key)?)),
            4 => Value::U32(u32::from_le_bytes(self.bytes(key)?)),
            5 => Value::I32(i32::from_le_bytes(self.bytes(key)?)),
            6 => Value::F32(f32::from_le_bytes(self.bytes(key)?)),
            7 => Value::Bool(self.bytes::<1>(key)? != [0]),
            8 => Value::String(self.text(key)?),
            9 => Value::Array(self.array(key, 0)?),
            10 => Value::U64(u64::from_le_bytes(self.bytes(key)?)),
            11 => Value::I64(i64::from_le_bytes(self.bytes(key)?)),
            12 => Value::F64(f64::from_le_bytes(self.bytes(key)?)),
            ty => return Err(self.bad(format!("key {key}: value type {ty} is unknown"))),
        })
    }

    fn array(&mut self, key: &str, depth: usize) -> Result<Array> {
        if depth >= MAX_DEPTH {
            return Err(self.bad(format!("key {key}: arrays nested more than {MAX_DEPTH} deep")));
        }
        Ok(match u32::from_le_bytes(self.bytes(key)?) {
            0 => Array::U8(self.numbers(key, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(key, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(key, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(key, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(key, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(key, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(key, f32::from_le_bytes)?),
            7 => Array::Bool(self.numbers(key, |b: [u8; 1]| b != [0])?),
            8 => {
                let n = self.length(key, MIN_TEXT)?;
                Array::String((0..n).map(|_| self.text(key)).collect::<Result<_>>()?)
            }
            9 => {
                let n = self.length(key, MIN_ARRAY)?;
                Array::Array((0..n).map(|_| self.array(key, depth + 1)).collect::<Result<_>>()?)
            }
            10 => Array::U64(self.numbers(key, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(key, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(key, f64::from_le_bytes)?),
            ty => return Err(self.bad(format!("key {key}: element type {ty} is unknown"))),
        })
    }

    fn numbers<T, const N: usize>(&mut self, key: &str, one: fn([u8; N]) -> T) -> Result<Vec<T>> {
        let n = self.length(key, N as u64)?;
        let bytes = self.block(key, n * N)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|b| one(*b)).collect())
    }

    fn text(&mut self, key: &str) -> Result<String> {
        let n = self.length(key, 1)?;
        String::from_utf8(self.block(key, n)?)
            .map_err(|_| self.bad(format!("{key}: a text is not valid UTF-8")))
    }

    /// A count of things of at least `each` bytes: refused when the file cannot hold them.
    fn length(&mut self, what: &str, each: u64) -> Result<usize> {
        let n = u64::from_le_bytes(self.bytes(what)?);
        if n > self.left / each {
            let left = self.left;
            return Err(self.bad(format!("{what}: length {n} but only {left} bytes are left")));
        }
        Ok(n as usize)
    }

    fn block(&mut self, what: &str, n: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; n];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, what: &str, bytes: &mut [u8]) -> Result<()> {
        let n = bytes.len() as u64;
        if n > self.left {
            return Err(self
                .bad(format!("the header ends within {what}"))
                .hint("the download may have been cut short; fetch it again"));
        }
        self.left -= n;
        self.input.read_exact(bytes).map_err(|e| Error::io(self.at, e))
    }

    fn bad(&self, what: impl Into<String>) -> Error {
        Error::input(self.at, what)
    }
}
