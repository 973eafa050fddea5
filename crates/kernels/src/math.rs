//! Vector loops shared by the operations: exponentials, dot products, softmax.

use crate::simd::vectorised;

const LANES: usize = 16;

/// `e^x` by range reduction and a degree-6 polynomial: within 2 ulp for |x| < 87, 0 below, capped
/// above. Written without branches so that loops over it vectorise.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Cody–Waite split of ln 2; the high part has few enough bits that n·HI is exact.
    const LN2_HI: f32 = 355.0 / 512.0;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5·2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * LN2_HI) - n * LN2_LO;
    // Taylor coefficients of e^r on |r| ≤ ln2/2, highest first (error below 2e-8).
    let p = 1.388_888_9e-3;
    let p = p * r + 8.333_334e-3;
    let p = p * r + 4.166_666_7e-2;
    let p = p * r + 0.166_666_67;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    // The low bits of the rounded sum are those of n: no conversion, which would check its range.
    let scale = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    let y = p * scale;
    if x < -87.0 { 0.0 } else { y }
}

vectorised! {
    /// Σ a·b in sixteen fixed lanes.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        let n = a.len().min(b.len());
        let (a, b) = (&a[..n], &b[..n]);
        let mut lanes = [0f32; LANES];
        let (ac, bc) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        let rest: f32 = ac.remainder().iter().zip(bc.remainder()).map(|(x, y)| x * y).sum();
        for (x, y) in ac.zip(bc) {
            for l in 0..LANES {
                lanes[l] += x[l] * y[l];
            }
        }
        lanes.iter().sum::<f32>() + rest
    }
}

vectorised! {
    /// `y += a·x`.
    pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += a * x;
        }
    }
}

vectorised! {
    /// Largest element; −∞ for an empty slice.
    pub fn max(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let chunks = x.chunks_exact(LANES);
        let rest = chunks.remainder().iter().fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m });
        for c in chunks {
            for l in 0..LANES {
                lanes[l] = if c[l] > lanes[l] { c[l] } else { lanes[l] };
            }
        }
        lanes.iter().fold(rest, |m, v| if *v > m { *v } else { m })
    }
}

vectorised! {
    /// Replaces `x` by `e^(a·x − shift)` and returns the sum.
    pub fn exp_sum(x: &mut [f32], a: f32, shift: f32) -> f32 {
        let mut lanes = [0f32; LANES];
        let mut chunks = x.chunks_exact_mut(LANES);
        for c in &mut chunks {
            for l in 0..LANES {
                c[l] = exp(c[l] * a - shift);
                lanes[l] += c[l];
            }
        }
        let mut rest = 0f32;
        for v in chunks.into_remainder() {
            *v = exp(*v * a - shift);
            rest += *v;
        }
        lanes.iter().sum::<f32>() + rest
    }
}

vectorised! {
    /// `x *= a`.
    pub fn scale(x: &mut [f32], a: f32) {
        for v in x {
            *v *= a;
        }
    }
}

/// In-place softmax of one row.
pub fn softmax(x: &mut [f32]) {
    let shift = max(x);
    let sum = exp_sum(x, 1.0, shift);
    scale(x, 1.0 / sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        for i in -86_000..88_000 {
            let x = i as f32 / 1000.0;
            let want = f64::from(x).exp();
            let err = ((f64::from(exp(x)) - want) / want).abs();
            assert!(err < 2.4e-7, "exp({x}) off by {err:e}");
        }
        assert_eq!((exp(-100.0), exp(f32::NEG_INFINITY), exp(0.0)), (0.0, 0.0, 1.0));
    }

    #[test]
    fn lanes_agree_with_plain_sums_at_odd_lengths() {
        for n in [0, 1, 15, 16, 17, 100] {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..n).map(|i| (i as f32 * 0.11).cos()).collect();
            let want: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            assert!((f64::from(dot(&a, &b)) - want).abs() < 1e-5);
            let want = a.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&a), want);
        }
    }
}
