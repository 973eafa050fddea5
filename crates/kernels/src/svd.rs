//! Singular values with their vectors, and the low-rank factors made of them. Each decomposition
//! runs on one thread, so that the number of threads changes nothing.
//!
//! A product `s · B A` is decomposed through its factors: with `B = Q R` and `Aᵀ = P S`, by the
//! small `s · R Sᵀ`; the product is never formed. A dense `M` is decomposed through the smaller of
//! `MᵀM` and `MMᵀ` in f64, whose leading eigenvectors are one side; the other side is `M` applied to
//! them, and the singular values are its lengths, so that `U Σ Vᵀ` is `M` projected on the found
//! directions whatever their error.

mod eigen;

use candle_core::{DType, Device, Tensor};
use faer::{
    Accum, Mat, MatRef, Par,
    diag::Diag,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{
        matmul::{
            matmul,
            triangular::{self, BlockStructure},
        },
        svd,
    },
};
use luthier_core::{Error, Result};

pub use eigen::{leading, orthonormal, triangle, whole};

/// Rows that are widened to f64 at a time.
pub const CHUNK: usize = 2048;

/// The leading part of a singular value decomposition, `U diag(σ) Vᵀ`.
#[derive(Clone, Debug)]
pub struct Svd {
    /// `(out, k)`.
    u_ok: Mat<f64>,
    /// `(in, k)`.
    v_ik: Mat<f64>,
    /// Largest first.
    sigma: Vec<f64>,
    /// Sum of the squares of the singular values that were not sought.
    rest: f64,
}

impl Svd {
    /// All of `scale · B A` for `A (r, in)` and `B (out, r)`; `name` is for errors.
    pub fn low_rank(name: &str, a_ri: &Tensor, b_or: &Tensor, scale: f64) -> Result<Self> {
        let (a, b) = (Rows::read(name, a_ri)?, Rows::read(name, b_or)?);
        if a.rows != b.cols {
            let what = format!("factors of shape {:?} and {:?}", b_or.dims(), a_ri.dims());
            return Err(Error::failed(name, what + " have no product"));
        }
        let wide = |m: &Rows, turned: bool| match turned {
            false => Mat::from_fn(m.rows, m.cols, |i, j| f64::from(m.at(i, j))),
            true => Mat::from_fn(m.cols, m.rows, |i, j| f64::from(m.at(j, i))),
        };
        let (q_b, r_b) = orthonormal(wide(&b, false));
        let (q_a, r_a) = orthonormal(wide(&a, true));
        let mut core = Mat::<f64>::zeros(r_b.nrows(), r_a.nrows());
        matmul(core.as_mut(), Accum::Replace, r_b.as_ref(), r_a.transpose(), scale, Par::Seq);
        let (u, sigma, v) = small(name, core.as_ref())?;
        Ok(Svd { u_ok: product(&q_b, &u), v_ik: product(&q_a, &v), sigma, rest: 0.0 })
    }

    /// The first `most` parts of the matrix `M (out, in)`; `name` is for errors.
    pub fn dense(name: &str, m_oi: &Tensor, most: usize) -> Result<Self> {
        let m = Rows::read(name, m_oi)?;
        let k = most.min(m.rows).min(m.cols);
        let tall = m.rows >= m.cols;
        let gram = gram(&m.values, m.rows, m.cols);
        let (_, known) = leading(name, gram.as_ref(), k, None)?;
        drop(gram);
        let mut other = Mat::<f64>::zeros(m.rows.max(m.cols), k);
        slices(&m.values, m.rows, m.cols, |from, x| {
            let (known, n) = (known.as_ref(), if tall { x.nrows() } else { x.ncols() });
            let part = other.as_mut().subrows_mut(from, n);
            match tall {
                true => matmul(part, Accum::Replace, x, known, 1.0, Par::Seq),
                false => matmul(part, Accum::Replace, x.transpose(), known, 1.0, Par::Seq),
            }
        });
        let length = |j: usize| other.col(j).iter().map(|x| x * x).sum::<f64>().sqrt();
        let sigma: Vec<f64> = (0..k).map(length).collect();
        for (j, sigma) in sigma.iter().enumerate().filter(|(_, sigma)| **sigma > 0.0) {
            other.as_mut().col_mut(j).iter_mut().for_each(|x| *x /= sigma);
        }
        let all: f64 = m.values.iter().map(|x| f64::from(*x).powi(2)).sum();
        let rest = (all - sigma.iter().map(|s| s * s).sum::<f64>()).max(0.0);
        let (u_ok, v_ik) = if tall { (other, known) } else { (known, other) };
        Ok(Svd { u_ok, v_ik, sigma, rest })
    }

