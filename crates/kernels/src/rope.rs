//! Rotary position embedding in the "rotate half" convention of Hugging Face's Llama.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::{simd::vectorised, tensor};

/// The angles of one model: inverse frequencies and the factor on cosine and sine.
#[derive(Clone, Debug)]
pub struct Rotation {
    inv_freq: Arc<Vec<f32>>,
    factor: f32,
}

impl Rotation {
    /// `inv_freq` has half the head width; `factor` is 1 except for scaled variants (YaRN).
    pub fn new(inv_freq: Vec<f32>, factor: f32) -> Self {
        Rotation { inv_freq: Arc::new(inv_freq), factor }
    }

    /// Cosines and sines of every token, `(n, 2, e/2)` flat, computed once per pass.
    pub fn table(&self, positions_n: &[u32]) -> Arc<Vec<f32>> {
        let half = self.inv_freq.len();
        let mut table = vec![0f32; positions_n.len() * 2 * half];
        table.par_chunks_mut((2 * half).max(1)).zip(positions_n).for_each(|(row, position)| {
            let (cos, sin) = row.split_at_mut(half);
            for (i, inv) in self.inv_freq.iter().enumerate() {
                let (s, c) = (*position as f32 * inv).sin_cos();
                cos[i] = c * self.factor;
                sin[i] = s * self.factor;
            }
        });
        Arc::new(table)
    }
}

vectorised! {
    fn turn(x: &[f32], cos: &[f32], sin: &[f32], sign: f32, out: &mut [f32]) {
        let half = cos.len();
        let (x1, x2) = x.split_at(half);
        let (o1, o2) = out.split_at_mut(half);
        for i in 0..half {
            let s = sign * sin[i];
            o1[i] = x1[i] * cos[i] - x2[i] * s;
            o2[i] = x2[i] * cos[i] + x1[i] * s;
        }
    }
}

struct Rotate {
    table: Arc<Vec<f32>>,
    sign: f32,
    e: usize,
}

impl Rotate {
    fn run(&self, x: &[f32], n: usize) -> Vec<f32> {
        let mut out = vec![0f32; x.len()];
        let (row, two_half) = (x.len() / n.max(1), self.table.len() / n.max(1));
        out.par_chunks_mut(row.max(1))
            .zip(x.par_chunks(row.max(1)))
            .zip(self.table.par_chunks(two_half.max(1)))
            .for_each(|((o, x), angles)| {
                let (cos, sin) = angles.split_at(two_half / 2);
                for (o, x) in o.chunks_exact_mut(self.e).zip(x.chunks_exact(self.e)) {
                    turn(x, cos, sin, self.sign, o);
                }
            });
        out
    }
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let n = l.dims()[0];
        Ok((CpuStorage::F32(self.run(tensor::slice(s, l)?, n)), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        // The inverse of a rotation is its transpose; a scale factor on cos and sin carries over.
        let back = Rotate { table: self.table.clone(), sign: -self.sign, e: self.e };
        let dx = tensor::with(dy, |dy| back.run(dy, x.dims()[0]))?;
        Ok(Some(tensor::from_vec(dx, x.shape().clone())?))
    }
}

/// Rotates every head of `x` `(n, heads·e)` by the angles of its token (Su et al. 2021).
pub fn rotate(x: &Tensor, table: &Arc<Vec<f32>>, e: usize) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Rotate { table: table.clone(), sign: 1.0, e })
}

/// [`rotate`] in plain tensor operations.
pub fn naive_rotate(x: &Tensor, table: &Arc<Vec<f32>>, e: usize) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let angles = tensor::from_vec(table.to_vec(), (n, 1, 2, e / 2))?;
    let cos = angles.narrow(2, 0, 1)?.squeeze(2)?;
    let sin = angles.narrow(2, 1, 1)?.squeeze(2)?;
    let x = x.reshape((n, width / e, e))?;
    let (x1, x2) = (x.narrow(2, 0, e / 2)?, x.narrow(2, e / 2, e / 2)?);
    let first = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let second = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 2)?.reshape((n, width))
}
