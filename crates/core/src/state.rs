//! Anything keyed by parameter name: weights, deltas, masks, optimizer state.

use std::{collections::BTreeMap, path::Path};

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{Error, Result, io};

/// Tensors by name, in name order.
#[derive(Clone, Debug, Default)]
pub struct StateDict {
    tensors: BTreeMap<String, Tensor>,
}

impl StateDict {
    /// Adds or replaces a tensor.
    pub fn insert(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.insert(name.into(), tensor);
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Removes and returns the tensor called `name`.
    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.tensors.remove(name)
    }

    /// Names and tensors in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The file's bytes, f32 (or u32, for positions) with `metadata` in the header; the same content gives the
    /// same bytes.
    pub fn to_safetensors(&self, metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
        let mut data = Vec::with_capacity(self.len());
        for (name, tensor) in &self.tensors {
            let flat = tensor.flatten_all()?;
            let (dtype, bytes): (_, Vec<u8>) = match tensor.dtype() {
                DType::U32 => {
                    let flat = flat.to_vec1::<u32>()?;
                    (Dtype::U32, flat.iter().flat_map(|x| x.to_le_bytes()).collect())
                }
                _ => {
                    let flat = flat.to_dtype(DType::F32)?.to_vec1::<f32>()?;
                    (Dtype::F32, flat.iter().flat_map(|x| x.to_le_bytes()).collect())
                }
            };
            data.push((name.as_str(), dtype, tensor.dims().to_vec(), bytes));
        }
        let views = data.iter().map(|(name, dtype, dims, bytes)| {
            TensorView::new(*dtype, dims.clone(), bytes).map(|view| (*name, view))
        });
        let views: Vec<_> = views
            .collect::<Result<_, _>>()
            .map_err(|e| Error::failed("safetensors", e.to_string()))?;
        let metadata = (!metadata.is_empty())
            .then(|| metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect());
        safetensors::serialize(views, metadata)
            .map_err(|e| Error::failed("safetensors", e.to_string()))
    }

    /// Writes a safetensors file atomically.
    pub fn save(&self, path: &Path, metadata: &[(&str, &str)]) -> Result<()> {
        io::write_bytes(path, &self.to_safetensors(metadata)?)
    }

    /// Reads a safetensors file of f32, f16, bf16 or integer tensors; floats become f32.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let at = path.display().to_string();
        let file = SafeTensors::deserialize(&bytes).map_err(|e| {
            Error::input(&at, format!("not a readable safetensors file: {e}"))
                .hint("the download may have been cut short; fetch it again")
        })?;
        let mut state = StateDict::default();
        for (name, view) in file.tensors() {
            let dtype = match view.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                Dtype::F64 => DType::F64,
                Dtype::I64 => DType::I64,
                Dtype::I32 => DType::I32,
                Dtype::U32 => DType::U32,
                Dtype::U8 => DType::U8,
                other => {
                    let what = format!("tensor {name} has unsupported type {other:?}");
                    return Err(Error::input(&at, what));
                }
            };
            let raw = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)?;
            let tensor = if dtype.is_float() { raw.to_dtype(DType::F32)? } else { raw };
            state.insert(name, tensor);
        }
        Ok(state)
    }
}

impl FromIterator<(String, Tensor)> for StateDict {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(items: I) -> Self {
        StateDict { tensors: items.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn save_and_load_are_bit_equal_and_stable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.safetensors");
        let t = Tensor::new(&[[1.5f32, -0.0], [f32::MIN_POSITIVE, 3.0]], &Device::Cpu).unwrap();
        let state: StateDict =
            [("b".to_string(), t.clone()), ("a".to_string(), t)].into_iter().collect();
        state.save(&path, &[("format", "pt")]).unwrap();
        let back = StateDict::load(&path).unwrap();
        let bits = |s: &StateDict| -> Vec<u32> {
            s.iter()
                .flat_map(|(_, t)| t.flatten_all().unwrap().to_vec1::<f32>().unwrap())
                .map(f32::to_bits)
                .collect()
        };
        assert_eq!(bits(&state), bits(&back));
        let again = state.to_safetensors(&[("format", "pt")]).unwrap();
        assert_eq!(again, std::fs::read(&path).unwrap());
    }

    #[test]
    fn a_cut_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.safetensors");
        std::fs::write(&path, [255u8; 20]).unwrap();
        let err = StateDict::load(&path).unwrap_err();
        assert!(err.to_string().contains("cut.safetensors"), "{err}");
        assert_eq!(err.exit_code(), 2);
    }
}
