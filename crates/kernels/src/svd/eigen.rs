//! The leading eigenpairs of a symmetric matrix that has no negative ones, on one thread.
//!
//! Where few are asked of many, a block Krylov space `[X, GX, G²X, …]` is searched, again from its
//! best vectors until the residuals `‖G v − θ v‖` are as small as those of a whole decomposition,
//! `ε · d · θ₁`. Where that does not come about soon, the whole decomposition is taken.

use faer::{
    Accum, Conj, Mat, MatRef, Par,
    diag::Diag,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{evd, householder, matmul::matmul, qr::no_pivoting::factor as qr},
};
use luthier_core::{Error, Result, Seed};

use super::product;

/// Vectors carried along beyond those asked for: what lies just below them is separated sooner.
const SURPLUS: usize = 8;
/// Blocks of a Krylov space.
const DEPTH: usize = 5;
/// Spaces searched before the whole decomposition is cheaper.
const ROUNDS: usize = 12;

/// The `keep` largest eigenvalues, largest first, and their eigenvectors as columns. `start` is a
/// guess at them.
pub fn leading(
    name: &str,
    gram: MatRef<'_, f64>,
    keep: usize,
    start: Option<MatRef<'_, f64>>,
) -> Result<(Vec<f64>, Mat<f64>)> {
    let d = gram.nrows();
    if 2 * DEPTH * (keep + SURPLUS) <= d
        && let Some(found) = search(name, gram, keep, start)?
    {
        return Ok(found);
    }
    let (mut values, vectors) = whole(name, gram)?;
    values.truncate(keep);
    Ok((values, columns(&vectors, keep)))
}

/// All eigenpairs of a symmetric matrix, largest first.
pub fn whole(name: &str, gram: MatRef<'_, f64>) -> Result<(Vec<f64>, Mat<f64>)> {
    let n = gram.nrows();
    let mut values = Diag::<f64>::zeros(n);
    let mut vectors = Mat::<f64>::zeros(n, n);
    let yes = evd::ComputeEigenvectors::Yes;
    if n > 0 {
        let need = evd::self_adjoint_evd_scratch::<f64>(n, yes, Par::Seq, Default::default());
        let (mut memory, params) = (MemBuffer::new(need), Default::default());
        let stack = MemStack::new(&mut memory);
        let into = Some(vectors.as_mut());
        evd::self_adjoint_evd(gram, values.as_mut(), into, Par::Seq, stack, params)
            .map_err(|e| Error::failed(name, format!("its spectrum did not converge: {e:?}")))?;
    }
    let values: Vec<f64> = values.column_vector().iter().copied().collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    let sorted = Mat::from_fn(n, n, |i, j| vectors[(i, order[j])]);
    Ok((order.iter().map(|j| values[*j]).collect(), sorted))
}

/// [`leading`] by block Krylov spaces; `None` where they do not settle.
fn search(
    name: &str,
    gram: MatRef<'_, f64>,
    keep: usize,
    start: Option<MatRef<'_, f64>>,
) -> Result<Option<(Vec<f64>, Mat<f64>)>> {
    let (d, width) = (gram.nrows(), keep + SURPLUS);
    let mut rng = Seed(0).split("krylov").rng();
    let guessed = start.map_or(0, |s| s.ncols().min(width));
    let mut x = Mat::from_fn(d, width, |i, j| match start {
        Some(start) if j < guessed => start[(i, j)],
        _ => rng.normal(),
    });
    for _ in 0..ROUNDS {
        let (k, gk) = space(gram, x);
        let mut small = Mat::<f64>::zeros(k.ncols(), k.ncols());
        matmul(small.as_mut(), Accum::Replace, k.transpose(), gk.as_ref(), 1.0, Par::Seq);
        let (mut values, mix) = whole(name, small.as_ref())?;
        let gx = product(&gk, &columns(&mix, keep));
        x = product(&k, &columns(&mix, width));
        let bound = f64::EPSILON * d as f64 * values[0];
        let settled = |j: usize| {
            let apart = gx.col(j).iter().zip(x.col(j).iter()).map(|(g, v)| g - values[j] * v);
            apart.map(|r| r * r).sum::<f64>().sqrt() <= bound
        };
        if (0..keep).all(settled) {
            values.truncate(keep);
            return Ok(Some((values, columns(&x, keep))));
        }
    }
    Ok(None)
}

