//! FAIT (Fan et al. 2025, paper 25): the tokens that tell a right answer from a similar wrong one count
//! more, the more so the less the model tells them apart.
//!
//! A unit is two rows: the right answer and the wrong one. Targets are tagged where the two differ:
//! [`LINE`] in lines that differ, [`TOKEN`] where characters do. Before a step, without gradient,
//! `s` = the mean logp of an answer's differing tokens (of its differing lines where no token differs),
//! and
//!
//! `rho = sigmoid(s_wrong − s_right)`, or `min(1, e^(s_wrong − s_right))` (`"ratio"`), or 1 (`"static"`),
//! `w = weight·(1 + rho·(alpha_line·line + alpha_tok·token))`, `loss = Σ w·nll / Σ w` over right answers.
//!
//! `rho` is in the `label` of the right row ([`Fait::judge`] finds it, `train`'s `draw` puts it there);
//! where nobody judged, as in evaluation, it is 0 and the loss is plain cross-entropy. Wrong answers are
//! never learned from. With an alpha at 0 only lines, or only tokens, count.
//!
//! **Departures**: (1) the closed form of `w` is not public; this one has the limits that are
//! described. (2) Judged is before the step, all pairs of it, so that `Σ w` is known and any cut into
//! passes gives the same. (3) Nothing is executed here: that the wrong answer is wrong is for the data
//! to know.

use candle_core::{DType, Device, Tensor};
use luthier_core::{Batch, Error, Result};
use serde::{Deserialize, Serialize};

use crate::{Log, Objective, Seen, Terms, Unit};

/// The tag of a target in a line that the wrong answer has otherwise.
pub const LINE: u8 = 1;
/// The tag of a target with a character that the wrong answer has otherwise.
pub const TOKEN: u8 = 2;

const KEY: &str = "train.loss.fait";

/// `[train.loss.fait]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fait {
    /// Further weight of tokens in differing lines.
    pub alpha_line: f64,
    /// Further weight of differing tokens.
    pub alpha_tok: f64,
    /// How much of it counts.
    pub weight_mode: WeightMode,
    /// What the sum is divided by.
    pub loss_norm: LossNorm,
    /// Least similarity of a wrong answer, as Python's `difflib` has it; one that is further away says
    /// nothing of single tokens, and its example counts like any other.
    pub min_similarity: f64,
}

/// How much of the further weights counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightMode {
    /// As much as the model is likely to prefer the wrong answer.
    #[default]
    Dynamic,
    /// The ratio of the two probabilities, at most 1.
    Ratio,
    /// All of it, always.
    Static,
}

/// What the weighted sum is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossNorm {
    /// By the sum of the weights: the scale is that of plain cross-entropy.
    #[default]
    WeightSum,
    /// By what the tokens weigh without the further weights, which raises the learning rate.
    TokenCount,
}

impl Default for Fait {
    fn default() -> Self {
        Fait {
            alpha_line: 2.0,
            alpha_tok: 2.0,
            weight_mode: WeightMode::Dynamic,
            loss_norm: LossNorm::WeightSum,
            min_similarity: 0.6,
        }
    }
}

/// Tells log-probabilities: of tokens of a batch, the targets there.
pub type Ask<'a> = dyn FnMut(&[u32], &[u32]) -> Result<Vec<f32>> + 'a;

impl Fait {
    /// The share of the further weights, from the mean logp of what differs in the right and in the
    /// wrong answer.
    pub fn rho(&self, right: f64, wrong: f64) -> f64 {
        match self.weight_mode {
            WeightMode::Dynamic => 1.0 / (1.0 + (right - wrong).exp()),
            WeightMode::Ratio => (wrong - right).exp().min(1.0),
            WeightMode::Static => 1.0,
        }
    }

    /// What a tag multiplies a target's weight by.
    pub fn factor(&self, rho: f64, tag: u8) -> f64 {
        let on = |bit: u8, alpha: f64| if tag & bit != 0 { alpha } else { 0.0 };
        1.0 + rho * (on(LINE, self.alpha_line) + on(TOKEN, self.alpha_tok))
    }

    /// The share of the further weights for every pair of rows; a pair without a difference has 0.
    /// `ask` tells the log-probabilities of targets at tokens; nobody is asked where it changes nothing.
    pub fn judge(&self, ask: &mut Ask, batch: &Batch) -> Result<Vec<f64>> {
        let pairs = pairs(batch)?;
        let differing: Vec<Vec<u32>> = (0..2 * pairs).map(|row| differing(batch, row)).collect();
        let index_m = differing.concat();
        if index_m.is_empty() {
            return Ok(vec![0.0; pairs]);
        }
        if self.weight_mode == WeightMode::Static {
            let told = differing.chunks_exact(2);
            return Ok(told.map(|of| f64::from(u8::from(!of[0].is_empty()))).collect());
        }
        let targets_m: Vec<u32> = index_m.iter().map(|i| batch.targets_n[*i as usize]).collect();
        let mut logps = ask(&index_m, &targets_m)?.into_iter();
        let mut mean = |of: &[u32]| {
            let sum: f64 = logps.by_ref().take(of.len()).map(f64::from).sum();
            sum / of.len() as f64
        };
        let mut rho = Vec::with_capacity(pairs);
        for of in differing.chunks_exact(2) {
            let (right, wrong) = (mean(&of[0]), mean(&of[1]));
            rho.push(match (of[0].is_empty(), of[1].is_empty()) {
                (true, _) => 0.0,
                // Nothing to compare with: neither is preferred.
                (_, true) => self.rho(0.0, 0.0),
                _ => self.rho(right, wrong),
            });
        }
        Ok(rho)
    }

