//! Singular values without singular vectors, on one thread.

use faer::{
    Accum, Mat, MatRef, Par,
    diag::Diag,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{evd, matmul::matmul},
};
use luthier_core::{Error, Result};
use luthier_kernels::svd::{gram, triangle};

/// Singular values of a row-major matrix, largest first.
///
/// They are the roots of the eigenvalues of the smaller Gram matrix, taken in f64. That halves
/// their digits, to about 8, as many as the f32 input has.
pub fn singular_values(name: &str, values: &[f32], rows: usize, cols: usize) -> Result<Vec<f64>> {
    match rows.min(cols) {
        0 => Ok(Vec::new()),
        _ => roots(name, gram(values, rows, cols).as_ref()),
    }
}

/// Singular values of `scale · B A` for row-major `A (r, i)` and `B (o, r)`, largest first; at most
/// `r` of them. With `B = Q R` and `Aᵀ = P S` they are those of the small `scale · R Sᵀ`.
pub fn low_rank_singular_values(
    name: &str,
    a: &[f32],
    b: &[f32],
    r: usize,
    scale: f64,
) -> Result<Vec<f64>> {
    if r == 0 || a.is_empty() || b.is_empty() {
        return Ok(Vec::new());
    }
    let (i, o) = (a.len() / r, b.len() / r);
    let of_b = triangle(Mat::from_fn(o, r, |row, col| f64::from(b[row * r + col])));
    let of_a = triangle(Mat::from_fn(i, r, |row, col| f64::from(a[col * i + row])));
    let mut core = Mat::<f64>::zeros(of_b.nrows(), of_a.nrows());
    matmul(core.as_mut(), Accum::Replace, of_b.as_ref(), of_a.transpose(), scale, Par::Seq);

    let n = core.ncols();
    let mut square = Mat::<f64>::zeros(n, n);
    matmul(square.as_mut(), Accum::Replace, core.transpose(), core.as_ref(), 1.0, Par::Seq);
    let mut sigma = roots(name, square.as_ref())?;
    sigma.truncate(core.nrows());
    Ok(sigma)
}

/// Roots of the eigenvalues of a Gram matrix, largest first.
fn roots(name: &str, gram: MatRef<'_, f64>) -> Result<Vec<f64>> {
    let n = gram.nrows();
    let mut eigen = Diag::<f64>::zeros(n);
    let none = evd::ComputeEigenvectors::No;
    let need = evd::self_adjoint_evd_scratch::<f64>(n, none, Par::Seq, Default::default());
    let (mut memory, params) = (MemBuffer::new(need), Default::default());
    let stack = MemStack::new(&mut memory);
    evd::self_adjoint_evd(gram, eigen.as_mut(), None, Par::Seq, stack, params)
        .map_err(|e| Error::failed(name, format!("its spectrum did not converge: {e:?}")))?;
    // Rounding can push an eigenvalue of zero below it.
    let mut sigma: Vec<f64> =
        eigen.column_vector().iter().map(|value| value.max(0.0).sqrt()).collect();
    sigma.sort_unstable_by(|a, b| b.total_cmp(a));
    Ok(sigma)
}
