//! Token-level negative log-likelihood and perplexity.
//!
//! `nll = Σ w · (−logp) / Σ w` over all tokens of all rows, `perplexity = exp(nll)`. With weights
//! of 0 and 1 this is the mean over the trained tokens, whatever rows they stand in. The summed
//! log-probability of a multiple choice is `−sum` of a row whose weights are 1 on the choice.

use std::borrow::Borrow;

use luthier_core::{Batch, Ctx, Error, Head, Logits, Policy, Result};
use serde::{Deserialize, Serialize};

use crate::stats::{Bootstrap, Interval, Score};

/// The metric, which has no options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nll {}

/// One row's likelihood.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowNll {
    /// Index of the example in its table.
    pub example: usize,
    /// Weighted sum of the tokens' negative log-probabilities.
    pub sum: f64,
    /// Sum of the token weights; the number of tokens when these are 0 and 1.
    pub weight: f64,
    /// Number of tokens with a non-zero weight.
    pub tokens: usize,
}

/// Likelihood of a set of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NllReport {
    /// Token-weighted mean negative log-likelihood, in nats.
    pub nll: f64,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// 95 % interval of the perplexity over resampled rows.
    pub ci95: [f64; 2],
    /// Mean over rows of each row's own mean.
    pub row_mean: f64,
    /// Number of rows.
    pub n: usize,
    /// Number of measured tokens.
    pub tokens: usize,
}

impl NllReport {
    /// Sums up rows; the bootstrap resamples whole rows, whose tokens depend on each other.
    pub fn from_rows(rows: &[RowNll], bootstrap: &Bootstrap) -> Result<Self> {
        let sums: Vec<f64> = rows.iter().map(|row| row.sum).collect();
        let weights: Vec<f64> = rows.iter().map(|row| row.weight).collect();
        let ci95 = bootstrap.ratio(&sums, &weights)?.map(f64::exp);
        let nll = sums.iter().sum::<f64>() / weights.iter().sum::<f64>();
        let row_mean = rows.iter().map(|row| row.sum / row.weight).sum::<f64>() / rows.len() as f64;
        let tokens = rows.iter().map(|row| row.tokens).sum();
        Ok(NllReport { nll, perplexity: nll.exp(), ci95, row_mean, n: rows.len(), tokens })
    }

    /// The perplexity in the form of every other metric.
    pub fn score(&self) -> Score {
        let (metric, interval) = ("perplexity".to_string(), Interval::Bootstrap);
        Score { metric, value: self.perplexity, n: self.n, ci95: self.ci95, interval }
    }
}

/// Positions that go through the head at a time, which bounds the logits of a model that stores
/// them (1024 rows of a 49 152-token vocabulary are 200 MB).
const HEAD_TOKENS: usize = 1024;

/// Measures every row of every batch, in order.
pub fn nll<B: Borrow<Batch>>(
    policy: &Policy,
    batches: impl IntoIterator<Item = B>,
) -> Result<Vec<RowNll>> {
    let mut rows = Vec::new();
    for batch in batches {
        let batch = batch.borrow();
        rows.extend(batch_nll(policy, batch)?);
    }
    Ok(rows)
}

fn batch_nll(policy: &Policy, batch: &Batch) -> Result<Vec<RowNll>> {
    let model = &*policy.model;
    batch.check_vocab(model.vocab())?;
    let index_m = batch.trained_m();
    let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
    ctx.weights_n = Some(&batch.weights_n);
    let h_nd = policy.hidden(&mut ctx)?;
    let mut head = Head { model, h_nd: &h_nd, ctx: &mut ctx };
    let mut logp_m: Vec<f32> = Vec::with_capacity(index_m.len());
    for chunk in index_m.chunks(HEAD_TOKENS) {
        let targets: Vec<u32> = chunk.iter().map(|i| batch.targets_n[*i as usize]).collect();
        logp_m.extend(head.logp(chunk, &targets)?.to_vec1::<f32>()?);
    }
    let mut measured = index_m.iter().zip(&logp_m).peekable();
    let mut rows = Vec::with_capacity(batch.rows.b());
    for (b, example) in batch.examples_b.iter().copied().enumerate() {
        let mut row = RowNll { example, sum: 0.0, weight: 0.0, tokens: 0 };
        let end = batch.rows.offsets[b + 1];
        while let Some((i, logp)) = measured.next_if(|(i, _)| (**i as usize) < end) {
            let weight = f64::from(batch.weights_n[*i as usize]);
            row.sum -= weight * f64::from(*logp);
            row.weight += weight;
            row.tokens += 1;
        }
        let at = format!("example {}", example + 1);
        if row.weight <= 0.0 {
            return Err(
                Error::input(at, "has no token to measure").hint("all of its token weights are 0")
            );
        }
        if !row.sum.is_finite() {
            return Err(Error::failed(at, format!("its log-likelihood is {}", -row.sum)));
        }
        rows.push(row);
    }
    Ok(rows)
}
