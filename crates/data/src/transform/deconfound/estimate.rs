//! What known confounders add to an outcome: three ways of telling it from what the text does.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::linear::{Matrix, across_folds, fit, mean, r_squared};

/// How the confounders' part is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// Two-stage least squares: what instruments move of the confounders.
    Iv,
    /// Cross-fitted partial regression: what is left of both when the text has been accounted for.
    Partial,
    /// The outcome on the confounders alone: right only where these say nothing of the text.
    Marginal,
}

impl Estimator {
    /// As recipes write it.
    pub fn name(self) -> &'static str {
        match self {
            Estimator::Iv => "iv",
            Estimator::Partial => "partial",
            Estimator::Marginal => "marginal",
        }
    }
}

/// A log as numbers: one row for each text.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// What came of it.
    pub outcome: Vec<f64>,
    /// What moved it besides.
    pub confounders: Matrix,
    /// What moved that alone.
    pub instruments: Matrix,
    /// What the text is like.
    pub text: Matrix,
}

/// Below it an instrument says too little (Staiger and Stock 1997).
pub const LEAST_F: f64 = 10.0;

fn all(n: usize) -> Vec<usize> {
    (0..n).collect()
}

impl Log {
    /// What each confounder adds to the outcome, by unit.
    pub fn effects(&self, by: Estimator, folds: usize, ridge: f64) -> Result<Vec<f64>> {
        let rows = all(self.outcome.len());
        match by {
            Estimator::Marginal => Ok(fit(&self.confounders, &self.outcome, 0.0, &rows)?.slopes),
            Estimator::Iv => {
                let (given, moved) = (self.instruments.columns, self.confounders.columns);
                if given < moved {
                    let what = format!("{given} instruments cannot tell {moved} confounders apart");
                    return Err(Error::input("deconfound.instruments", what));
                }
                let told = (0..moved).map(|j| self.first_stage(j)).collect::<Result<Vec<_>>>()?;
                Ok(fit(&Matrix::of_columns(&told), &self.outcome, 0.0, &rows)?.slopes)
            }
            Estimator::Partial => {
                let left = |of: &[f64]| -> Result<Vec<f64>> {
                    let told = across_folds(&self.text, of, ridge, folds)?;
                    Ok(of.iter().zip(told).map(|(of, told)| of - told).collect())
                };
                let confounders = (0..self.confounders.columns)
                    .map(|j| left(&self.confounders.column(j)))
                    .collect::<Result<Vec<_>>>()?;
                let outcome = left(&self.outcome)?;
                Ok(fit(&Matrix::of_columns(&confounders), &outcome, 0.0, &rows)?.slopes)
            }
        }
    }

    /// What the instruments say of a confounder.
    fn first_stage(&self, confounder: usize) -> Result<Vec<f64>> {
        let of = self.confounders.column(confounder);
        let line = fit(&self.instruments, &of, 0.0, &all(of.len()))?;
        Ok((0..of.len()).map(|i| line.at(self.instruments.row(i))).collect())
    }

    /// The first stage's F for a confounder: how much more of it the instruments explain than chance.
    pub fn first_stage_f(&self, confounder: usize) -> Result<f64> {
        let of = self.confounders.column(confounder);
        let r2 = r_squared(&of, &self.first_stage(confounder)?);
        let (n, q) = (of.len() as f64, self.instruments.columns as f64);
        Ok((r2 / q) / ((1.0 - r2).max(f64::MIN_POSITIVE) / (n - q - 1.0).max(1.0)))
    }

    /// The outcome without what the confounders add, at its old mean of it.
    pub fn corrected(&self, effects: &[f64]) -> Vec<f64> {
        let added = |i: usize| {
            self.confounders.row(i).iter().zip(effects).map(|(c, by)| c * by).sum::<f64>()
        };
        let added: Vec<f64> = (0..self.outcome.len()).map(added).collect();
        let middle = mean(&added);
        self.outcome.iter().zip(added).map(|(y, added)| y - added + middle).collect()
    }

    /// How far the text gives the confounders away, and they the outcome.
    pub fn audit(&self, folds: usize, ridge: f64) -> Result<Audit> {
        let n = self.outcome.len();
        let line = fit(&self.confounders, &self.outcome, 0.0, &all(n))?;
        let told: Vec<f64> = (0..n).map(|i| line.at(self.confounders.row(i))).collect();
        let from_text = |j: usize| {
            let of = self.confounders.column(j);
            Ok(r_squared(&of, &across_folds(&self.text, &of, ridge, folds)?))
        };
        let alone = fit(&self.text, &self.outcome, ridge, &all(n))?.slopes;
        let both: Vec<Vec<f64>> = (0..self.text.columns)
            .map(|j| self.text.column(j))
            .chain((0..self.confounders.columns).map(|j| self.confounders.column(j)))
            .collect();
        let with = fit(&Matrix::of_columns(&both), &self.outcome, ridge, &all(n))?.slopes;
        let strengths = match self.instruments.columns {
            0 => Vec::new(),
            _ => (0..self.confounders.columns)
                .map(|j| self.first_stage_f(j))
                .collect::<Result<_>>()?,
        };
        Ok(Audit {
            outcome_by_confounders: r_squared(&self.outcome, &told),
            confounders_by_text: (0..self.confounders.columns)
                .map(from_text)
                .collect::<Result<_>>()?,
            first_stage_f: strengths,
            shifts: alone.iter().zip(with).map(|(alone, with)| with - alone).collect(),
        })
    }
}

