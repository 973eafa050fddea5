//! Borrowing a tensor's numbers, and making tensors from vectors.

use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor, bail};

/// The numbers of a contiguous f32 CPU storage.
pub fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(data) = storage else { bail!("expected f32 on the CPU") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("expected a contiguous tensor"),
    }
}

/// Calls `f` with the numbers of `t`, copying only if it is not contiguous.
pub fn with<R>(t: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let t = t.contiguous()?;
    let (storage, layout) = t.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => Ok(f(slice(cpu, layout)?)),
        _ => bail!("expected a tensor on the CPU"),
    }
}

/// A tensor that owns `data`.
pub fn from_vec(data: Vec<f32>, dims: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, dims.into(), &Device::Cpu)
}
