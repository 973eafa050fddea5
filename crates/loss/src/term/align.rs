//! The same answer to two phrasings of a prompt (Sun et al. 2024, paper 20): for soft prompts in front
//! of a frozen model, or whatever else learns.
//!
//! A pair of rows has one answer: after the reference phrasing, then after the paraphrase. Over the
//! target tokens, with weights `w`,
//!
//! `L = Σ w·[(1 − λ)·(−log P_para(y)) + λ·KL(P_ref ‖ P_para)] / Σ w`,
//!
//! both distributions given the tokens of `y` before. `P_ref` is a constant: with a gradient of its own
//! the model might agree on wrong answers. `align_on = "hidden"`: in place of KL, `1 − cos` of the
//! last residual streams (before the final norm) where the first token of the answer is predicted.
//!
//! **Departures**: (1) the paper does not say which of the two it aligned; distributions are the
//! default. (2) The one number of a pair with "hidden" counts as much as all its target tokens.

use candle_core::{DType, Device, Tensor};
use luthier_core::{Batch, Error, Logits, Result};
use serde::{Deserialize, Serialize};

use crate::{Log, Objective, Seen, Terms, Unit, apart::apart};

/// Tokens whose logits exist at a time: with 49 152 of them, 12 MB for each of four tables.
const PIECE: usize = 64;

/// `[train.loss.align]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Align {
    /// Share of the agreement with the reference; the rest is for the answer itself.
    pub lambda_kl: f64,
    /// What shall agree.
    pub align_on: AlignOn,
}

/// What of two phrasings shall agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlignOn {
    /// The distributions of every target token.
    #[default]
    Logits,
    /// The direction of the last residual stream where the answer begins.
    Hidden,
}

impl Default for Align {
    fn default() -> Self {
        Align { lambda_kl: 0.8, align_on: AlignOn::Logits }
    }
}

/// The target tokens of a batch's pairs.
#[derive(Default)]
struct Pairs {
    /// Where the reference predicts each.
    reference_m: Vec<u32>,
    /// Where the paraphrase does.
    paraphrase_m: Vec<u32>,
    targets_m: Vec<u32>,
    weights_m: Vec<f32>,
    /// Index among the above of each pair's first target token, and what the pair's tokens weigh.
    pairs: Vec<(usize, f32)>,
}

impl Pairs {
    fn of(batch: &Batch) -> Result<Self> {
        let mut pairs = Pairs::default();
        let b = batch.rows.b();
        if !b.is_multiple_of(2) {
            return Err(Error::failed("batch", format!("{b} rows are not pairs of phrasings")));
        }
        let trained = |row: usize| -> Vec<usize> {
            batch.rows.range(row).filter(|i| batch.weights_n[*i] != 0.0).collect()
        };
        for row in (0..b).step_by(2) {
            let (reference, paraphrase) = (trained(row), trained(row + 1));
            let told = |at: &[usize]| -> Vec<(u32, f32)> {
                at.iter().map(|i| (batch.targets_n[*i], batch.weights_n[*i])).collect()
            };
            let (told, of_reference) = (told(&paraphrase), told(&reference));
            if told != of_reference {
                let at = format!("example {}", batch.examples_b[row]);
                return Err(Error::failed(at, "its two phrasings have different target tokens"));
            }
            if told.is_empty() {
                continue;
            }
            pairs.pairs.push((pairs.targets_m.len(), told.iter().map(|(_, w)| w).sum()));
            pairs.reference_m.extend(reference.iter().map(|i| *i as u32));
            pairs.paraphrase_m.extend(paraphrase.iter().map(|i| *i as u32));
            pairs.targets_m.extend(told.iter().map(|(target, _)| target));
            pairs.weights_m.extend(told.iter().map(|(_, weight)| weight));
        }
        Ok(pairs)
    }

    fn weight(&self) -> f64 {
        self.weights_m.iter().map(|w| f64::from(*w)).sum()
    }
}

