//! Comparing tensors so that a failure says where.

use std::fmt;

use candle_core::{DType, Tensor};

/// How far two tensors of one shape are apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Largest `|got − want|`; infinite where one is not finite and the other differs.
    pub abs: f64,
    /// `abs` over the largest finite `|want|`.
    pub rel: f64,
    /// Index of the worst element.
    pub at: Vec<usize>,
    /// Its two values: got, want.
    pub values: (f64, f64),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (got, want) = self.values;
        write!(
            f,
            "worst at {:?}: got {got:e}, want {want:e}, apart by {:.3e} ({:.3e} of the largest)",
            self.at, self.abs, self.rel
        )
    }
}

fn numbers(name: &str, tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.flatten_all().and_then(|t| t.to_dtype(DType::F64)?.to_vec1::<f64>());
    flat.unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The largest difference of two tensors, relative to the largest element of `want`.
///
/// Relative to the largest and not to each element: an element that is nearly 0 among large ones
/// carries their rounding error. Equal infinities are equal; NaN equals nothing.
///
/// # Panics
/// When the shapes differ.
pub fn difference(name: &str, got: &Tensor, want: &Tensor) -> Difference {
    assert_eq!(got.dims(), want.dims(), "{name}: shapes differ (got, want)");
    let (a, b) = (numbers(name, got), numbers(name, want));
    let largest = b.iter().filter(|x| x.is_finite()).fold(0f64, |m, x| m.max(x.abs()));
    let mut worst = (0usize, 0f64);
    for (i, (x, y)) in a.iter().zip(&b).enumerate() {
        let apart = if x == y { 0.0 } else { (x - y).abs() };
        let apart = if apart.is_nan() { f64::INFINITY } else { apart };
        if apart > worst.1 {
            worst = (i, apart);
        }
    }
    let (mut at, mut rest) = (vec![0; want.rank()], worst.0);
    for (axis, size) in want.dims().iter().enumerate().rev() {
        at[axis] = rest % size.max(&1);
        rest /= size.max(&1);
    }
    let value = |v: &[f64]| v.get(worst.0).copied().unwrap_or(0.0);
    let rel = if worst.1 == 0.0 { 0.0 } else { worst.1 / largest };
    Difference { abs: worst.1, rel, at, values: (value(&a), value(&b)) }
}

/// Asserts `max|got − want| ≤ rel · max|want| + abs`.
///
/// # Panics
/// When they are farther apart, naming the worst element.
#[track_caller]
pub fn assert_close(name: &str, got: &Tensor, want: &Tensor, rel: f64, abs: f64) {
    let found = difference(name, got, want);
    let largest = if found.rel > 0.0 { found.abs / found.rel } else { 0.0 };
    let largest = if largest.is_finite() { largest } else { 0.0 };
    let allowed = rel * largest + abs;
    assert!(found.abs <= allowed, "{name}: {found}; allowed {allowed:.3e}");
}

/// Asserts that two tensors have the same shape, type and bits (NaN equals the same NaN).
///
/// # Panics
/// At the first element that differs.
#[track_caller]
pub fn assert_same_bits(name: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.dims(), want.dims(), "{name}: shapes differ (got, want)");
    assert_eq!(got.dtype(), want.dtype(), "{name}: types differ (got, want)");
    // Widening to f64 keeps every bit of information of the types a test uses, 0 signs included.
    let (a, b) = (numbers(name, got), numbers(name, want));
    let differ = a.iter().zip(&b).position(|(x, y)| x.to_bits() != y.to_bits());
    if let Some(i) = differ {
        panic!("{name}: element {i} of {} differs: got {:e}, want {:e}", a.len(), a[i], b[i]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn t(rows: [[f32; 2]; 2]) -> Tensor {
        Tensor::new(&rows, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_worst_element_is_named() {
        let found = difference("t", &t([[1.0, 2.0], [3.5, -4.0]]), &t([[1.0, 2.1], [3.0, -4.0]]));
        assert_eq!((found.at.as_slice(), found.values), (&[1, 0][..], (3.5, 3.0)));
        assert_eq!((found.abs, found.rel), (0.5, 0.125));
    }

    #[test]
    fn infinities_and_nan() {
        let inf = f32::NEG_INFINITY;
        let masked = t([[1.0, inf], [inf, 2.0]]);
        assert_eq!(difference("t", &masked, &masked).abs, 0.0);
        let one_finite = t([[1.0, inf], [0.0, 2.0]]);
        assert_eq!(difference("t", &one_finite, &masked).abs, f64::INFINITY);
        let nan = t([[f32::NAN, inf], [inf, 2.0]]);
        assert_eq!(difference("t", &nan, &masked).abs, f64::INFINITY);
        assert_same_bits("t", &nan, &nan);
    }

    #[test]
    #[should_panic(expected = "worst at [0, 1]")]
    fn close_is_relative_to_the_largest() {
        let want = t([[0.0, 100.0], [0.0, 0.0]]);
        assert_close("ok", &t([[0.009, 100.0], [0.0, 0.0]]), &want, 1e-4, 0.0);
        assert_close("bad", &t([[0.0, 100.02], [0.0, 0.0]]), &want, 1e-4, 0.0);
    }

    #[test]
    #[should_panic(expected = "apart")]
    fn nothing_is_close_to_an_unexpected_nan() {
        let want = t([[0.0, 1.0], [0.0, 0.0]]);
        assert_close("nan", &t([[f32::NAN, 1.0], [0.0, 0.0]]), &want, 1.0, 1.0);
    }

    #[test]
    #[should_panic(expected = "element 1 of 4")]
    fn zeros_of_both_signs_are_different_bits() {
        assert_same_bits("t", &t([[1.0, 0.0], [0.0, 0.0]]), &t([[1.0, -0.0], [0.0, 0.0]]));
    }
}
