//! What changed: norm, rank and spectrum of every matrix's delta.
//!
//! With singular values `σ` of `Δ` (largest first): `frobenius = √Σσ²`, `relative = ‖Δ‖ / ‖W‖`,
//! `spectral = σ₁`, `stable_rank = Σσ² / σ₁²`, `effective_rank = exp(−Σ p ln p)` with
//! `p = σ / Σσ` (Roy & Vetterli 2007), `rank99` = the fewest `σ²` that hold 99 % of their sum, and
//! `rank` = the number of `σ` that f32 can tell from zero.

mod spectrum;

use candle_core::{DType, Tensor};
use luthier_core::{Error, Result, StateDict};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use spectrum::{low_rank_singular_values, singular_values};

/// What was added to a matrix.
#[derive(Clone, Debug)]
pub enum Change {
    /// The delta itself; a vector counts as one row.
    Dense(Tensor),
    /// `scale · B A`.
    LowRank {
        /// `(r, in)`.
        a_ri: Tensor,
        /// `(out, r)`.
        b_or: Tensor,
        /// The factor in front.
        scale: f64,
    },
}

/// One matrix and what was added to it.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Its parameter name.
    pub name: String,
    /// The matrix before, when relative numbers are wanted.
    pub base: Option<Tensor>,
    /// The change.
    pub change: Change,
}

/// The measurements of one matrix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatrixReport {
    /// Its parameter name.
    pub name: String,
    /// The layer in its name (`layers.3.…`), if there is one.
    pub layer: Option<usize>,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Frobenius norm of the delta.
    pub frobenius: f64,
    /// Frobenius norm of the matrix before.
    pub base_frobenius: Option<f64>,
    /// `frobenius / base_frobenius`.
    pub relative: Option<f64>,
    /// Largest singular value.
    pub spectral: f64,
    /// `frobenius² / spectral²`.
    pub stable_rank: f64,
    /// Exponential of the entropy of the singular values.
    pub effective_rank: f64,
    /// The fewest singular values that hold 99 % of the energy.
    pub rank99: usize,
    /// Singular values that f32 can tell from zero.
    pub rank: usize,
}

/// The measurements of all matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeltaReport {
    /// One entry per matrix, in the order given.
    pub matrices: Vec<MatrixReport>,
    /// Frobenius norm of all deltas together.
    pub frobenius: f64,
    /// The same relative to the matrices before, when all of them were given.
    pub relative: Option<f64>,
}

/// Measures matrices, several at a time; each one on a single thread, so that the number of
/// threads changes nothing.
pub fn measure(changed: &[Changed]) -> Result<DeltaReport> {
    let matrices: Vec<MatrixReport> = changed.par_iter().map(measure_one).collect::<Result<_>>()?;
    let norm = |parts: &mut dyn Iterator<Item = f64>| parts.map(|x| x * x).sum::<f64>().sqrt();
    let frobenius = norm(&mut matrices.iter().map(|m| m.frobenius));
    let bases: Option<Vec<f64>> = matrices.iter().map(|m| m.base_frobenius).collect();
    let relative = bases.and_then(|b| ratio(frobenius, norm(&mut b.into_iter())));
    Ok(DeltaReport { matrices, frobenius, relative })
}

/// Measures `after − before` for every tensor. The two must have the same names and shapes.
pub fn compare(before: &StateDict, after: &StateDict) -> Result<DeltaReport> {
    let mut changed = Vec::with_capacity(before.len());
    for (name, base) in before.iter() {
        let now = after.get(name).ok_or_else(|| {
            Error::input(name, "is in the model before and not in the one after")
                .hint("compare two versions of the same architecture")
        })?;
        let base = base.to_dtype(DType::F32)?;
        expect_shape(name, base.dims(), now.dims())?;
        let delta = (now.to_dtype(DType::F32)? - &base)?;
        changed.push(Changed {
            name: name.to_string(),
            base: Some(base),
            change: Change::Dense(delta),
        });
    }
    if let Some((name, _)) = after.iter().find(|(name, _)| before.get(name).is_none()) {
        return Err(Error::input(name, "is in the model after and not in the one before")
            .hint("compare two versions of the same architecture"));
    }
    measure(&changed)
}

