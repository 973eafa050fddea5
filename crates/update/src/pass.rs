//! One pass over a variable's memory: gradient norm, then parameter and state in place.

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Storage, Tensor, Var};
use luthier_core::{Error, Result};
use rayon::prelude::*;

use crate::{Move, Optimizer};

/// Elements per task: large enough to outweigh a task, small enough to share a matrix. The norm's
/// order of summation follows from it, so it is part of what makes a run reproducible.
const CHUNK: usize = 1 << 14;

/// Reads the elements of a contiguous f32 tensor where they lie.
fn with_slice<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> candle_core::Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(data)) = &*storage else {
        candle_core::bail!("expected f32 on the CPU, got {:?}", tensor.dtype())
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected contiguous memory")
    };
    Ok(read(&data[start..end]))
}

/// The gradient as the pass wants it: the variable's shape, f32, contiguous.
pub(crate) fn readable(name: &str, var: &Var, grad: Tensor) -> Result<Tensor> {
    if grad.dims() != var.dims() {
        let what = format!("gradient has shape {:?}, expected {:?}", grad.dims(), var.dims());
        return Err(Error::failed(name, what));
    }
    let grad = if grad.dtype() == DType::F32 { grad } else { grad.to_dtype(DType::F32)? };
    Ok(grad.contiguous()?)
}

/// Sum of squares in f64. The order is fixed by the tensor alone: eight running sums within a chunk,
/// chunks from first to last.
pub(crate) fn sum_of_squares(grad: &Tensor) -> Result<f64> {
    let of_chunk = |chunk: &[f32]| -> f64 {
        let mut lanes = [0f64; 8];
        let whole = chunk.chunks_exact(8);
        let rest = whole.remainder();
        for eight in whole {
            for (lane, x) in lanes.iter_mut().zip(eight) {
                *lane += f64::from(*x) * f64::from(*x);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(*x) * f64::from(*x);
        }
        lanes.iter().sum()
    };
    let total = with_slice(grad, |data| {
        let parts: Vec<f64> = data.par_chunks(CHUNK).map(of_chunk).collect();
        parts.iter().sum()
    })?;
    Ok(total)
}

/// An optimizer's step on one variable.
pub(crate) struct Pass<'a> {
    pub optimizer: &'a dyn Optimizer,
    pub now: Move,
    pub grad: &'a Tensor,
    /// In a cell because candle hands the operation over by shared reference.
    pub state: RefCell<&'a mut [Vec<f32>]>,
}

impl InplaceOp1 for Pass<'_> {
    fn name(&self) -> &'static str {
        "optimizer step"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(data) = storage else { candle_core::bail!("expected an f32 variable") };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("expected a contiguous variable")
        };
        let param = &mut data[start..end];
        let (optimizer, now) = (self.optimizer, self.now);
        let mut state = self.state.borrow_mut();
        with_slice(self.grad, |grad| {
            let mut buffers: Vec<_> = state.iter_mut().map(|s| s.chunks_mut(CHUNK)).collect();
            let chunks: Vec<_> = param
                .chunks_mut(CHUNK)
                .zip(grad.chunks(CHUNK))
                .map(|(param, grad)| {
                    let parts: Vec<&mut [f32]> =
                        buffers.iter_mut().filter_map(|b| b.next()).collect();
                    (param, grad, parts)
                })
                .collect();
            chunks.into_par_iter().for_each(|(param, grad, mut parts)| {
                optimizer.apply(&now, param, grad, &mut parts);
            });
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use luthier_core::Seed;

    use super::*;

    #[test]
    fn the_norm_does_not_depend_on_threads() {
        let mut rng = Seed(1).rng();
        let data: Vec<f32> = (0..3 * CHUNK + 5).map(|_| rng.normal() as f32).collect();
        let naive: f64 = data.iter().map(|x| f64::from(*x).powi(2)).sum();
        let grad = Tensor::from_vec(data, 3 * CHUNK + 5, &Device::Cpu).unwrap();
        let of = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| sum_of_squares(&grad).unwrap())
        };
        let one = of(1);
        assert_eq!(one.to_bits(), of(3).to_bits());
        assert!((one - naive).abs() < 1e-9 * naive);
    }

    #[test]
    fn a_view_is_read_where_it_lies() {
        let t = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        assert_eq!(sum_of_squares(&t.narrow(0, 1, 1).unwrap()).unwrap(), 25.0);
        assert!(sum_of_squares(&t.t().unwrap()).is_err());
    }
}
