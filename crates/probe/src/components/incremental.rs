//! Incremental principal component analysis (Ross et al. 2008), f32 rows in, f64 inside.
//!
//! Of `n` rows with mean `μ` are kept the leading `(σ, V)`; with a batch `X` of `m` rows and mean `x̄`
//! they become those of `[diag(σ) V; X − x̄; √(n·m / (n + m)) · (μ − x̄)]`, all of it in the first
//! batch. Signs: the entry of largest size of every component is positive. With as many components
//! as columns nothing is ever lost, and the result is that of all rows together.
//!
//! The eigenpairs `(σ², V)` are those of the smaller of the stack's two Gram matrices. That is exact to `ε₆₄ · σ₁² / 2σ`, below what rounding the rows to f32 does (`ε₃₂ · σ₁`)
//! for every `σ > 2⁻³⁰ σ₁`.

use faer::{Accum, Mat, MatRef, Par, linalg::matmul::matmul};
use luthier_core::Result;
use luthier_kernels::svd::{CHUNK, add_square, leading, mirror, orthonormal};

/// The leading principal components of the rows seen so far.
#[derive(Clone, Debug)]
pub struct Incremental {
    width: usize,
    keep: usize,
    center: bool,
    seen: usize,
    mean: Vec<f64>,
    /// Sum of squares around the mean, over all columns.
    total: f64,
    /// Components as columns, `(width, keep)`.
    basis: Mat<f64>,
    sigma: Vec<f64>,
    /// Of every component with itself one batch earlier.
    cosines: Vec<f64>,
}

impl Incremental {
    /// Nothing seen yet: `keep` components of rows of `width` numbers.
    pub fn new(width: usize, keep: usize, center: bool) -> Self {
        Incremental {
            width,
            keep: keep.min(width),
            center,
            seen: 0,
            mean: vec![0.0; width],
            total: 0.0,
            basis: Mat::new(),
            sigma: Vec::new(),
            cosines: Vec::new(),
        }
    }

    /// Numbers in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// How many components are kept.
    pub fn keep(&self) -> usize {
        self.keep
    }

    /// Keeps `keep` components if that is more; only before the first batch.
    pub(super) fn keep_at_least(&mut self, keep: usize) {
        debug_assert!(!self.begun(), "components that were dropped do not come back");
        self.keep = self.keep.max(keep.min(self.width));
    }

    /// Whether a batch was large enough to begin with.
    pub fn begun(&self) -> bool {
        self.seen > 0
    }