fn expect_shape(name: &str, expected: &[usize], got: &[usize]) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::input(name, format!("expected the shape {expected:?}, got {got:?}")))
}

fn ratio(a: f64, b: f64) -> Option<f64> {
    (b > 0.0).then_some(a / b)
}

/// A tensor as a matrix of f32 values, row after row.
fn matrix(name: &str, tensor: &Tensor) -> Result<(Vec<f32>, usize, usize)> {
    let (rows, cols) = match *tensor.dims() {
        [n] => (1, n),
        [o, i] => (o, i),
        ref other => {
            let what = format!("expected a matrix or a vector, got the shape {other:?}");
            return Err(Error::input(name, what));
        }
    };
    let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    if values.iter().any(|x| !x.is_finite()) {
        return Err(Error::failed(name, "holds a number that is not finite"));
    }
    Ok((values, rows, cols))
}

fn measure_one(changed: &Changed) -> Result<MatrixReport> {
    let name = &changed.name;
    let (sigma, shape) = match &changed.change {
        Change::Dense(delta) => {
            let (values, rows, cols) = matrix(name, delta)?;
            (singular_values(name, &values, rows, cols)?, [rows, cols])
        }
        Change::LowRank { a_ri, b_or, scale } => {
            let (a, a_rank, i) = matrix(name, a_ri)?;
            let (b, o, b_rank) = matrix(name, b_or)?;
            expect_shape(&format!("{name}: lora_A"), &[b_rank, i], &[a_rank, i])?;
            (low_rank_singular_values(name, &a, &b, b_rank, *scale)?, [o, i])
        }
    };
    let mut base_frobenius = None;
    // A difference of f32 weights carries their rounding error, and no singular value below it.
    let mut noise = 0.0;
    if let Some(base) = &changed.base {
        let (values, rows, cols) = matrix(name, base)?;
        // The delta of an embedding is stored transposed in adapter files; norms do not mind.
        if [cols, rows] != shape {
            expect_shape(name, &[rows, cols], &shape)?;
        }
        let squares: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
        base_frobenius = Some(squares.sqrt());
        if matches!(changed.change, Change::Dense(_)) {
            let largest = values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            noise = f64::from(largest) * ((rows * cols) as f64).sqrt();
        }
    }
    let (spectral, sum) = (sigma.first().copied().unwrap_or(0.0), sigma.iter().sum::<f64>());
    let energy: f64 = sigma.iter().map(|s| s * s).sum();
    let frobenius = energy.sqrt();
    let zero = f64::from(f32::EPSILON) * (shape[0].max(shape[1]) as f64 * spectral).max(noise);
    Ok(MatrixReport {
        name: name.clone(),
        layer: layer_of(name),
        shape,
        frobenius,
        base_frobenius,
        relative: base_frobenius.and_then(|base| ratio(frobenius, base)),
        spectral,
        stable_rank: ratio(energy, spectral * spectral).unwrap_or(0.0),
        effective_rank: effective_rank(&sigma, sum),
        rank99: rank99(&sigma, energy),
        rank: sigma.iter().filter(|s| **s > zero).count(),
    })
}

fn effective_rank(sigma: &[f64], sum: f64) -> f64 {
    if sum == 0.0 {
        return 0.0;
    }
    let shares = sigma.iter().map(|s| s / sum).filter(|p| *p > 0.0);
    (-shares.map(|p| p * p.ln()).sum::<f64>()).exp()
}

fn rank99(sigma: &[f64], energy: f64) -> usize {
    let mut held = 0.0;
    let below = |s: &&f64| {
        let short = held < 0.99 * energy;
        held += **s * **s;
        short
    };
    sigma.iter().take_while(below).count()
}

fn layer_of(name: &str) -> Option<usize> {
    let mut parts = name.split('.');
    parts.find(|part| ["layers", "h", "blocks"].contains(part))?;
    parts.next()?.parse().ok()
}