/// How much there is to correct.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Audit {
    /// R² of the outcome on the confounders.
    pub outcome_by_confounders: f64,
    /// Cross-validated R² of each confounder on the text.
    pub confounders_by_text: Vec<f64>,
    /// F of each confounder on the instruments, where there are any.
    pub first_stage_f: Vec<f64>,
    /// By how much the coefficient of each text feature changes once the confounders are known.
    pub shifts: Vec<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(of: &[&[f64]]) -> Matrix {
        Matrix::of_columns(&of.iter().map(|c| c.to_vec()).collect::<Vec<_>>())
    }

    fn close(got: &[f64], want: &[f64], within: f64) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < within, "{got} {want}");
        }
    }

    #[test]
    fn a_wald_ratio_is_no_plain_slope() {
        let log = Log {
            outcome: vec![1.0, 2.0, 6.0, 7.0],
            confounders: columns(&[&[0.0, 1.0, 2.0, 3.0]]),
            instruments: columns(&[&[0.0, 0.0, 1.0, 1.0]]),
            text: Matrix::default(),
        };
        let by = |estimator| log.effects(estimator, 1, 0.0).unwrap();
        close(&by(Estimator::Iv), &[2.5], 1e-12);
        close(&by(Estimator::Marginal), &[2.2], 1e-12);
        // y − 2.5c is 1, −0.5, 1, −0.5; 3.75 is the mean of 2.5c.
        close(&log.corrected(&[2.5]), &[4.75, 3.25, 4.75, 3.25], 1e-12);
        close(&[log.first_stage_f(0).unwrap()], &[8.0], 1e-9);
        // Nothing is added, nothing is taken away; a constant does not change the differences.
        assert_eq!(log.corrected(&[0.0]), log.outcome);
    }

    #[test]
    fn partialling_out_gives_the_joint_coefficient() {
        let text =
            columns(&[&[1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0], &[0.3, 2.0, -1.0, 0.5, 0.0, 1.0, 4.0]]);
        let c = [0.2, 1.5, -0.7, 2.2, 0.9, -1.0, 3.0];
        let outcome = vec![1.0, 2.5, -3.0, 4.0, 0.5, 7.0, 2.0];
        let both = columns(&[&text.column(0), &text.column(1), &c]);
        let joint = fit(&both, &outcome, 0.0, &all(7)).unwrap();
        let log = Log { outcome, confounders: columns(&[&c]), text, ..Log::default() };
        close(&log.effects(Estimator::Partial, 1, 0.0).unwrap(), &joint.slopes[2..], 1e-12);
    }

    #[test]
    fn units_and_constants_leave_the_order_of_texts_alone() {
        let c: Vec<f64> = (0..40).map(|i| ((i * 7) % 11) as f64).collect();
        let z: Vec<f64> = c.iter().enumerate().map(|(i, c)| c + ((i * 5) % 3) as f64).collect();
        let outcome: Vec<f64> =
            c.iter().enumerate().map(|(i, c)| 2.0 * c + ((i * 3) % 7) as f64).collect();
        let log = |by: f64, plus: f64| Log {
            outcome: outcome.iter().map(|y| y + plus).collect(),
            confounders: columns(&[&c.iter().map(|c| c * by).collect::<Vec<_>>()]),
            instruments: columns(&[&z]),
            text: Matrix::default(),
        };
        let corrected = |log: &Log| log.corrected(&log.effects(Estimator::Iv, 5, 0.0).unwrap());
        let (one, other) = (corrected(&log(1.0, 0.0)), corrected(&log(60.0, 5.0)));
        let shifted: Vec<f64> = one.iter().map(|r| r + 5.0).collect();
        close(&other, &shifted, 1e-9);
    }

    #[test]
    fn too_few_instruments_and_columns_that_repeat_are_refused() {
        let log = Log {
            outcome: vec![1.0, 2.0, 6.0, 7.0],
            confounders: columns(&[&[0.0, 1.0, 2.0, 3.0], &[0.0, 2.0, 4.0, 6.0]]),
            instruments: columns(&[&[0.0, 0.0, 1.0, 1.0]]),
            text: Matrix::default(),
        };
        let error = |by| log.effects(by, 1, 0.0).unwrap_err().to_string();
        assert!(error(Estimator::Iv).contains("1 instruments cannot tell 2"));
        assert!(error(Estimator::Marginal).contains("say the same"));
    }
}