    /// The singular values that were sought, largest first.
    pub fn sigma(&self) -> &[f64] {
        &self.sigma
    }

    /// Frobenius norm of the whole matrix.
    pub fn norm(&self) -> f64 {
        self.lost(0)
    }

    /// Frobenius norm of what the first `r` parts leave out.
    pub fn lost(&self, r: usize) -> f64 {
        let left = self.sigma.iter().skip(r).rev().map(|s| s * s).sum::<f64>();
        (left + self.rest).sqrt()
    }

    /// The first `r` parts as a row-major matrix.
    pub fn matrix(&self, r: usize) -> Vec<f32> {
        let (o, i, r) = (self.u_ok.nrows(), self.v_ik.nrows(), r.min(self.sigma.len()));
        let scaled = Mat::from_fn(o, r, |row, k| self.u_ok[(row, k)] * self.sigma[k]);
        let mut found = Mat::<f64>::zeros(o, i);
        let v_ik = self.v_ik.as_ref().subcols(0, r);
        matmul(found.as_mut(), Accum::Replace, scaled.as_ref(), v_ik.transpose(), 1.0, Par::Seq);
        (0..o).flat_map(|r| (0..i).map(move |c| (r, c))).map(|at| found[at] as f32).collect()
    }

    /// `A (r, in)` and `B (out, r)` of equal lengths whose `scale · B A` is the first `r` parts.
    pub fn factors(&self, r: usize, scale: f64) -> Result<(Tensor, Tensor)> {
        let (o, i) = (self.u_ok.nrows(), self.v_ik.nrows());
        let r = r.min(self.sigma.len());
        let size: Vec<f64> = self.sigma[..r].iter().map(|s| (s / scale.abs()).sqrt()).collect();
        let mut a = Vec::with_capacity(r * i);
        for (j, size) in size.iter().enumerate() {
            a.extend(self.v_ik.col(j).iter().map(|x| (x * size) as f32));
        }
        let mut b = Vec::with_capacity(o * r);
        for row in 0..o {
            let signed = |j: usize| (self.u_ok[(row, j)] * size[j] * scale.signum()) as f32;
            b.extend((0..r).map(signed));
        }
        let cpu = &Device::Cpu;
        Ok((Tensor::from_vec(a, (r, i), cpu)?, Tensor::from_vec(b, (o, r), cpu)?))
    }
}

