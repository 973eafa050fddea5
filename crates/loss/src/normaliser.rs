//! What a sum over tokens is divided by, and so what counts the same: a token, a row, or nothing at all.

use luthier_core::{Batch, Error, Result};
use serde::{Deserialize, Serialize};

/// The unit that counts 1. In a recipe `"token"`, `"sequence"`, `"batch"` or `{ constant = 512 }`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normaliser {
    /// Every unit of token weight: `Σ w · t / Σ |w|`. What pushes away counts as much as what draws near.
    #[default]
    Token,
    /// Every row with a trained token: the mean over rows of `Σ w · t / Σ |w|` within the row.
    Sequence,
    /// The same rows, but a row is the sum of its tokens: `Σ w · t / rows`.
    Batch,
    /// A number of the user's, whatever a step holds: `Σ w · t / N`. A step of twice the tokens moves
    /// twice as far.
    Constant(f64),
}

impl Normaliser {
    /// Refuses a constant that nothing can be divided by; `at` is the key it was given for.
    pub fn check(self, at: &str) -> Result<()> {
        match self {
            Normaliser::Constant(n) if !(n.is_finite() && n > 0.0) => {
                let what = format!("expected a positive number to divide by, got {n}");
                Err(Error::input(format!("{at}.constant"), what)
                    .hint("for example the tokens that a step usually trains"))
            }
            _ => Ok(()),
        }
    }

    /// The denominator of a step; 0 where nothing is trained.
    pub fn total(self, step: &[&Batch]) -> f64 {
        let rows = || step.iter().map(|b| trained_rows(b).count() as f64).sum::<f64>();
        match self {
            Normaliser::Token => step.iter().map(|b| weight(&b.weights_n)).sum(),
            Normaliser::Sequence | Normaliser::Batch => rows(),
            Normaliser::Constant(n) if rows() > 0.0 => n,
            Normaliser::Constant(_) => 0.0,
        }
    }

    /// What each token's term is multiplied by in the numerator; 0 exactly where its weight is 0.
    pub fn coefficients_n(self, batch: &Batch) -> Result<Vec<f32>> {
        let mut weights_n = batch.weights_n.clone();
        if self != Normaliser::Sequence {
            return Ok(weights_n);
        }
        for row in trained_rows(batch) {
            let weights = &mut weights_n[batch.rows.range(row)];
            let total = weight(weights);
            if !total.is_finite() {
                let at = format!("example {}", batch.examples_b[row]);
                let what = format!("its token weights sum to {total}, which has no mean");
                return Err(Error::input(at, what));
            }
            weights.iter_mut().for_each(|w| *w = (f64::from(*w) / total) as f32);
        }
        Ok(weights_n)
    }
}

/// How much tokens of these weights count, which may be negative, in all.
pub(crate) fn weight(weights: &[f32]) -> f64 {
    weights.iter().map(|w| f64::from(w.abs())).sum()
}

fn trained_rows(batch: &Batch) -> impl Iterator<Item = usize> {
    (0..batch.rows.b()).filter(|i| batch.weights_n[batch.rows.range(*i)].iter().any(|w| *w != 0.0))
}

#[cfg(test)]
mod tests {
    use luthier_core::Row;

    use super::*;

    fn batch() -> Batch {
        let row = |weights: &[f32], example| Row {
            ids: vec![0; weights.len()],
            targets: vec![0; weights.len()],
            weights: weights.to_vec(),
            example,
            ..Row::default()
        };
        Batch::from_rows([&row(&[1.0, 0.0, 3.0], 0), &row(&[0.0, 0.0], 1), &row(&[0.5], 2)])
    }

    #[test]
    fn a_token_or_a_row_counts_one() {
        let batch = batch();
        assert_eq!(Normaliser::Token.coefficients_n(&batch).unwrap(), batch.weights_n);
        assert_eq!(
            Normaliser::Sequence.coefficients_n(&batch).unwrap(),
            [0.25, 0.0, 0.75, 0.0, 0.0, 1.0]
        );
        for plain in [Normaliser::Batch, Normaliser::Constant(3.5)] {
            assert_eq!(plain.coefficients_n(&batch).unwrap(), batch.weights_n);
        }
        let step = [&batch, &batch];
        assert_eq!(Normaliser::Token.total(&step), 9.0);
        assert_eq!(Normaliser::Sequence.total(&step), 4.0);
        assert_eq!(Normaliser::Batch.total(&step), 4.0);
        assert_eq!(Normaliser::Constant(3.5).total(&step), 3.5);
        let mut nothing = batch.clone();
        nothing.weights_n.fill(0.0);
        assert_eq!(Normaliser::Constant(3.5).total(&[&nothing]), 0.0);
    }

    #[test]
    fn a_negative_weight_counts_by_its_size() {
        let mut batch = batch();
        batch.weights_n = vec![1.0, 0.0, -3.0, 0.0, 0.0, -0.5];
        assert_eq!(Normaliser::Token.total(&[&batch]), 4.5);
        assert_eq!(
            Normaliser::Sequence.coefficients_n(&batch).unwrap(),
            [0.25, 0.0, -0.75, 0.0, 0.0, -1.0]
        );
        // Weights that cancel still are a step of two rows.
        batch.weights_n = vec![1.0, 0.0, -1.0, 0.0, 0.0, 0.0];
        assert_eq!(Normaliser::Token.total(&[&batch]), 2.0);
        assert_eq!(Normaliser::Batch.total(&[&batch]), 1.0);
    }

    #[test]
    fn nothing_is_divided_by_what_is_not_positive() {
        for n in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = Normaliser::Constant(n).check("train.loss.nll.normaliser").unwrap_err();
            assert!(
                error.to_string().starts_with("train.loss.nll.normaliser.constant: "),
                "{error}"
            );
        }
        Normaliser::Constant(512.0).check("").unwrap();
    }

    #[test]
    fn a_row_without_a_mean_is_named() {
        let mut batch = batch();
        batch.weights_n = vec![1.0, 0.0, f32::NAN, 0.0, 0.0, 1.0];
        let err = Normaliser::Sequence.coefficients_n(&batch).unwrap_err();
        assert!(err.to_string().starts_with("example 0: "), "{err}");
        assert_eq!(err.exit_code(), 2);
    }
}