impl Objective for Align {
    fn check(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.lambda_kl) {
            return Ok(());
        }
        let what = format!("expected a share from 0 to 1, got {}", self.lambda_kl);
        Err(Error::input("train.loss.align.lambda_kl", what))
    }

    fn unit(&self) -> Unit {
        Unit::Phrasings
    }

    fn normaliser(&self, step: &[&Batch]) -> f64 {
        let paraphrases = |batch: &&Batch| -> f64 {
            let rows = (1..batch.rows.b()).step_by(2);
            let weights = rows.flat_map(|row| &batch.weights_n[batch.rows.range(row)]);
            weights.map(|w| f64::from(*w)).sum()
        };
        step.iter().map(paraphrases).sum()
    }

    fn terms(&self, seen: Seen) -> Result<Terms> {
        let Seen { out, batch, .. } = seen;
        let pairs = Pairs::of(batch)?;
        if pairs.targets_m.is_empty() {
            let sum = Tensor::zeros((), DType::F32, &Device::Cpu)?;
            return Ok(Terms { sum, logs: vec![Log { name: "nll", sum: 0.0, weight: 0.0 }] });
        }
        match self.align_on {
            AlignOn::Logits if self.lambda_kl > 0.0 => self.on_logits(out, &pairs),
            AlignOn::Hidden if self.lambda_kl > 0.0 => self.on_hidden(out, &pairs),
            _ => answers(out, &pairs, 1.0),
        }
    }
}

/// The answers after the paraphrases, without a look at the reference.
fn answers(out: &mut dyn Logits, pairs: &Pairs, share: f64) -> Result<Terms> {
    let logp_m = out.logp(&pairs.paraphrase_m, &pairs.targets_m)?;
    let told = pairs.weights_m.iter().zip(logp_m.to_vec1::<f32>()?);
    let total = told.map(|(w, logp)| -f64::from(*w) * f64::from(logp)).sum();
    let minus = pairs.weights_m.iter().map(|w| (-share * f64::from(*w)) as f32);
    let minus_m = Tensor::from_vec(minus.collect::<Vec<f32>>(), logp_m.dims1()?, logp_m.device())?;
    let sum = (logp_m * minus_m)?.sum_all()?;
    Ok(Terms { sum, logs: vec![Log { name: "nll", sum: total, weight: pairs.weight() }] })
}

impl Align {
    fn on_logits(&self, out: &mut dyn Logits, pairs: &Pairs) -> Result<Terms> {
        let (m, mut totals) = (pairs.targets_m.len(), [0.0; 2]);
        let shares = [1.0 - self.lambda_kl, self.lambda_kl];
        let sum = out.sum(m.div_ceil(PIECE), &mut |out, piece| {
            let range = piece * PIECE..m.min((piece + 1) * PIECE);
            let weights = &pairs.weights_m[range.clone()];
            let reference_cv = out.logits(&pairs.reference_m[range.clone()])?.detach();
            let paraphrase_cv = out.logits(&pairs.paraphrase_m[range.clone()])?;
            let both_c2 = apart(&paraphrase_cv, &pairs.targets_m[range.clone()], &reference_cv)?;
            let mut factors = Vec::with_capacity(2 * weights.len());
            for (w, both) in weights.iter().zip(both_c2.to_vec2::<f32>()?) {
                for ((total, share), number) in totals.iter_mut().zip(shares).zip(both) {
                    *total += f64::from(*w) * f64::from(number);
                    factors.push((share * f64::from(*w)) as f32);
                }
            }
            let factors_c2 = Tensor::from_vec(factors, (weights.len(), 2), both_c2.device())?;
            Ok((both_c2 * factors_c2)?.sum_all()?)
        })?;
        let weight = pairs.weight();
        let log = |name, sum| Log { name, sum, weight };
        Ok(Terms { sum, logs: vec![log("nll", totals[0]), log("kl", totals[1])] })
    }