/// A matrix as f32 values, row after row.
struct Rows {
    values: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Rows {
    fn read(name: &str, tensor: &Tensor) -> Result<Self> {
        let (rows, cols) = tensor.dims2()?;
        let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        match values.iter().all(|x| x.is_finite()) {
            true => Ok(Rows { values, rows, cols }),
            false => Err(Error::failed(name, "holds a number that is not finite")),
        }
    }

    fn at(&self, row: usize, col: usize) -> f32 {
        self.values[row * self.cols + col]
    }
}

/// Calls `f` with slices of the longer side of a row-major matrix in f64, and where each begins.
fn slices(values: &[f32], rows: usize, cols: usize, mut f: impl FnMut(usize, MatRef<'_, f64>)) {
    if values.is_empty() {
        return;
    }
    if rows >= cols {
        for (k, slice) in values.chunks(CHUNK * cols).enumerate() {
            let wide: Vec<f64> = slice.iter().map(|x| f64::from(*x)).collect();
            f(k * CHUNK, MatRef::from_row_major_slice(&wide, slice.len() / cols, cols));
        }
        return;
    }
    for from in (0..cols).step_by(CHUNK) {
        let width = CHUNK.min(cols - from);
        let row = |r: usize| values[r * cols + from..][..width].iter();
        let wide: Vec<f64> = (0..rows).flat_map(|r| row(r).map(|x| f64::from(*x))).collect();
        f(from, MatRef::from_row_major_slice(&wide, rows, width));
    }
}

/// The smaller of `MᵀM` and `MMᵀ` of a row-major matrix, in f64.
pub fn gram(values: &[f32], rows: usize, cols: usize) -> Mat<f64> {
    let n = rows.min(cols);
    let mut gram = Mat::<f64>::zeros(n, n);
    slices(values, rows, cols, |_, x| match rows >= cols {
        true => add_square(&mut gram, x.transpose()),
        false => add_square(&mut gram, x),
    });
    mirror(&mut gram);
    gram
}

/// Adds `x xᵀ` to the lower half of `gram`.
pub fn add_square(gram: &mut Mat<f64>, x: MatRef<'_, f64>) {
    triangular::matmul(
        gram.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Add,
        x,
        BlockStructure::Rectangular,
        x.transpose(),
        BlockStructure::Rectangular,
        1.0,
        Par::Seq,
    );
}

/// Completes a symmetric matrix whose lower half is known.
pub fn mirror(gram: &mut Mat<f64>) {
    for j in 1..gram.ncols() {
        for i in 0..j {
            gram[(i, j)] = gram[(j, i)];
        }
    }
}

/// `a · b`.
pub fn product(a: &Mat<f64>, b: &Mat<f64>) -> Mat<f64> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(out.as_mut(), Accum::Replace, a.as_ref(), b.as_ref(), 1.0, Par::Seq);
    out
}

/// Left vectors, singular values and right vectors of a small matrix.
fn small(name: &str, matrix: MatRef<'_, f64>) -> Result<(Mat<f64>, Vec<f64>, Mat<f64>)> {
    let (m, n) = matrix.shape();
    let k = m.min(n);
    let (mut u, mut v) = (Mat::<f64>::zeros(m, k), Mat::<f64>::zeros(n, k));
    let mut sigma = Diag::<f64>::zeros(k);
    if k > 0 {
        let thin = svd::ComputeSvdVectors::Thin;
        let need = svd::svd_scratch::<f64>(m, n, thin, thin, Par::Seq, Default::default());
        let (mut memory, params) = (MemBuffer::new(need), Default::default());
        let stack = MemStack::new(&mut memory);
        let (into_u, into_v) = (Some(u.as_mut()), Some(v.as_mut()));
        svd::svd(matrix, sigma.as_mut(), into_u, into_v, Par::Seq, stack, params).map_err(|e| {
            Error::failed(name, format!("its singular values did not converge: {e:?}"))
        })?;
    }
    let sigma: Vec<f64> = sigma.column_vector().iter().copied().collect();
    Ok((u, sigma, v))
}

#[cfg(test)]
mod tests {
    use luthier_core::Seed;

    use super::*;

    fn random(rows: usize, cols: usize, seed: u64) -> Tensor {
        let mut rng = Seed(seed).rng();
        let values: Vec<f32> = (0..rows * cols).map(|_| rng.normal() as f32).collect();
        Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
    }

    fn norm(t: &Tensor) -> f64 {
        let flat: Vec<f32> = t.flatten_all().unwrap().to_vec1().unwrap();
        flat.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
    }

    /// The twin: faer's own decomposition of the matrix itself.
    fn whole(m: &Tensor) -> Vec<f64> {
        let rows = m.to_vec2::<f32>().unwrap();
        let (o, i) = m.dims2().unwrap();
        let wide = Mat::from_fn(o, i, |r, c| f64::from(rows[r][c]));
        wide.svd().unwrap().S().column_vector().iter().copied().collect()
    }

    /// What is left of `m` after the first `r` parts, by subtraction.
    fn left(m: &Tensor, svd: &Svd, r: usize, scale: f64) -> f64 {
        let (a, b) = svd.factors(r, scale).unwrap();
        norm(&(m - (b.matmul(&a).unwrap() * scale).unwrap()).unwrap())
    }

