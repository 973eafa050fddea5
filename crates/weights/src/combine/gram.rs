//! Inner products of whole tensors: for everything that asks for lengths and angles.
//!
//! The spherical methods are sums of their inputs whose weights depend on lengths and angles alone.
//! So one pass finds all inner products, the rest is arithmetic on a few numbers, and a second pass
//! writes the sum: `luthier` holds no unit vectors and no tangents.

use luthier_core::Result;

use crate::operands::{As, Cut, Work, dot};

/// Inner products of the inputs that are not the base, each with each.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gram {
    n: usize,
    dots: Vec<f64>,
}

impl Gram {
    /// In one pass over the operands.
    pub(crate) fn of(work: &Work<'_>, what: As) -> Result<Gram> {
        let n = work.others();
        let pieces =
            work.gather(Cut::Anywhere, what, |_, loaded| Ok(Gram::among(&loaded.others)))?;
        let none = Gram { n, dots: vec![0.0; n * n] };
        // In the order of the pieces, whichever thread was first.
        Ok(pieces.into_iter().fold(none, |mut sum, piece| {
            sum.dots.iter_mut().zip(&piece.dots).for_each(|(a, b)| *a += b);
            sum
        }))
    }

    /// Of vectors that are at hand.
    pub(crate) fn among(vectors: &[impl AsRef<[f32]>]) -> Gram {
        let n = vectors.len();
        let mut dots = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                let value = dot(vectors[i].as_ref(), vectors[j].as_ref());
                (dots[i * n + j], dots[j * n + i]) = (value, value);
            }
        }
        Gram { n, dots }
    }

    /// How many vectors.
    pub(crate) fn len(&self) -> usize {
        self.n
    }

    /// The inner product of two of them.
    pub(crate) fn dot(&self, i: usize, j: usize) -> f64 {
        self.dots[i * self.n + j]
    }

    /// Their lengths.
    pub(crate) fn norm(&self, i: usize) -> f64 {
        self.dot(i, i).sqrt()
    }

    /// The same of the vectors divided by `lengths`; one of length 0 becomes 0.
    pub(crate) fn divided(&self, lengths: &[f64]) -> Gram {
        let share = |i: usize| if lengths[i] == 0.0 { 0.0 } else { 1.0 / lengths[i] };
        let all = (0..self.n).flat_map(|i| (0..self.n).map(move |j| (i, j)));
        Gram { n: self.n, dots: all.map(|(i, j)| self.dot(i, j) * share(i) * share(j)).collect() }
    }

    /// The inner product of two sums `Σ a[i] · vector[i]` and `Σ b[j] · vector[j]`.
    pub(crate) fn between(&self, a: &[f64], b: &[f64]) -> f64 {
        let row = |i: usize| (0..self.n).map(|j| b[j] * self.dot(i, j)).sum::<f64>();
        (0..self.n).map(|i| a[i] * row(i)).sum()
    }

    /// The length of `Σ a[i] · vector[i]`.
    pub(crate) fn length(&self, a: &[f64]) -> f64 {
        self.between(a, a).max(0.0).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_measured_without_being_formed() {
        let vectors = [vec![1.0f32, 2.0, -1.0], vec![0.5, 0.0, 3.0]];
        let gram = Gram::among(&vectors);
        assert_eq!((gram.dot(0, 1), gram.dot(1, 0)), (-2.5, -2.5));
        let sum: Vec<f64> =
            (0..3).map(|i| 2.0 * f64::from(vectors[0][i]) - f64::from(vectors[1][i])).collect();
        let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        assert!((gram.length(&[2.0, -1.0]) - length).abs() < 1e-12);
        let units = gram.divided(&[gram.norm(0), gram.norm(1)]);
        assert!((units.dot(0, 0) - 1.0).abs() < 1e-12 && units.dot(0, 1).abs() < 1.0);
    }
}
