//! Matrix products over strided slices.

use rayon::current_num_threads;

/// A matrix view into a slice: element `(r, c)` is `data[r·row + c·col]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    row: usize,
    col: usize,
}

impl<'a> View<'a> {
    /// Row-major with `row` elements between rows.
    pub fn rows(data: &'a [f32], row: usize) -> Self {
        View { data, row, col: 1 }
    }

    /// The transpose: rows become columns.
    pub fn t(self) -> Self {
        View { data: self.data, row: self.col, col: self.row }
    }

    fn covers(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row + (cols - 1) * self.col < self.data.len()
    }
}

/// How the product uses the cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// This thread only: the caller already runs in parallel.
    One,
    /// All threads of the current pool.
    All,
}

/// `c = beta·c + alpha·a·b` with `a` (m, k), `b` (k, n) and `c` (m, n), row-major, `c_row` elements
/// between rows. Sums over `k` run in an order that does not depend on the number of threads.
#[allow(clippy::too_many_arguments)]
pub fn gemm(
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: View,
    b: View,
    beta: f32,
    c: &mut [f32],
    c_row: usize,
    cores: Cores,
) {
    assert!(a.covers(m, k) && b.covers(k, n), "a matrix view reaches beyond its slice");
    assert!(m == 0 || n == 0 || (m - 1) * c_row + n <= c.len(), "the product does not fit");
    assert!(n <= c_row || m <= 1, "rows of the product overlap");
    let parallelism = match cores {
        Cores::One => gemm::Parallelism::None,
        Cores::All => gemm::Parallelism::Rayon(current_num_threads()),
    };
    // SAFETY: the asserts above bound every element the product reads or writes, and `c` is a
    // unique borrow whose rows do not overlap.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            c_row as isize,
            beta != 0.0,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            beta,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_three_loops_in_every_orientation() {
        let (m, n, k) = (5, 7, 9);
        let a: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.7).sin()).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.3).cos()).collect();
        let at: Vec<f32> = (0..k * m).map(|i| a[(i % m) * k + i / m]).collect();
        let bt: Vec<f32> = (0..n * k).map(|i| b[(i % k) * n + i / k]).collect();
        let mut want = vec![1.0f32; m * n];
        for i in 0..m {
            for j in 0..n {
                let s: f32 = (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum();
                want[i * n + j] = 0.5 * want[i * n + j] + 2.0 * s;
            }
        }
        for av in [View::rows(&a, k), View::rows(&at, m).t()] {
            for bv in [View::rows(&b, n), View::rows(&bt, k).t()] {
                let mut c = vec![1.0f32; m * n];
                gemm(m, n, k, 2.0, av, bv, 0.5, &mut c, n, Cores::All);
                for (x, y) in c.iter().zip(&want) {
                    assert!((x - y).abs() < 1e-5);
                }
            }
        }
    }
}
