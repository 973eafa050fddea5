//! RegMean (Jin et al. 2022): the linear map whose outputs come nearest to those of all models, each on
//! its own inputs.
//!
//! `W = (Σ wᵢ · Wᵢ · Gᵢ) · (Σ wᵢ · Gᵢ)⁻¹` with `Gᵢ = XᵢᵀXᵢ` of the map's inputs in the i-th model, whose
//! entries off the diagonal are multiplied by `scale`. Tensors without such a matrix (tables, norms,
//! biases) become the mean by `wᵢ`. In f64, by Cholesky's decomposition. **Departures**: none.

use luthier_core::{Error, Result};
use rayon::prelude::*;

use crate::{
    combine::Combine,
    method::Given,
    operands::{As, Put, Work},
};

/// `merge_method: regmean`.
#[derive(Clone, Debug, PartialEq)]
pub struct RegMean {
    /// One for each model.
    pub weight: Vec<f64>,
    /// Of entries off the diagonal.
    pub scale: f64,
    /// Whether there are matrices of inner products for this tensor.
    pub known: bool,
}

impl RegMean {
    pub(crate) fn of(given: &Given) -> Result<Box<dyn Combine>> {
        let weight = given.within("weight", 0.0..=f64::MAX)?;
        if weight.iter().sum::<f64>() == 0.0 {
            return Err(Error::input(given.at("weight"), "the weights add up to 0"));
        }
        let scale = given.number_within("scale", 0.0..=1.0)?;
        Ok(Box::new(RegMean { weight, scale, known: given.all_or_none_beside("gram")? }))
    }
}

impl Combine for RegMean {
    fn combine(&self, work: &Work<'_>, put: Put<'_>) -> Result<()> {
        let k = self.weight.len();
        if !self.known || work.is_vector() {
            let total: f64 = self.weight.iter().sum();
            let shares: Vec<f64> = self.weight.iter().map(|w| w / total).collect();
            return work.write_sum(As::Values, &shares, put);
        }
        let (len, i) = (work.len(), work.row());
        let (mut sum_ii, mut right) = (vec![0f64; i * i], vec![0f64; len]);
        let (mut w_oi, mut g_ii) = (vec![0f32; len], vec![0f32; i * i]);
        for (m, weight) in self.weight.iter().enumerate() {
            work.whole(m, &mut w_oi)?;
            work.whole(k + m, &mut g_ii)?;
            for (at, g) in g_ii.iter_mut().enumerate() {
                let apart = if at / i == at % i { 1.0 } else { self.scale };
                *g = (f64::from(*g) * apart * weight) as f32;
            }
            sum_ii.iter_mut().zip(&g_ii).for_each(|(s, g)| *s += f64::from(*g));
            right.par_chunks_mut(i).zip(w_oi.par_chunks(i)).for_each(|(to, w)| {
                for (w, g) in w.iter().zip(g_ii.chunks(i)) {
                    to.iter_mut().zip(g).for_each(|(y, g)| *y += f64::from(*w) * f64::from(*g));
                }
            });
        }
        let lower = cholesky(sum_ii, i)?;
        right.par_chunks_mut(i).for_each(|row| solve(&lower, row));
        let out: Vec<f32> = right.iter().map(|y| *y as f32).collect();
        put(0, &out)
    }
}

/// The lower triangle `L` with `L · Lᵀ` the given matrix, in its place.
fn cholesky(mut a: Vec<f64>, n: usize) -> Result<Vec<f64>> {
    for j in 0..n {
        let (above, below) = a.split_at_mut((j + 1) * n);
        let row = &mut above[j * n..];
        let pivot = row[j] - square(&row[..j]);
        // Less than rounding leaves of the entry.
        if pivot <= row[j] * 1e-12 || !pivot.is_finite() {
            let what = format!("the inner products of its inputs leave input {j} without a say");
            return Err(Error::failed("regmean", what)
                .hint("lower `scale`, or measure the inputs on more text"));
        }
        row[j] = pivot.sqrt();
        let row = &above[j * n..];
        below.par_chunks_mut(n).for_each(|other| {
            let dot: f64 = other[..j].iter().zip(&row[..j]).map(|(x, y)| x * y).sum();
            other[j] = (other[j] - dot) / row[j];
        });
    }
    Ok(a)
}

fn square(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum()
}

/// The row `x` with `x · L · Lᵀ` the given one, in its place.
fn solve(lower: &[f64], row: &mut [f64]) {
    let n = row.len();
    for i in 0..n {
        let dot: f64 = lower[i * n..][..i].iter().zip(&row[..i]).map(|(l, y)| l * y).sum();
        row[i] = (row[i] - dot) / lower[i * n + i];
    }
    for i in (0..n).rev() {
        let x = row[i] / lower[i * n + i];
        row[i] = x;
        row[..i].iter_mut().zip(&lower[i * n..]).for_each(|(y, l)| *y -= l * x);
    }
}