/// An orthonormal basis `K` of `[X, GX, G²X, …]`, and `G K`.
fn space(gram: MatRef<'_, f64>, x: Mat<f64>) -> (Mat<f64>, Mat<f64>) {
    let (d, width) = (x.nrows(), x.ncols());
    let mut all = Mat::<f64>::zeros(d, width * DEPTH);
    let mut image = Mat::<f64>::zeros(d, width * DEPTH);
    let (mut last, _) = orthonormal(x);
    for k in 0..DEPTH {
        let (from, to) = (k * width, (k + 1) * width);
        all.as_mut().subcols_mut(from, width).copy_from(last.as_ref());
        let new = image.as_mut().subcols_mut(from, width);
        matmul(new, Accum::Replace, gram, last.as_ref(), 1.0, Par::Seq);
        if k + 1 == DEPTH {
            break;
        }
        let mut next = image.as_ref().subcols(from, width).to_owned();
        // Twice: what is left of a block whose space is exhausted is rounding, in any direction.
        for _ in 0..2 {
            let known = all.as_ref().subcols(0, to);
            let mut along = Mat::<f64>::zeros(to, width);
            let onto = known.transpose();
            matmul(along.as_mut(), Accum::Replace, onto, next.as_ref(), 1.0, Par::Seq);
            matmul(next.as_mut(), Accum::Add, known, along.as_ref(), -1.0, Par::Seq);
            (next, _) = orthonormal(next);
        }
        last = next;
    }
    (all, image)
}

/// The thin `Q R` of a matrix; `Q` is orthonormal whatever the matrix' rank.
pub fn orthonormal(mut m: Mat<f64>) -> (Mat<f64>, Mat<f64>) {
    let (rows, size) = (m.nrows(), m.nrows().min(m.ncols()));
    let coefficients = reflect(&mut m);
    let mut q = Mat::<f64>::identity(rows, size);
    if size > 0 {
        let block = coefficients.nrows();
        let need = householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(
            rows, block, size,
        );
        let mut memory = MemBuffer::new(need);
        householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
            m.as_ref(),
            coefficients.as_ref(),
            Conj::No,
            q.as_mut(),
            Par::Seq,
            MemStack::new(&mut memory),
        );
    }
    (q, upper(&m))
}

/// The `R` of a matrix' thin `Q R` alone.
pub fn triangle(mut m: Mat<f64>) -> Mat<f64> {
    reflect(&mut m);
    upper(&m)
}

/// Replaces a matrix by its `R` and, below the diagonal, the reflections that make up `Q`; returns
/// their coefficients.
fn reflect(m: &mut Mat<f64>) -> Mat<f64> {
    let (rows, cols) = (m.nrows(), m.ncols());
    let size = rows.min(cols);
    if size == 0 {
        return Mat::zeros(0, 0);
    }
    let block = qr::recommended_block_size::<f64>(rows, cols);
    let mut coefficients = Mat::<f64>::zeros(block, size);
    let need = qr::qr_in_place_scratch::<f64>(rows, cols, block, Par::Seq, Default::default());
    let (mut memory, params) = (MemBuffer::new(need), Default::default());
    let stack = MemStack::new(&mut memory);
    qr::qr_in_place(m.as_mut(), coefficients.as_mut(), Par::Seq, stack, params);
    coefficients
}

fn upper(m: &Mat<f64>) -> Mat<f64> {
    let size = m.nrows().min(m.ncols());
    Mat::from_fn(size, m.ncols(), |i, j| if i <= j { m[(i, j)] } else { 0.0 })
}