    /// Takes a batch of rows laid end to end; a batch of fewer rows than components is left out and
    /// the answer is false. `name` is for errors.
    pub fn add(&mut self, name: &str, rows: &[f32]) -> Result<bool> {
        let (d, m) = (self.width, rows.len() / self.width.max(1));
        if m < self.keep.max(1) {
            return Ok(false);
        }
        let (n, m) = (self.seen as f64, m as f64);
        let mut mean = vec![0.0; d];
        if self.center {
            for row in rows.chunks_exact(d) {
                mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            mean.iter_mut().for_each(|sum| *sum /= m);
        }
        let stacked = self.keep * usize::from(self.begun()) + rows.len() / d + 1;
        let (values, mut basis) = match stacked < d {
            true => self.by_rows(name, rows, &mean)?,
            false => self.by_columns(name, rows, &mean)?,
        };
        turn(&mut basis);
        self.total += self.squares(rows, &mean);
        if self.begun() {
            let cosine = |j: usize| {
                let both = basis.col(j).iter().zip(self.basis.col(j).iter());
                both.map(|(a, b)| a * b).sum::<f64>()
            };
            self.cosines = (0..self.keep).map(cosine).collect();
        }
        self.basis = basis;
        // Rounding can push an eigenvalue of zero below it.
        self.sigma = values.iter().map(|value| value.max(0.0).sqrt()).collect();
        for (known, new) in self.mean.iter_mut().zip(&mean) {
            *known = (n * *known + m * new) / (n + m);
        }
        self.seen += m as usize;
        Ok(true)
    }

    /// `√(n·m / (n + m)) · (μ − x̄)`; zeros in the first batch.
    fn shift(&self, m: usize, mean: &[f64]) -> Vec<f64> {
        let (n, m) = (self.seen as f64, m as f64);
        let by = (n * m / (n + m)).sqrt();
        self.mean.iter().zip(mean).map(|(mu, mean)| by * (mu - mean)).collect()
    }

    /// What a batch adds to the sum of squares around the mean.
    fn squares(&self, rows: &[f32], mean: &[f64]) -> f64 {
        let m = rows.len() / self.width;
        let of = |row: &[f32]| -> f64 {
            row.iter().zip(mean).map(|(x, mean)| (f64::from(*x) - mean).powi(2)).sum()
        };
        let within: f64 = rows.chunks_exact(self.width).map(of).sum();
        within + self.shift(m, mean).iter().map(|x| x * x).sum::<f64>()
    }

    /// The eigenpairs of the stack's columns, `ZᵀZ`: for many rows, which are taken a few at a time.
    fn by_columns(&self, name: &str, rows: &[f32], mean: &[f64]) -> Result<(Vec<f64>, Mat<f64>)> {
        let d = self.width;
        let mut gram = Mat::<f64>::zeros(d, d);
        for chunk in rows.chunks(CHUNK * d) {
            let mut wide = Vec::with_capacity(chunk.len());
            for row in chunk.chunks_exact(d) {
                wide.extend(row.iter().zip(mean).map(|(x, mean)| f64::from(*x) - mean));
            }
            let x = MatRef::from_row_major_slice(&wide, wide.len() / d, d);
            add_square(&mut gram, x.transpose());
        }
        let shift = self.shift(rows.len() / d, mean);
        add_square(&mut gram, MatRef::from_column_major_slice(&shift, d, 1));
        if self.begun() {
            let known = Mat::from_fn(d, self.keep, |i, j| self.basis[(i, j)] * self.sigma[j]);
            add_square(&mut gram, known.as_ref());
        }
        mirror(&mut gram);
        let start = self.begun().then(|| self.basis.as_ref());
        leading(name, gram.as_ref(), self.keep, start)
    }

    /// The eigenpairs of the stack's rows, `ZZᵀ`, turned into those of its columns: for few rows.
    fn by_rows(&self, name: &str, rows: &[f32], mean: &[f64]) -> Result<(Vec<f64>, Mat<f64>)> {
        let (d, m) = (self.width, rows.len() / self.width);
        let mut wide = Vec::with_capacity((self.keep + m + 1) * d);
        if self.begun() {
            for (j, sigma) in self.sigma.iter().enumerate() {
                wide.extend(self.basis.col(j).iter().map(|v| v * sigma));
            }
        }
        for row in rows.chunks_exact(d) {
            wide.extend(row.iter().zip(mean).map(|(x, mean)| f64::from(*x) - mean));
        }
        wide.extend(self.shift(m, mean));
        let z = MatRef::from_row_major_slice(&wide, wide.len() / d, d);
        let mut gram = Mat::<f64>::zeros(z.nrows(), z.nrows());
        add_square(&mut gram, z);
        mirror(&mut gram);
        let times = |a: MatRef<'_, f64>, b: &Mat<f64>| {
            let mut out = Mat::<f64>::zeros(a.nrows(), b.ncols());
            matmul(out.as_mut(), Accum::Replace, a, b.as_ref(), 1.0, Par::Seq);
            out
        };
        let start = self.begun().then(|| times(z, &self.basis));
        let start = start.as_ref().map(|start| start.as_ref());
        let (values, left) = leading(name, gram.as_ref(), self.keep, start)?;
        let mut turned = times(z.transpose(), &left);
        for j in 0..turned.ncols() {
            let length = turned.col(j).iter().map(|x| x * x).sum::<f64>().sqrt();
            if length > 0.0 {
                turned.as_mut().col_mut(j).iter_mut().for_each(|x| *x /= length);
            }
        }
        // Directions of hardly any variance come out bent.
        Ok((values, orthonormal(turned).0))
    }

    /// The components, `(keep, width)` row after row; empty before the first batch.
    pub fn components(&self) -> Vec<f64> {
        (0..self.basis.ncols()).flat_map(|j| self.basis.col(j).iter().copied()).collect()
    }

    /// Singular values of the (centred) rows, largest first.
    pub fn singular_values(&self) -> &[f64] {
        &self.sigma
    }

    /// Variance along each component, `σ² / (rows − 1)`.
    pub fn variance(&self) -> Vec<f64> {
        let by = self.seen.saturating_sub(1).max(1) as f64;
        self.sigma.iter().map(|s| s * s / by).collect()
    }

    /// The share of all variance along each component.
    pub fn ratio(&self) -> Vec<f64> {
        let share = |s: &f64| if self.total > 0.0 { s * s / self.total } else { 0.0 };
        self.sigma.iter().map(share).collect()
    }

    /// Cosine of every component with itself one batch earlier; empty before the second batch.
    pub fn cosines(&self) -> &[f64] {
        &self.cosines
    }

    /// Whether the first `n` components hardly moved with the last batch.
    pub fn converged(&self, n: usize, tau: f64) -> bool {
        let n = n.min(self.keep);
        self.cosines.len() >= n && self.cosines[..n].iter().all(|cosine| *cosine >= tau)
    }
}

/// Makes the entry of largest size of every column positive; of equals the first.
fn turn(basis: &mut Mat<f64>) {
    for j in 0..basis.ncols() {
        let column = basis.col(j);
        let mut largest = 0.0f64;
        column.iter().for_each(|x| {
            if x.abs() > largest.abs() {
                largest = *x;
            }
        });
        if largest < 0.0 {
            basis.as_mut().col_mut(j).iter_mut().for_each(|x| *x = -*x);
        }
    }
}