    /// The weight of every target; those of wrong answers have none.
    fn weights_n(&self, batch: &Batch) -> Vec<f64> {
        let mut weights_n = vec![0.0; batch.n()];
        for row in (0..batch.rows.b()).step_by(2) {
            for i in batch.rows.range(row) {
                let factor = self.factor(batch.labels_b[row], batch.tags_n[i]);
                weights_n[i] = f64::from(batch.weights_n[i]) * factor;
            }
        }
        weights_n
    }
}

/// How many pairs of rows a batch is made of.
fn pairs(batch: &Batch) -> Result<usize> {
    match batch.rows.b() {
        b if b.is_multiple_of(2) => Ok(b / 2),
        b => Err(Error::failed("batch", format!("{b} rows are no pairs of answers"))),
    }
}

/// The differing tokens of a row, or the tokens of its differing lines.
fn differing(batch: &Batch, row: usize) -> Vec<u32> {
    let with = |bit: u8| -> Vec<u32> {
        let tagged = batch.rows.range(row).filter(|i| batch.tags_n[*i] & bit != 0);
        tagged.map(|i| i as u32).collect()
    };
    match with(TOKEN) {
        none if none.is_empty() => with(LINE),
        tokens => tokens,
    }
}

impl Objective for Fait {
    fn check(&self) -> Result<()> {
        for (key, alpha) in [("alpha_line", self.alpha_line), ("alpha_tok", self.alpha_tok)] {
            if !(alpha.is_finite() && alpha >= 0.0) {
                let what = format!("expected a number from 0 up, got {alpha}");
                return Err(Error::input(format!("{KEY}.{key}"), what));
            }
        }
        if !(0.0..=1.0).contains(&self.min_similarity) {
            let what = format!("expected a share from 0 to 1, got {}", self.min_similarity);
            return Err(Error::input(format!("{KEY}.min_similarity"), what));
        }
        Ok(())
    }

