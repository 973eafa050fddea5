//! Singular values without singular vectors, on one thread.

use faer::{
    Accum, Mat, MatRef, Par,
    diag::Diag,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{evd, matmul::matmul, qr::no_pivoting::factor as qr},
};
use luthier_core::{Error, Result};

/// Rows that are widened to f64 at a time.
const CHUNK: usize = 2048;

/// Singular values of a row-major matrix, largest first.
///
/// They are the roots of the eigenvalues of the smaller Gram matrix, taken in f64. That halves
/// their digits, to about 8, as many as the f32 input has.
pub fn singular_values(name: &str, values: &[f32], rows: usize, cols: usize) -> Result<Vec<f64>> {
    let n = rows.min(cols);
    if n == 0 {
        return Ok(Vec::new());
    }
    let mut gram = Mat::<f64>::zeros(n, n);
    if rows >= cols {
        for chunk in values.chunks(CHUNK * cols) {
            let wide: Vec<f64> = chunk.iter().map(|x| f64::from(*x)).collect();
            let x = MatRef::from_row_major_slice(&wide, chunk.len() / cols, cols);
            matmul(gram.as_mut(), Accum::Add, x.transpose(), x, 1.0, Par::Seq);
        }
    } else {
        // Few rows: a slice of columns at a time.
        for from in (0..cols).step_by(CHUNK) {
            let width = CHUNK.min(cols - from);
            let row = |r: usize| values[r * cols + from..][..width].iter().map(|x| f64::from(*x));
            let wide: Vec<f64> = (0..rows).flat_map(row).collect();
            let x = MatRef::from_row_major_slice(&wide, rows, width);
            matmul(gram.as_mut(), Accum::Add, x, x.transpose(), 1.0, Par::Seq);
        }
    }
    roots(name, gram.as_ref())
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
    let of_b = triangle(o, r, &|row, col| b[row * r + col]);
    let of_a = triangle(i, r, &|row, col| a[col * i + row]);
    let mut core = Mat::<f64>::zeros(of_b.nrows(), of_a.nrows());
    matmul(core.as_mut(), Accum::Replace, of_b.as_ref(), of_a.transpose(), scale, Par::Seq);

    let n = core.ncols();
    let mut gram = Mat::<f64>::zeros(n, n);
    matmul(gram.as_mut(), Accum::Replace, core.transpose(), core.as_ref(), 1.0, Par::Seq);
    let mut sigma = roots(name, gram.as_ref())?;
    sigma.truncate(core.nrows());
    Ok(sigma)
}

/// The triangular factor of a `(rows, r)` matrix's QR decomposition.
fn triangle(rows: usize, r: usize, at: &dyn Fn(usize, usize) -> f32) -> Mat<f64> {
    let mut packed = Mat::from_fn(rows, r, |row, col| f64::from(at(row, col)));
    let size = rows.min(r);
    let block = qr::recommended_block_size::<f64>(rows, r);
    let mut coefficients = Mat::<f64>::zeros(block, size);
    let need = qr::qr_in_place_scratch::<f64>(rows, r, block, Par::Seq, Default::default());
    let (mut memory, params) = (MemBuffer::new(need), Default::default());
    let stack = MemStack::new(&mut memory);
    qr::qr_in_place(packed.as_mut(), coefficients.as_mut(), Par::Seq, stack, params);
    // Below the diagonal lie the reflections that make up Q, which nobody asks for.
    Mat::from_fn(size, r, |row, col| if row <= col { packed[(row, col)] } else { 0.0 })
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
