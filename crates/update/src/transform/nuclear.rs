//! The nuclear norm of what learns, so that it stays of low rank (Hu et al. 2025, SaRA).
//!
//! `g ← g + lambda · U Vᵀ ∘ M` with `θ ∘ M = U S Vᵀ`: `M` is the mask and `θ` the current values;
//! directions whose singular value f32 cannot tell from 0 are left out. `U Vᵀ` is taken as
//! `θ (θᵀ θ)^(−½)`, which needs no vectors as long as the matrix.
//! **Departures**: (1) a variable without a mask counts whole.

use std::{borrow::Cow, ops::Range};

use faer::{Accum, Mat, MatRef, Par, linalg::matmul::matmul};
use luthier_core::Result;
use luthier_kernels::svd::{gram, whole};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Need, Place, Shape, Transform, Turn};
use crate::optimizer::check_rate;

/// `[train.update.nuclear]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nuclear {
    /// Strength.
    pub lambda: f64,
    /// How many matrices a step takes.
    pub rank_sample: Sample,
    /// Only matrices whose rows and columns are more than this.
    pub min_dim_rank: usize,
    /// Only matrices of which more entries than this learn.
    pub min_entries: usize,
}

/// How many matrices a step takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sample {
    /// One, drawn anew at every step (as the paper's code).
    #[default]
    One,
    /// Every one (as the paper's formula; a decomposition of each takes its time).
    All,
}

impl Default for Nuclear {
    fn default() -> Self {
        // The paper's strength; the limits are those of its code.
        Nuclear { lambda: 5e-4, rank_sample: Sample::One, min_dim_rank: 64, min_entries: 100 }
    }
}

impl Transform for Nuclear {
    fn check(&self, at: &str) -> Result<Need> {
        check_rate(at, "lambda", self.lambda)?;
        Ok(Need::default())
    }

    fn chosen(&self, now: &Turn, shapes: &[Shape]) -> Vec<bool> {
        let large = |shape: &Shape| match *shape.dims {
            [o, i] => o.min(i) > self.min_dim_rank && shape.learned > self.min_entries,
            _ => false,
        };
        let mut chosen: Vec<bool> = shapes.iter().map(large).collect();
        let found = chosen.iter().filter(|c| **c).count();
        if self.rank_sample == Sample::One && found > 1 {
            let mut left = now.seed.at(now.step).rng().below(found);
            for chosen in chosen.iter_mut().filter(|c| **c) {
                *chosen = left == 0;
                left = left.wrapping_sub(1);
            }
        }
        chosen
    }

    fn apply(&self, _now: &Turn, place: &Place, grad: &mut [f32]) -> Result<()> {
        let [o, i] = *place.dims else { return Ok(()) };
        let lambda = self.lambda as f32;
        let chosen = match place.mask {
            None => Cow::Borrowed(place.values),
            Some(mask) => {
                let mut chosen = vec![0f32; o * i];
                mask.positions()
                    .iter()
                    .for_each(|p| chosen[*p as usize] = place.values[*p as usize]);
                Cow::Owned(chosen)
            }
        };
        let polar = Polar::of(place.name, &chosen, o, i)?;
        // The gradient in pieces of whole rows, chosen entries or all.
        let ends: Vec<usize> = (0..o).step_by(ROWS).map(|row| (row + ROWS).min(o) * i).collect();
        let mut rest = grad;
        let mut pieces = Vec::with_capacity(ends.len());
        let (mut from, mut taken) = (0, 0);
        for end in ends {
            let until = match place.mask {
                None => end,
                Some(mask) => mask.positions().partition_point(|p| (*p as usize) < end),
            };
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(until - taken);
            pieces.push((from..end, taken..until, piece));
            (rest, from, taken) = (after, end, until);
        }
        pieces.into_par_iter().for_each(|(numbers, entries, grad)| {
            let pull = polar.rows(&chosen, numbers.start / i..numbers.end / i);
            let at = |p: usize| lambda * pull[((p - numbers.start) / i, p % i)] as f32;
            match place.mask {
                None => grad.iter_mut().zip(numbers.clone()).for_each(|(g, p)| *g += at(p)),
                Some(mask) => {
                    let entries = &mask.positions()[entries];
                    grad.iter_mut().zip(entries).for_each(|(g, p)| *g += at(*p as usize));
                }
            }
        });
        Ok(())
    }
}

/// Rows that are widened to f64 at a time.
const ROWS: usize = 1024;

/// `U Vᵀ` of a matrix `X`: the smaller of `X (Xᵀ X)^(−½)` and `(X Xᵀ)^(−½) X`, row by row.
struct Polar {
    o: usize,
    i: usize,
    /// The inverse root.
    inverse: Mat<f64>,
}

impl Polar {
    fn of(name: &str, x: &[f32], o: usize, i: usize) -> Result<Self> {
        let n = o.min(i);
        let (squares, vectors) = whole(name, gram(x, o, i).as_ref())?;
        // What rounding to f32 may have made of a singular value of 0.
        let noise = f64::from(f32::EPSILON) * ((o as f64).sqrt() + (i as f64).sqrt());
        let zero = squares.iter().fold(0.0, |a: f64, b| a.max(*b)) * noise * noise;
        let root = |square: f64| if square > zero { 1.0 / square.sqrt() } else { 0.0 };
        let scaled = Mat::from_fn(n, n, |r, c| vectors[(r, c)] * root(squares[c]));
        let (mut inverse, right) = (Mat::<f64>::zeros(n, n), vectors.transpose());
        matmul(inverse.as_mut(), Accum::Replace, scaled.as_ref(), right, 1.0, Par::Seq);
        Ok(Polar { o, i, inverse })
    }

    /// Some rows of it.
    fn rows(&self, x: &[f32], rows: Range<usize>) -> Mat<f64> {
        let (n, inverse) = (rows.len(), self.inverse.as_ref());
        let mut pull = Mat::<f64>::zeros(n, self.i);
        if self.i <= self.o {
            let wide = wide(x[rows.start * self.i..rows.end * self.i].iter());
            let x = MatRef::from_row_major_slice(&wide, n, self.i);
            matmul(pull.as_mut(), Accum::Replace, x, inverse, 1.0, Par::Seq);
        } else {
            let wide = wide(x.iter());
            let x = MatRef::from_row_major_slice(&wide, self.o, self.i);
            let inverse = inverse.subrows(rows.start, n);
            matmul(pull.as_mut(), Accum::Replace, inverse, x, 1.0, Par::Seq);
        }
        pull
    }
}

fn wide<'a>(numbers: impl Iterator<Item = &'a f32>) -> Vec<f64> {
    numbers.map(|x| f64::from(*x)).collect()
}
