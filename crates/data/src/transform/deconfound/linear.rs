//! Least squares on small dense problems, in f64.

use luthier_core::{Error, Result};

/// A matrix stored row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix {
    /// Numbers of a row.
    pub columns: usize,
    /// Rows laid end to end.
    pub numbers: Vec<f64>,
}

impl Matrix {
    /// From columns of equal length.
    pub fn of_columns(columns: &[Vec<f64>]) -> Self {
        let rows = columns.first().map_or(0, Vec::len);
        let numbers = (0..rows).flat_map(|i| columns.iter().map(move |column| column[i])).collect();
        Matrix { columns: columns.len(), numbers }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.numbers.len().checked_div(self.columns).unwrap_or(0)
    }

    /// A row.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.numbers[i * self.columns..(i + 1) * self.columns]
    }

    /// A column.
    pub fn column(&self, j: usize) -> Vec<f64> {
        (0..self.rows()).map(|i| self.row(i)[j]).collect()
    }
}

/// A fitted line: `y = constant + slopes · x`.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// The value where everything is 0.
    pub constant: f64,
    /// What each column adds.
    pub slopes: Vec<f64>,
}

impl Line {
    /// The value at `x`.
    pub fn at(&self, x: &[f64]) -> f64 {
        self.constant + self.slopes.iter().zip(x).map(|(slope, x)| slope * x).sum::<f64>()
    }
}

/// The mean.
pub fn mean(of: &[f64]) -> f64 {
    of.iter().sum::<f64>() / of.len().max(1) as f64
}

/// The least `Σ (y − constant − slopes · x)² + ridge · Σ slopes²` over the rows `chosen`.
pub fn fit(x: &Matrix, y: &[f64], ridge: f64, chosen: &[usize]) -> Result<Line> {
    let (d, n) = (x.columns, chosen.len().max(1) as f64);
    let y_mean = chosen.iter().map(|i| y[*i]).sum::<f64>() / n;
    let mut x_mean = vec![0.0; d];
    for i in chosen {
        x_mean.iter_mut().zip(x.row(*i)).for_each(|(mean, x)| *mean += x / n);
    }
    let (mut gram, mut moment) = (vec![0.0; d * d], vec![0.0; d]);
    let mut centred = vec![0.0; d];
    for i in chosen {
        centred.iter_mut().zip(x.row(*i)).zip(&x_mean).for_each(|((c, x), mean)| *c = x - mean);
        for (j, x) in centred.iter().enumerate() {
            if *x == 0.0 {
                continue;
            }
            moment[j] += x * (y[*i] - y_mean);
            let row = &mut gram[j * d..j * d + j + 1];
            row.iter_mut().zip(&centred).for_each(|(gram, other)| *gram += x * other);
        }
    }
    (0..d).for_each(|j| gram[j * d + j] += ridge);
    let slopes = solve(&mut gram, d, moment)?;
    let constant = y_mean - slopes.iter().zip(&x_mean).map(|(s, m)| s * m).sum::<f64>();
    Ok(Line { constant, slopes })
}

/// Solves `A x = b` for a symmetric positive `A`, given and lost by its lower triangle (Cholesky).
fn solve(a: &mut [f64], d: usize, b: Vec<f64>) -> Result<Vec<f64>> {
    let largest = (0..d).map(|j| a[j * d + j]).fold(0.0, f64::max);
    for j in 0..d {
        let pivot = a[j * d + j] - (0..j).map(|k| a[j * d + k] * a[j * d + k]).sum::<f64>();
        if pivot.is_nan() || pivot <= 1e-12 * largest {
            return Err(Error::input("deconfound", "some columns say the same as others")
                .hint("leave one of them out, or raise ridge"));
        }
        a[j * d + j] = pivot.sqrt();
        for i in j + 1..d {
            let dot: f64 = (0..j).map(|k| a[i * d + k] * a[j * d + k]).sum();
            a[i * d + j] = (a[i * d + j] - dot) / a[j * d + j];
        }
    }
    let mut x = b;
    for j in 0..d {
        let dot: f64 = (0..j).map(|k| a[j * d + k] * x[k]).sum();
        x[j] = (x[j] - dot) / a[j * d + j];
    }
    for j in (0..d).rev() {
        let dot: f64 = (j + 1..d).map(|k| a[k * d + j] * x[k]).sum();
        x[j] = (x[j] - dot) / a[j * d + j];
    }
    Ok(x)
}

/// The share of the variance of `y` that `told` tells; 0 where `y` has none.
pub fn r_squared(y: &[f64], told: &[f64]) -> f64 {
    let middle = mean(y);
    let total: f64 = y.iter().map(|y| (y - middle) * (y - middle)).sum();
    let left: f64 = y.iter().zip(told).map(|(y, told)| (y - told) * (y - told)).sum();
    if total > 0.0 { 1.0 - left / total } else { 0.0 }
}

/// How far two columns go along, from −1 to 1; 0 where one of them is constant.
pub fn correlation(x: &[f64], y: &[f64]) -> f64 {
    let (x_mean, y_mean) = (mean(x), mean(y));
    let sum = |a: &[f64], a_mean: f64, b: &[f64], b_mean: f64| -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - a_mean) * (b - b_mean)).sum()
    };
    let spread = (sum(x, x_mean, x, x_mean) * sum(y, y_mean, y, y_mean)).sqrt();
    if spread > 0.0 { sum(x, x_mean, y, y_mean) / spread } else { 0.0 }
}

/// Of every row, what a fit on the rows of all other folds says; with one fold, a fit on all rows.
/// Folds are runs of rows that take turns.
pub fn across_folds(x: &Matrix, y: &[f64], ridge: f64, folds: usize) -> Result<Vec<f64>> {
    let mut told = vec![0.0; y.len()];
    for fold in 0..folds.max(1) {
        let (inside, outside): (Vec<usize>, Vec<usize>) =
            (0..y.len()).partition(|i| i % folds.max(1) == fold);
        let from = if folds > 1 { &outside } else { &inside };
        let line = fit(x, y, ridge, from)?;
        inside.into_iter().for_each(|i| told[i] = line.at(x.row(i)));
    }
    Ok(told)
}
