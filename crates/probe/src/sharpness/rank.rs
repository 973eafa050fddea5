//! Whether two rankings agree.

use luthier_core::{Error, Result, Seed};

use crate::stats::quantile;

/// Kendall's τ: pairs in the same order less pairs in the other one, over all pairs. A pair that is
/// equal on either side counts as neither.
pub fn kendall(a: &[f64], b: &[f64]) -> Result<f64> {
    let n = a.len();
    if n < 2 || b.len() != n {
        let what = format!("expected two rankings of the same things, got {n} and {}", b.len());
        return Err(Error::input("kendall", what));
    }
    let mut sum = 0.0;
    for i in 0..n {
        for j in 0..i {
            let (x, y) = (a[i] - a[j], b[i] - b[j]);
            sum += if x * y > 0.0 { 1.0 } else { -f64::from(u8::from(x * y < 0.0)) };
        }
    }
    Ok(sum / (n * (n - 1) / 2) as f64)
}

/// A 95 % interval of τ: the same for as many things drawn with replacement, again and again. A thing
/// drawn twice is no pair with itself.
pub fn kendall_interval(a: &[f64], b: &[f64], resamples: u64, seed: Seed) -> Result<[f64; 2]> {
    kendall(a, b)?;
    if resamples == 0 {
        return Err(Error::input("kendall", "expected at least 1 resample, got 0"));
    }
    let n = a.len();
    let one = |r: u64| {
        let mut rng = seed.at(r).rng();
        let drawn: Vec<usize> = (0..n).map(|_| rng.below(n)).collect();
        let (mut sum, mut pairs) = (0.0, 0.0);
        for (i, x) in drawn.iter().enumerate() {
            for y in drawn[..i].iter().filter(|y| *y != x) {
                let product = (a[*x] - a[*y]) * (b[*x] - b[*y]);
                sum += if product == 0.0 { 0.0 } else { product.signum() };
                pairs += 1.0;
            }
        }
        if pairs > 0.0 { sum / pairs } else { 0.0 }
    };
    let mut all: Vec<f64> = (0..resamples).map(one).collect();
    all.sort_by(f64::total_cmp);
    Ok([quantile(&all, 0.025), quantile(&all, 0.975)])
}