    fn unit(&self) -> Unit {
        Unit::Variants { min_similarity: self.min_similarity }
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        let of = |batch: &&Batch| -> f64 {
            match self.loss_norm {
                LossNorm::WeightSum => self.weights_n(batch).iter().sum(),
                LossNorm::TokenCount => {
                    let right = (0..batch.rows.b()).step_by(2);
                    let weights = right.flat_map(|row| &batch.weights_n[batch.rows.range(row)]);
                    weights.map(|w| f64::from(*w)).sum()
                }
            }
        };
        step.iter().map(of).sum()
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        let Seen { out, batch, .. } = seen;
        let pairs = pairs(batch)?;
        let weights_n = self.weights_n(batch);
        let trained = |i: &u32| weights_n[*i as usize] != 0.0;
        let index_m: Vec<u32> = (0..batch.n() as u32).filter(trained).collect();
        if index_m.is_empty() {
            let sum = Tensor::zeros((), DType::F32, &Device::Cpu)?;
            return Ok(Terms { sum, logs: vec![Log { name: "nll", sum: 0.0, weight: 0.0 }] });
        }
        let targets_m: Vec<u32> = index_m.iter().map(|i| batch.targets_n[*i as usize]).collect();
        let minus: Vec<f32> = index_m.iter().map(|i| -(weights_n[*i as usize] as f32)).collect();
        let logp_m = out.logp(&index_m, &targets_m)?.to_dtype(DType::F32)?;
        let sum =
            (&logp_m * Tensor::from_vec(minus, index_m.len(), logp_m.device())?)?.sum_all()?;
        let (mut nll, mut weight) = (0.0, 0.0);
        for (i, logp) in index_m.iter().zip(logp_m.to_vec1::<f32>()?) {
            let own = f64::from(batch.weights_n[*i as usize]);
            (nll, weight) = (nll - own * f64::from(logp), weight + own);
        }
        let mut logs = vec![Log { name: "nll", sum: nll, weight }];
        let told = (0..pairs).filter(|pair| !differing(batch, 2 * pair).is_empty());
        let rho: Vec<f64> = told.map(|pair| batch.labels_b[2 * pair]).collect();
        logs.push(Log { name: "rho", sum: rho.iter().sum(), weight: rho.len() as f64 });
        Ok(Terms { sum, logs })
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Row;
    use luthier_testkit::Said;

    use super::*;

    #[test]
    fn weights_are_those_of_the_papers_facts() {
        let fait = Fait::default();
        let (line, both) = (LINE, LINE | TOKEN);
        let even = fait.rho(-1.3, -1.3);
        assert_eq!(even, 0.5);
        assert_eq!([0, line, both].map(|tag| fait.factor(even, tag)), [1.0, 2.0, 3.0]);
        // Sure of the right one, and of the wrong one.
        for (right, wrong, rho, weight) in [(0.9f64, 0.1f64, 0.1, 1.4), (0.1, 0.9, 0.9, 4.6)] {
            let found = fait.rho(right.ln(), wrong.ln());
            assert!(
                (found - rho).abs() < 1e-12 && (fait.factor(found, both) - weight).abs() < 1e-9
            );
        }
        let ratio = Fait { weight_mode: WeightMode::Ratio, ..Fait::default() };
        assert_eq!(ratio.rho(-2.0, -1.0), 1.0);
        assert!((ratio.rho(-1.0, -2.0) - (-1f64).exp()).abs() < 1e-12);
        let fixed = Fait { weight_mode: WeightMode::Static, ..Fait::default() };
        assert_eq!(fixed.factor(fixed.rho(-1.0, -9.0), both), 5.0);
        let none = Fait { alpha_line: 0.0, alpha_tok: 0.0, ..Fait::default() };
        assert_eq!(none.factor(0.9, both), 1.0);
    }

    fn row(tags: &[u8], weight: f32, label: f64) -> Row {
        Row {
            ids: vec![0; tags.len()],
            targets: vec![0; tags.len()],
            weights: vec![weight; tags.len()],
            tags: tags.to_vec(),
            label,
            ..Row::default()
        }
    }

    #[test]
    fn differing_tokens_are_judged_and_lines_where_none_differs() {
        let rows = [
            row(&[0, 1, 3], 1.0, 0.0),
            row(&[0, 1], 0.0, 0.0),
            row(&[0, 0], 1.0, 0.0),
            row(&[0], 0.0, 0.0),
            row(&[1, 1], 1.0, 0.0),
            row(&[0], 0.0, 0.0),
        ];
        let batch = Batch::from_rows(&rows);
        let said = [-9.0, -9.0, -1.0, -9.0, -3.0, -9.0, -9.0, -9.0, -9.0, -9.0, -9.0];
        let ask = &mut |index_m: &[u32], _: &[u32]| {
            Ok(index_m.iter().map(|i| said[*i as usize]).collect())
        };
        let rho = Fait::default().judge(ask, &batch).unwrap();
        // sigmoid(−3 − (−1)); nothing differs; nothing to compare with.
        assert!((rho[0] - 1.0 / (1.0 + 2f64.exp())).abs() < 1e-7, "{rho:?}");
        assert_eq!(rho[1..], [0.0, 0.5]);
        let fixed = Fait { weight_mode: WeightMode::Static, ..Fait::default() };
        let nobody = &mut |_: &[u32], _: &[u32]| Err(Error::failed("logp", "nobody should ask"));
        assert_eq!(fixed.judge(nobody, &batch).unwrap(), [1.0, 0.0, 1.0]);
        let odd = Batch::from_rows(&rows[..3]);
        assert!(fixed.judge(nobody, &odd).unwrap_err().to_string().contains("3 rows"));
    }

    #[test]
    fn equal_losses_give_that_loss_for_any_weights() {
        let batch = Batch::from_rows(&[row(&[0, 1, 3, 3], 0.5, 0.7), row(&[3, 3], 0.0, 0.0)]);
        let step = crate::Totals::of([&batch]);
        let loss = |fait: &Fait| {
            let mut said = Said(Tensor::new(&[-1.75f32; 6], &Device::Cpu).unwrap());
            let seen = Seen { out: &mut said, teacher: None, batch: &batch, step: &step };
            let sum = fait.terms(seen).unwrap().sum.to_scalar::<f32>().unwrap();
            f64::from(sum) / fait.normaliser(&[&batch])
        };
        assert!((loss(&Fait::default()) - 1.75).abs() < 1e-6);
        // Weights 1, 2.4, 3.8 and 3.8 of four tokens.
        let count = Fait { loss_norm: LossNorm::TokenCount, ..Fait::default() };
        assert!((loss(&count) - 1.75 * 11.0 / 4.0).abs() < 1e-5);
    }

    #[test]
    fn settings_that_cannot_be_meant_are_refused_by_their_key() {
        for (fait, key) in [
            (Fait { alpha_line: -1.0, ..Fait::default() }, "alpha_line"),
            (Fait { alpha_tok: f64::NAN, ..Fait::default() }, "alpha_tok"),
            (Fait { min_similarity: 1.5, ..Fait::default() }, "min_similarity"),
        ] {
            let error = fait.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{KEY}.{key}: ")), "{error}");
        }
    }
}
