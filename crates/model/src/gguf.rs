//! GGUF files, versions 2 and 3: header, keys and tensor table.
//!
//! The header is read front to back. Nothing in it is believed: a count or length is compared with
//! the bytes that are left before anything is allocated for it, so a hostile header costs no more
//! memory than the file has bytes.

mod header;
mod value;

use std::{
    collections::{BTreeMap, HashMap},
    io::BufReader,
    path::Path,
};

use luthier_core::{Error, Result, nearest::suggest};

use crate::{file::DataFile, quant::GgmlType};

/// One value of the key-value section.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array: all elements have one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// A tensor's place in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Name in GGUF's own scheme (`blk.0.attn_q.weight`).
    pub name: String,
    /// Sizes, outermost first: a linear weight is `[out, in]`.
    pub shape: Vec<usize>,
    /// How the values are stored.
    pub ty: GgmlType,
    /// Position of the first byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

impl TensorInfo {
    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// An opened GGUF file.
#[derive(Debug)]
pub struct Gguf {
    file: DataFile,
    version: u32,
    values: BTreeMap<String, Value>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl Gguf {
    /// Reads the header of `path` and checks that every tensor lies within the file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = DataFile::open(path)?;
        let at = path.display().to_string();
        let input = BufReader::with_capacity(1 << 18, file.handle());
        let (version, values, tensors) = header::read(input, &at, file.size())?;
        let mut by_name = HashMap::with_capacity(tensors.len());
        for (i, tensor) in tensors.iter().enumerate() {
            if by_name.insert(tensor.name.clone(), i).is_some() {
                return Err(Error::input(&at, format!("tensor {} appears twice", tensor.name)));
            }
        }
        Ok(Gguf { file, version, values, tensors, by_name })
    }

    /// The file, for reading weights.
    pub(crate) fn file(&self) -> &DataFile {
        &self.file
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All keys and values, in key order.
    pub fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// All tensors in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|i| &self.tensors[*i])
    }

    /// The values of the tensor called `name`, as they lie in the file.
    pub fn load_f32(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.require_tensor(name)?;
        let mut out = vec![0f32; info.elements()];
        self.file.read_f32(info.ty, info.offset, &mut out)?;
        Ok(out)
    }

    /// The stored bytes of the tensor called `name`.
    pub fn load_raw(&self, name: &str) -> Result<Vec<u8>> {
        let info = self.require_tensor(name)?;
        let mut bytes = vec![0u8; info.bytes as usize];
        self.file.read(info.offset, &mut bytes)?;
        Ok(bytes)
    }

    fn require_tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.tensor(name).ok_or_else(|| {
            let names = self.tensors.iter().map(|t| t.name.as_str());
            Error::input(self.at(), format!("tensor {name} is missing")).hint(near(name, names))
        })
    }

    fn at(&self) -> String {
        self.path().display().to_string()
    }

    /// The value of `key` as `pick` sees it: `None` when the key is absent, an error that names
    /// file and key when it has another type.
    pub fn maybe<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        pick: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        pick(value).map(Some).ok_or_else(|| {
            Error::input(self.at(), format!("key {key}: expected {expected}, got {}", value.kind()))
        })
    }

    fn want<T>(&self, key: &str, value: Result<Option<T>>) -> Result<T> {
        value?.ok_or_else(|| {
            let keys = self.values.keys().map(String::as_str);
            Error::input(self.at(), format!("key {key} is missing")).hint(near(key, keys))
        })
    }

    /// A whole number that is not negative, if `key` is present.
    pub fn opt_uint(&self, key: &str) -> Result<Option<u64>> {
        self.maybe(key, "a whole number", Value::as_uint)
    }

    /// A whole number that is not negative.
    pub fn uint(&self, key: &str) -> Result<u64> {
        self.want(key, self.opt_uint(key))
    }

    /// A number, if `key` is present.
    pub fn opt_float(&self, key: &str) -> Result<Option<f64>> {
        self.maybe(key, "a number", Value::as_float)
    }

    /// A number.
    pub fn float(&self, key: &str) -> Result<f64> {
        self.want(key, self.opt_float(key))
    }

    /// True or false, if `key` is present.
    pub fn opt_flag(&self, key: &str) -> Result<Option<bool>> {
        self.maybe(key, "true or false", Value::as_bool)
    }

    /// A text, if `key` is present.
    pub fn opt_text(&self, key: &str) -> Result<Option<&str>> {
        self.maybe(key, "a text", Value::as_text)
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<&str> {
        self.want(key, self.opt_text(key))
    }

    /// A list of texts, if `key` is present.
    pub fn opt_texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.maybe(key, "a list of texts", Value::as_texts)
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<&[String]> {
        self.want(key, self.opt_texts(key))
    }

    /// A list of whole numbers, if `key` is present.
    pub fn opt_ints(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.maybe(key, "a list of whole numbers", Value::as_ints)
    }

    /// A list of numbers, if `key` is present.
    pub fn opt_floats(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.maybe(key, "a list of numbers", Value::as_floats)
    }
}

fn near<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    match suggest(name, known) {
        // A list of hundreds of names helps nobody.
        text if text.starts_with("known:") => "is this the file of another architecture?".into(),
        text => text,
    }
}