fn columns(m: &Mat<f64>, n: usize) -> Mat<f64> {
    m.as_ref().subcols(0, n).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Q diag(values) Qᵀ` with a random orthonormal `Q`.
    fn planted(values: &[f64], seed: u64) -> (Mat<f64>, Mat<f64>) {
        let mut rng = Seed(seed).rng();
        let n = values.len();
        let (q, _) = orthonormal(Mat::from_fn(n, n, |_, _| rng.normal()));
        let scaled = Mat::from_fn(n, n, |i, j| q[(i, j)] * values[j]);
        let mut gram = Mat::<f64>::zeros(n, n);
        matmul(gram.as_mut(), Accum::Replace, scaled.as_ref(), q.transpose(), 1.0, Par::Seq);
        (gram, q)
    }

    fn close(a: &[f64], b: &[f64], within: f64) {
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= within, "{a} {b}");
        }
    }

    #[test]
    fn planted_eigenpairs_are_found_by_search_and_by_decomposition() {
        // A decaying spectrum with one outlier, as activations have, and a flat one.
        let decaying: Vec<f64> =
            (0..160).map(|k| if k == 0 { 1e5 } else { 10.0 / (1 + k) as f64 }).collect();
        let flat: Vec<f64> = (0..160).map(|k| 2.0 - k as f64 / 200.0).collect();
        for (values, seed) in [(decaying, 1), (flat, 2)] {
            let (gram, q) = planted(&values, seed);
            for keep in [1, 5, 8, 40] {
                let (got, vectors) = leading("g", gram.as_ref(), keep, None).unwrap();
                assert_eq!((got.len(), vectors.ncols()), (keep, keep));
                close(&got, &values, 1e-12 * values[0]);
                for j in 0..keep {
                    let along: f64 =
                        vectors.col(j).iter().zip(q.col(j).iter()).map(|(a, b)| a * b).sum();
                    assert!((along.abs() - 1.0).abs() < 1e-6, "{keep} {j}: {along}");
                }
            }
        }
    }

    #[test]
    fn a_good_guess_settles_at_once_and_gives_the_same() {
        let values: Vec<f64> = (0..200).map(|k| 0.8f64.powi(k)).collect();
        let (gram, q) = planted(&values, 3);
        let (want, _) = whole("g", gram.as_ref()).unwrap();
        for start in [None, Some(q.as_ref().subcols(0, 6))] {
            let (got, _) = search("g", gram.as_ref(), 6, start).unwrap().expect("it settles");
            close(&got, &want, 1e-12);
        }
    }

    #[test]
    fn a_matrix_of_low_rank_still_gives_orthonormal_vectors() {
        let mut values = vec![0.0; 200];
        values[..3].copy_from_slice(&[5.0, 2.0, 1.0]);
        let (gram, _) = planted(&values, 4);
        let zero = Mat::<f64>::zeros(200, 200);
        for gram in [gram, zero] {
            let (_, v) = leading("g", gram.as_ref(), 8, None).unwrap();
            let mut square = Mat::<f64>::zeros(8, 8);
            matmul(square.as_mut(), Accum::Replace, v.transpose(), v.as_ref(), 1.0, Par::Seq);
            for i in 0..8 {
                for j in 0..8 {
                    let want = if i == j { 1.0 } else { 0.0 };
                    assert!((square[(i, j)] - want).abs() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn zero_and_repeated_columns_keep_q_orthonormal_and_q_r_the_matrix() {
        let mut rng = Seed(5).rng();
        for (rows, cols) in [(9, 5), (5, 9), (70, 40), (1, 1), (40, 70)] {
            let base = Mat::from_fn(rows, cols, |_, _| rng.normal());
            let at = |i: usize, j: usize| match j % 4 {
                0 => 0.0,
                3 => base[(i, j - 2)],
                _ => base[(i, j)],
            };
            let m = Mat::from_fn(rows, cols, at);
            let (q, r) = orthonormal(m.clone());
            let back = product(&q, &r);
            let mut square = Mat::<f64>::zeros(q.ncols(), q.ncols());
            matmul(square.as_mut(), Accum::Replace, q.transpose(), q.as_ref(), 1.0, Par::Seq);
            for j in 0..cols {
                for i in 0..rows {
                    assert!((back[(i, j)] - m[(i, j)]).abs() < 1e-12, "{rows} {cols}: {i} {j}");
                }
            }
            for j in 0..q.ncols() {
                for i in 0..q.ncols() {
                    let want = if i == j { 1.0 } else { 0.0 };
                    assert!((square[(i, j)] - want).abs() < 1e-12, "{rows} {cols}");
                }
            }
        }
    }
}
