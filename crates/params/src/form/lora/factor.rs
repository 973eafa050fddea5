//! Factors of a weight: the leading part of its singular value decomposition, the first columns of its
//! QR decomposition. Each runs on one thread, so that the number of threads changes no bit.

use candle_core::{DType, Device, Tensor};
use faer::{Accum, Mat, MatRef, Par, linalg::matmul::matmul};
use luthier_core::{Result, Seed};
use luthier_kernels::svd::{Svd, orthonormal};

/// Factors `A (r, in)` and `B (out, r)`.
pub(super) struct Pair {
    pub a_ri: Tensor,
    pub b_or: Tensor,
}

/// `s · B A` is the best approximation of rank `r` to `W`; both factors hold the square root of the
/// singular values. `name` is for errors.
pub(super) fn singular(name: &str, w_oi: &Tensor, r: usize, s: f64) -> Result<Pair> {
    let (a_ri, b_or) = Svd::dense(name, w_oi, r)?.factors(r, s)?;
    Ok(Pair { a_ri, b_or })
}

/// `B` is the first `r` columns of Q and `A` the first `r` rows of R in `W = Q R`.
pub(super) fn triangular(w_oi: &Tensor, r: usize) -> Result<Pair> {
    let (o, i) = w_oi.dims2()?;
    let wide = wide(w_oi)?;
    let w = MatRef::from_row_major_slice(&wide, o, i);
    let (q, _) = orthonormal(Mat::from_fn(o, r, |row, k| w[(row, k)]));
    let mut top = Mat::<f64>::zeros(r, i);
    matmul(top.as_mut(), Accum::Replace, q.transpose(), w, 1.0, Par::Seq);
    Ok(Pair {
        a_ri: narrow(r, i, |k, col| top[(k, col)])?,
        b_or: narrow(o, r, |row, k| q[(row, k)])?,
    })
}

/// Random factors whose product is 0: their rows and columns lie in complementary halves of a random
/// orthonormal basis of the `r` narrow dimensions.
pub(super) fn complementary(seed: Seed, o: usize, i: usize, r: usize) -> Result<Pair> {
    let normal = |name: &str, rows: usize, cols: usize| {
        let mut rng = seed.split(name).rng();
        let values: Vec<f64> = (0..rows * cols).map(|_| rng.normal()).collect();
        Mat::from_fn(rows, cols, |row, col| values[row * cols + col])
    };
    let (q, _) = orthonormal(normal("basis", r, r));
    let half = r / 2;
    let odd = Mat::from_fn(half, r, |k, col| q[(2 * k, col)]);
    let even = Mat::from_fn(half, r, |k, col| q[(2 * k + 1, col)]);
    let (mut a, mut b) = (Mat::<f64>::zeros(r, i), Mat::<f64>::zeros(o, r));
    let (x, y) = (normal("lora_A", half, i), normal("lora_B", o, half));
    matmul(a.as_mut(), Accum::Replace, odd.transpose(), x.as_ref(), 0.1, Par::Seq);
    matmul(b.as_mut(), Accum::Replace, y.as_ref(), even.as_ref(), 0.1, Par::Seq);
    Ok(Pair {
        a_ri: narrow(r, i, |k, col| a[(k, col)])?,
        b_or: narrow(o, r, |row, k| b[(row, k)])?,
    })
}

fn wide(w: &Tensor) -> Result<Vec<f64>> {
    let flat = w.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(flat.into_iter().map(f64::from).collect())
}

fn narrow(rows: usize, cols: usize, at: impl Fn(usize, usize) -> f64) -> Result<Tensor> {
    let all = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
    let values: Vec<f32> = all.map(|(row, col)| at(row, col) as f32).collect();
    Ok(Tensor::from_vec(values, (rows, cols), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use luthier_testkit::random;

    use super::*;

    fn square(x: &Tensor) -> f64 {
        f64::from(x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())
    }

    fn product(pair: &Pair, s: f64) -> Tensor {
        (pair.b_or.matmul(&pair.a_ri).unwrap() * s).unwrap()
    }

    /// A matrix of known singular values 8, 4, 2, 1: two reflections around a diagonal.
    fn known(o: usize, i: usize) -> Tensor {
        let mirror = |n: usize, name: &str| {
            let mut rng = Seed(5).split(name).rng();
            let v: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
            let length: f64 = v.iter().map(|x| x * x).sum();
            narrow(n, n, |a, b| f64::from(u8::from(a == b)) - 2.0 * v[a] * v[b] / length).unwrap()
        };
        let sigma =
            |a: usize, b: usize| if a == b && a < 4 { 8.0 / 2f64.powi(a as i32) } else { 0.0 };
        let diagonal = narrow(o, i, sigma).unwrap();
        mirror(o, "left").matmul(&diagonal).unwrap().matmul(&mirror(i, "right")).unwrap()
    }

    #[test]
    fn what_the_leading_part_leaves_are_the_other_singular_values() {
        for (o, i) in [(6, 9), (9, 6), (7, 7)] {
            let w = known(o, i);
            for (r, left) in [(1, 21.0), (2, 5.0), (3, 1.0), (4, 0.0), (5, 0.0)] {
                for s in [2.0, 0.25, -3.0] {
                    let pair = singular("w", &w, r, s).unwrap();
                    assert_eq!((pair.a_ri.dims(), pair.b_or.dims()), (&[r, i][..], &[o, r][..]));
                    let rest = square(&(&w - product(&pair, s)).unwrap());
                    assert!((rest - left).abs() < 1e-4, "({o}, {i}) rank {r} scale {s}: {rest}");
                }
            }
            // Both factors hold the same share: their squares sum to σ / s.
            let pair = singular("w", &w, 2, 2.0).unwrap();
            assert!((square(&pair.a_ri) - 6.0).abs() < 1e-4);
            assert!((square(&pair.b_or) - 6.0).abs() < 1e-4);
        }
    }

    #[test]
    fn the_first_columns_are_reproduced_by_an_orthonormal_basis() {
        for (o, i) in [(6, 9), (9, 6)] {
            let w = random((o, i), 1.0, Seed(3).split("w"));
            let pair = triangular(&w, 3).unwrap();
            let first = |x: &Tensor| x.narrow(1, 0, 3).unwrap().contiguous().unwrap();
            assert!(square(&(first(&w) - first(&product(&pair, 1.0))).unwrap()) < 1e-10);
            let gram = pair.b_or.t().unwrap().matmul(&pair.b_or).unwrap();
            assert!(
                square(&(gram - Tensor::eye(3, DType::F32, &Device::Cpu).unwrap()).unwrap())
                    < 1e-10
            );
            // Below R's diagonal there is nothing.
            let a = pair.a_ri.to_vec2::<f32>().unwrap();
            assert!(a[1][0].abs() + a[2][0].abs() + a[2][1].abs() < 1e-5);
        }
    }

    #[test]
    fn complementary_factors_are_random_and_cancel() {
        let pair = complementary(Seed(4), 40, 60, 6).unwrap();
        assert!(square(&product(&pair, 1.0)) < 1e-10);
        // Half of the dimensions with normal numbers of deviation 0.1.
        assert!((square(&pair.a_ri) / 1.8 - 1.0).abs() < 0.3, "{}", square(&pair.a_ri));
        assert!((square(&pair.b_or) / 1.2 - 1.0).abs() < 0.3, "{}", square(&pair.b_or));
    }
}