    fn check(m: &Tensor, svd: &Svd, scale: f64) {
        let want = whole(m);
        for (got, want) in svd.sigma().iter().zip(&want) {
            assert!((got - want).abs() < 1e-6 * want.max(1e-3), "{got} {want}");
        }
        for r in 0..=svd.sigma().len() {
            let best = want.iter().skip(r).map(|s| s * s).sum::<f64>().sqrt();
            let (said, is) = (svd.lost(r), left(m, svd, r, scale));
            assert!((said - best).abs() < 2e-6 * want[0], "{r}: said {said}, best {best}");
            assert!((is - best).abs() < 2e-5 * want[0], "{r}: is {is}, best {best}");
        }
        assert!((svd.norm() - norm(m)).abs() < 1e-6 * norm(m));
    }

    #[test]
    fn factors_are_the_best_approximation() {
        for (o, i, most, seed) in [(9, 7, 4, 1), (7, 30, 7, 2), (1, 5, 3, 3), (2100, 3, 2, 4)] {
            let m = random(o, i, seed);
            let svd = Svd::dense("w", &m, most).unwrap();
            assert_eq!(svd.sigma().len(), most.min(o).min(i));
            check(&m, &svd, 0.5);
        }
        for (o, i, r, scale) in
            [(30, 20, 4, -1.7), (20, 30, 1, 0.2), (5, 20, 8, 3.0), (9, 3, 6, 1.0)]
        {
            let (a, b) = (random(r, i, 5), random(o, r, 6));
            let m = (b.matmul(&a).unwrap() * scale).unwrap();
            check(&m, &Svd::low_rank("w", &a, &b, scale).unwrap(), scale);
        }
    }

    #[test]
    fn the_factors_of_a_part_share_its_size() {
        let svd = Svd::dense("w", &random(12, 9, 1), 5).unwrap();
        let (a, b) = svd.factors(5, 2.0).unwrap();
        for j in 0..5 {
            let (a, b) = (norm(&a.get(j).unwrap()), norm(&b.t().unwrap().get(j).unwrap()));
            assert!((a - b).abs() < 1e-5 && (2.0 * a * b - svd.sigma()[j]).abs() < 1e-5);
        }
    }

    #[test]
    fn nothing_is_decomposed_into_nothing() {
        let (a, b) = (random(4, 9, 1), random(6, 4, 2).zeros_like().unwrap());
        for svd in [
            Svd::low_rank("w", &a, &b, 2.0).unwrap(),
            Svd::dense("w", &b.matmul(&a).unwrap(), 3).unwrap(),
        ] {
            assert_eq!((svd.norm(), svd.sigma().iter().sum::<f64>()), (0.0, 0.0));
            let (a, b) = svd.factors(3, 2.0).unwrap();
            assert_eq!((norm(&a), norm(&b)), (0.0, 0.0));
        }
        let bad = Tensor::new(&[[1.0f32, f32::NAN]], &Device::Cpu).unwrap();
        assert!(Svd::dense("q", &bad, 1).unwrap_err().to_string().starts_with("q: holds a number"));
    }

    #[test]
    fn repeated_and_missing_directions_do_no_harm() {
        // B has a zero column and two equal ones: its rank is 2 of 4.
        let b = random(10, 4, 1).to_vec2::<f32>().unwrap();
        let b: Vec<f32> = b.iter().flat_map(|row| [0.0, row[1], row[2], row[1]]).collect();
        let b = Tensor::from_vec(b, (10, 4), &Device::Cpu).unwrap();
        let a = random(4, 8, 2);
        let svd = Svd::low_rank("w", &a, &b, 1.0).unwrap();
        let m = b.matmul(&a).unwrap();
        assert!(svd.sigma()[1] > 0.1 && svd.sigma()[2] < 1e-10);
        assert!(left(&m, &svd, 2, 1.0) < 1e-5 * norm(&m));
        assert!(svd.lost(2) < 1e-10);
    }
}
