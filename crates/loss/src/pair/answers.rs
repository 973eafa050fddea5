//! What a policy says of whole answers, and the graph of anything that is charged for that.
//!
//! A charge is a function of one number for each row, its log-probability `Σ w · logp`. So the graph
//! it needs is one multiplication per token: with the derivative `g` of the charge by a row's
//! log-probability, `charge + Σ g · w · (logp − logp.detach())` has its value and its gradient.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use luthier_core::{Batch, Error, Logits, Result};

use super::{Answer, dual::Dual};
use crate::{Log, Terms};

/// Some rows of a batch and the log-probabilities of their target tokens.
pub(crate) struct Answers {
    logp_m: Tensor,
    weights_m: Vec<f32>,
    /// Of each row, where in the above its tokens lie.
    ranges: Vec<Range<usize>>,
    answers: Vec<Answer>,
}

/// Whether any target of these rows is trained.
pub(crate) fn counts(batch: &Batch, rows: Range<usize>) -> bool {
    let tokens = batch.rows.range(rows.start).start..batch.rows.range(rows.end - 1).end;
    batch.weights_n[tokens].iter().any(|w| *w != 0.0)
}

/// What a batch without anything to learn gives.
pub(crate) fn nothing() -> Result<Terms> {
    Ok(Terms { sum: Tensor::zeros((), DType::F32, &Device::Cpu)?, logs: Vec::new() })
}

impl Answers {
    /// Asks for `rows`, of which there is one at least that has a token.
    pub(crate) fn ask(out: &mut dyn Logits, batch: &Batch, rows: &[usize]) -> Result<Self> {
        let (mut index_m, mut targets_m, mut weights_m) = (Vec::new(), Vec::new(), Vec::new());
        let mut ranges = Vec::with_capacity(rows.len());
        for row in rows {
            let begin = index_m.len();
            for i in batch.rows.range(*row).filter(|i| batch.weights_n[*i] != 0.0) {
                index_m.push(i as u32);
                targets_m.push(batch.targets_n[i]);
                weights_m.push(batch.weights_n[i]);
            }
            ranges.push(begin..index_m.len());
        }
        let logp_m = out.logp(&index_m, &targets_m)?;
        let values: Vec<f32> = logp_m.to_vec1()?;
        let answer = |(row, range): (&usize, &Range<usize>)| {
            let weights = &weights_m[range.clone()];
            let logp: f64 =
                weights.iter().zip(&values[range.clone()]).map(|(w, l)| f64::from(w * l)).sum();
            Answer {
                logp: Dual::logp(logp, 0),
                reference: batch.references_b[*row],
                tokens: weights.iter().map(|w| f64::from(*w)).sum(),
            }
        };
        let answers = rows.iter().zip(&ranges).map(answer).collect();
        Ok(Answers { logp_m, weights_m, ranges, answers })
    }

    /// Row number `i` of those asked for, as the first (0) or second (1) variable of a formula.
    pub(crate) fn answer(&self, i: usize, side: usize) -> Answer {
        let answer = self.answers[i];
        Answer { logp: Dual::logp(answer.logp.v, side), ..answer }
    }

    /// How many tokens row number `i` has.
    pub(crate) fn tokens(&self, i: usize) -> usize {
        self.ranges[i].len()
    }

    /// A charge with its graph, from its value and its derivative by every row's log-probability.
    pub(crate) fn charge(&self, value: f64, slopes: &[f64]) -> Result<Tensor> {
        let mut slopes_m = vec![0f32; self.weights_m.len()];
        for (range, slope) in self.ranges.iter().zip(slopes) {
            for i in range.clone() {
                slopes_m[i] = (*slope as f32) * self.weights_m[i];
            }
        }
        let slopes_m = Tensor::from_vec(slopes_m, self.logp_m.dims1()?, self.logp_m.device())?;
        let moves = ((&self.logp_m - self.logp_m.detach())? * slopes_m)?.sum_all()?;
        Ok((moves + value)?)
    }
}

/// Adds a number to the log.
pub(crate) fn tell(logs: &mut Vec<Log>, name: &'static str, value: f64) {
    tell_weighted(logs, name, value, 1.0);
}

/// The same for a number that counts `weight`.
pub(crate) fn tell_weighted(logs: &mut Vec<Log>, name: &'static str, value: f64, weight: f64) {
    let sum = value * weight;
    match logs.iter_mut().find(|log| log.name == name) {
        Some(log) => (log.sum, log.weight) = (log.sum + sum, log.weight + weight),
        None => logs.push(Log { name, sum, weight }),
    }
}

/// The error for a batch that is not made of whole units.
pub(crate) fn torn(batch: &Batch, rows: usize) -> Result<()> {
    match batch.rows.b().is_multiple_of(rows) {
        true => Ok(()),
        false => {
            let what = format!("{} rows are not units of {rows}", batch.rows.b());
            Err(Error::failed("batch", what))
        }
    }
}
