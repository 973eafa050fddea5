//! Rotary position embedding in the "rotate half" convention of Hugging Face's Llama.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::{pool::CHUNK, simd::vectorised, tensor, threads};

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

    /// Inverse frequencies and factor.
    pub fn parts(&self) -> (&[f32], f32) {
        (&self.inv_freq, self.factor)
    }

    /// Cosines and sines of every token, `(n, 2, e/2)` flat, computed once per pass.
    pub fn table(&self, positions_n: &[u32]) -> Arc<Vec<f32>> {
        let half = self.inv_freq.len();
        let mut table = vec![0f32; positions_n.len() * 2 * half];
        let tokens = (CHUNK / (2 * half).max(1)).max(1);
        let tasks = table.chunks_mut((tokens * 2 * half).max(1)).zip(positions_n.chunks(tokens));
        threads::for_each(tasks.collect(), |(rows, positions): (&mut [f32], &[u32])| {
            for (row, position) in rows.chunks_exact_mut(2 * half).zip(positions) {
                let (cos, sin) = row.split_at_mut(half);
                for (i, inv) in self.inv_freq.iter().enumerate() {
                    let (s, c) = (*position as f32 * inv).sin_cos();
                    cos[i] = c * self.factor;
                    sin[i] = s * self.factor;
                }
            }
        });
        Arc::new(table)
    }
}

vectorised! {
    fn turn(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        let (x1, x2) = x.split_at_mut(half);
        let (x2, sin) = (&mut x2[..half], &sin[..half]);
        for i in 0..half {
            let (a, b, s) = (x1[i], x2[i], sign * sin[i]);
            x1[i] = a * cos[i] - b * s;
            x2[i] = b * cos[i] + a * s;
        }
    }
}

/// Rotates every head of `x` `(n, heads·e)` in place by the angles of its token, or back.
///
/// The inverse of a rotation is its transpose, so the way back is the backward pass, also where
/// cosine and sine carry a factor.
pub fn turn_heads(x: &mut [f32], table: &[f32], e: usize, back: bool) {
    let (n, sign) = (table.len() / e.max(1), if back { -1.0 } else { 1.0 });
    let width = x.len() / n.max(1);
    let tokens = (CHUNK / width.max(1)).max(1);
    let tasks = x.chunks_mut((tokens * width).max(1)).zip(table.chunks((tokens * e).max(1)));
    threads::for_each(tasks.collect(), |(x, angles): (&mut [f32], &[f32])| {
        for (x, angles) in x.chunks_exact_mut(width).zip(angles.chunks_exact(e)) {
            let (cos, sin) = angles.split_at(e / 2);
            x.chunks_exact_mut(e).for_each(|x| turn(x, cos, sin, sign));
        }
    });
}

struct Rotate {
    table: Arc<Vec<f32>>,
    e: usize,
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut x = tensor::slice(s, l)?.to_vec();
        turn_heads(&mut x, &self.table, self.e, false);
        Ok((CpuStorage::F32(x), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = tensor::with(dy, <[f32]>::to_vec)?;
        turn_heads(&mut dx, &self.table, self.e, true);
        Ok(Some(tensor::from_vec(dx, x.shape().clone())?))
    }
}

/// Rotates every head of `x` `(n, heads·e)` by the angles of its token (Su et al. 2021).
pub fn rotate(x: &Tensor, table: &Arc<Vec<f32>>, e: usize) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Rotate { table: table.clone(), e })
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
