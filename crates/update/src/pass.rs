//! Passes over a variable's memory: gradient norm, elementwise rules, numbers in place.

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Storage, Tensor, Var};
use luthier_core::{Error, Result};
use rayon::prelude::*;

use crate::optimizer::Data;

/// Elements per task: large enough to outweigh a task, small enough to share a matrix. The norm's
/// order of summation follows from it, so it is part of what makes a run reproducible.
pub(crate) const CHUNK: usize = 1 << 14;

/// Reads the elements of a contiguous f32 tensor where they lie.
pub(crate) fn with_slice<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(data)) = &*storage else {
        let what = format!("expected f32 on the CPU, got {:?}", tensor.dtype());
        return Err(Error::failed("update", what));
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::failed("update", "expected contiguous memory"));
    };
    Ok(read(&data[start..end]))
}

/// The gradient as the passes want it: of shape `dims`, f32, contiguous.
pub(crate) fn readable(name: &str, dims: &[usize], grad: Tensor) -> Result<Tensor> {
    if grad.dims() != dims {
        let what = format!("gradient has shape {:?}, expected {dims:?}", grad.dims());
        return Err(Error::failed(name, what));
    }
    let grad = if grad.dtype() == DType::F32 { grad } else { grad.to_dtype(DType::F32)? };
    Ok(grad.contiguous()?)
}

/// Sum of squares in f64. The order is fixed by the tensor alone: eight running sums within a chunk,
/// chunks from first to last.
pub(crate) fn sum_of_squares(grad: &Tensor) -> Result<f64> {
    with_slice(grad, squares)
}

/// [`sum_of_squares`] of plain numbers.
pub(crate) fn squares(data: &[f32]) -> f64 {
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
    let parts: Vec<f64> = data.par_chunks(CHUNK).map(of_chunk).collect();
    parts.iter().sum()
}

/// Runs an elementwise `rule` on chunks of a variable, its gradient and its buffers, which hold one
/// number per element. Being elementwise is part of the contract: chunks come in any order, from
/// any thread.
pub(crate) fn elementwise(
    param: &mut [f32],
    grad: &[f32],
    state: &mut [Data],
    rule: impl Fn(&mut [f32], &[f32], &mut [&mut [f32]]) + Sync,
) {
    let mut buffers: Vec<_> = state.iter_mut().map(|s| s.numbers().chunks_mut(CHUNK)).collect();
    let chunks: Vec<_> = param
        .chunks_mut(CHUNK)
        .zip(grad.chunks(CHUNK))
        .map(|(param, grad)| {
            let parts: Vec<&mut [f32]> = buffers.iter_mut().filter_map(Iterator::next).collect();
            (param, grad, parts)
        })
        .collect();
    chunks.into_par_iter().for_each(|(param, grad, mut parts)| rule(param, grad, &mut parts));
}

/// Hands a variable's numbers to `change`, where they lie.
pub(crate) fn in_place<T>(var: &Var, change: impl FnOnce(&mut [f32]) -> Result<T>) -> Result<T> {
    let visit = Visit(RefCell::new((Some(change), None)));
    var.inplace_op1(&visit)?;
    let (_, outcome) = visit.0.into_inner();
    outcome.expect("candle has run the operation")
}

/// A closure on its way through candle, and what came of it; in a cell because candle hands an
/// operation over by shared reference.
struct Visit<F, T>(RefCell<(Option<F>, Option<Result<T>>)>);

impl<F: FnOnce(&mut [f32]) -> Result<T>, T> InplaceOp1 for Visit<F, T> {
    fn name(&self) -> &'static str {
        "update in place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(data) = storage else { candle_core::bail!("expected an f32 variable") };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("expected a contiguous variable")
        };
        let change = self.0.borrow_mut().0.take();
        let outcome = change.map(|change| change(&mut data[start..end]));
        self.0.borrow_mut().1 = outcome;
        Ok(())
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

    #[test]
    fn a_variable_changes_in_place_and_an_error_comes_through() {
        let var = Var::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
        let sum = in_place(&var, |x| {
            x[1] = 7.0;
            Ok(x.iter().sum::<f32>())
        });
        assert_eq!(sum.unwrap(), 11.0);
        assert_eq!(var.to_vec1::<f32>().unwrap(), [1.0, 7.0, 3.0]);
        let refused = in_place(&var, |_| Err::<(), _>(Error::failed("w", "no")));
        assert!(refused.unwrap_err().to_string().contains("w: no"));
    }

    #[test]
    fn chunks_stay_together() {
        let n = 2 * CHUNK + 3;
        let mut param = vec![1f32; n];
        let grad: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let mut state = [Data::F32(vec![0.5; n]), Data::F32(grad.clone())];
        elementwise(&mut param, &grad, &mut state, |p, g, state| {
            let [a, b] = state else { unreachable!("two buffers") };
            for (i, p) in p.iter_mut().enumerate() {
                *p += g[i] - b[i];
                a[i] += g[i];
            }
        });
        assert!(param.iter().all(|p| *p == 1.0));
        let want: Vec<f32> = grad.iter().map(|g| g + 0.5).collect();
        assert_eq!(state[0], Data::F32(want));
    }
}
