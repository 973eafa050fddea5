//! The diagonal of the empirical Fisher information (as in EWC, Kirkpatrick et al. 2017): how much
//! the likelihood of the data hangs on each parameter.
//!
//! `F_i = mean over rows of (∂ log p(row) / ∂θ_i)²`, the log-likelihood summed over the row's trained
//! tokens. The square is of one row's gradient: the gradient of a batch, squared, is another number.
//! Gradients are the caller's business; their sign does not matter. **Departures**: none.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use luthier_core::{Error, Result, StateDict};
use rayon::prelude::*;

/// Numbers that one task adds up.
const PART: usize = 1 << 16;

/// Squared gradients, summed up row by row.
#[derive(Clone, Debug, Default)]
pub struct Fisher {
    sums: BTreeMap<String, Sum>,
    rows: usize,
}

#[derive(Clone, Debug)]
struct Sum {
    dims: Vec<usize>,
    squares: Vec<f32>,
}

impl Fisher {
    /// Adds one row: the gradient of the sum of its tokens' log-likelihoods, by parameter name. Every
    /// row has the same parameters.
    pub fn add(&mut self, gradients: &StateDict) -> Result<()> {
        if self.rows > 0 && gradients.len() != self.sums.len() {
            let what = format!(
                "expected gradients of {} parameters, got {}",
                self.sums.len(),
                gradients.len()
            );
            return Err(Error::failed("fisher", what));
        }
        let mut squared = Vec::with_capacity(gradients.len());
        // All are checked before anything is added: a row counts whole or not at all.
        for (name, gradient) in gradients.iter() {
            match self.sums.get(name) {
                Some(sum) if sum.dims != gradient.dims() => {
                    let what = format!(
                        "expected a gradient of shape {:?}, got {:?}",
                        sum.dims,
                        gradient.dims()
                    );
                    return Err(Error::failed(name, what));
                }
                None if self.rows > 0 => {
                    return Err(Error::failed(name, "has a gradient now and had none before"));
                }
                _ => {}
            }
            let values: Vec<f32> = gradient.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            if values.par_iter().any(|g| !g.is_finite()) {
                return Err(Error::failed(name, "its gradient is not finite"));
            }
            squared.push((name, gradient.dims(), values));
        }
        for (name, dims, values) in squared {
            let sum = self
                .sums
                .entry(name.to_string())
                .or_insert_with(|| Sum { dims: dims.to_vec(), squares: vec![0.0; values.len()] });
            let parts = sum.squares.par_chunks_mut(PART).zip(values.par_chunks(PART));
            parts.for_each(|(sums, values)| {
                sums.iter_mut().zip(values).for_each(|(sum, g)| *sum += g * g);
            });
        }
        self.rows += 1;
        Ok(())
    }

    /// Rows added so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The mean over the rows, in the parameters' shapes.
    pub fn finish(self) -> Result<StateDict> {
        if self.rows == 0 {
            return Err(Error::input("fisher", "there is no row to take the mean of"));
        }
        let by = 1.0 / self.rows as f32;
        let mean = |(name, sum): (String, Sum)| {
            let squares: Vec<f32> = sum.squares.into_iter().map(|s| s * by).collect();
            Ok((name, Tensor::from_vec(squares, sum.dims, &Device::Cpu)?))
        };
        self.sums.into_iter().map(mean).collect()
    }
}