    fn on_hidden(&self, out: &mut dyn Logits, pairs: &Pairs) -> Result<Terms> {
        let Terms { sum, mut logs } = answers(out, pairs, 1.0 - self.lambda_kl)?;
        let firsts = |of: &[u32]| pairs.pairs.iter().map(|(at, _)| of[*at]).collect::<Vec<u32>>();
        let reference_pd = out.hidden(&firsts(&pairs.reference_m))?.detach();
        let paraphrase_pd = out.hidden(&firsts(&pairs.paraphrase_m))?;
        let apart_p = (1.0 - cosine(&reference_pd, &paraphrase_pd)?)?;
        let weights: Vec<f32> = pairs.pairs.iter().map(|(_, weight)| *weight).collect();
        let weights_p = Tensor::from_vec(weights, pairs.pairs.len(), apart_p.device())?;
        let apart = (apart_p * weights_p)?.sum_all()?;
        let total = f64::from(apart.to_scalar::<f32>()?);
        logs.push(Log { name: "cosine_distance", sum: total, weight: pairs.weight() });
        Ok(Terms { sum: (sum + (apart * self.lambda_kl)?)?, logs })
    }
}

/// The cosine between each row of one and of the other.
fn cosine(a_pd: &Tensor, b_pd: &Tensor) -> Result<Tensor> {
    let length = |x_pd: &Tensor| x_pd.sqr()?.sum(1)?.sqrt();
    let lengths_p = (length(a_pd)? * length(b_pd)?)?;
    Ok(((a_pd * b_pd)?.sum(1)? / lengths_p)?)
}

#[cfg(test)]
mod tests {
    use luthier_core::Row;

    use super::*;

    fn row(tokens: &[u32], trained: usize, example: usize) -> Row {
        let weight = |i: usize| if i + trained >= tokens.len() { 1.0 } else { 0.0 };
        Row::from_tokens(tokens, &(0..tokens.len()).map(weight).collect::<Vec<f32>>(), example)
    }

    #[test]
    fn target_tokens_are_paired_whatever_stands_before_them() {
        let rows = [
            row(&[1, 2, 3, 8, 9], 2, 0),
            row(&[4, 8, 9], 2, 0),
            row(&[5, 6], 0, 1),
            row(&[5, 7], 0, 1),
            row(&[1, 7], 1, 2),
            row(&[2, 3, 7], 1, 2),
        ];
        let pairs = Pairs::of(&Batch::from_rows(&rows)).unwrap();
        assert_eq!(pairs.targets_m, [8, 9, 7]);
        assert_eq!((pairs.reference_m, pairs.paraphrase_m), (vec![2, 3, 8], vec![4, 5, 10]));
        assert_eq!(pairs.pairs, [(0, 2.0), (2, 1.0)]);
        let step = Batch::from_rows(&rows);
        assert_eq!(Align::default().normaliser(&[&step, &step]), 6.0);
    }

    #[test]
    fn rows_that_are_no_pairs_are_refused() {
        let one = row(&[1, 2, 3], 1, 0);
        let refused = |rows: &[Row]| Pairs::of(&Batch::from_rows(rows)).err().unwrap().to_string();
        assert!(refused(std::slice::from_ref(&one)).contains("1 rows are not pairs"));
        let error = refused(&[one.clone(), row(&[1, 2, 4], 1, 0)]);
        assert!(error.contains("example 0") && error.contains("different target"), "{error}");
        assert!(refused(&[one, row(&[1, 2, 3], 2, 0)]).contains("different target"));
    }

    #[test]
    fn shares_beyond_one_are_refused() {
        for lambda_kl in [-0.1, 1.1, f64::NAN] {
            let error = Align { lambda_kl, ..Align::default() }.check().unwrap_err();
            assert!(error.to_string().contains("train.loss.align.lambda_kl"), "{error}");
        }
        Align::default().check().unwrap();
    }
}
