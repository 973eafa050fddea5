//! A better and a worse answer to one prompt: two neighbouring rows, and what is charged for them.
//!
//! What an objective says of a pair is a function of two numbers, the log-probabilities of its
//! answers, `Σ w · logp` over the target tokens of each. So the graph it needs is one multiplication
//! per token: with the derivative `g` of the charge by its row's log-probability,
//! `charge + Σ g · w · (logp − logp.detach())` has the charge's value and its gradient.

use candle_core::{DType, Device, Tensor};
use luthier_core::{Batch, Error, Logits, Result};

use crate::{Log, Terms};

pub mod dual;

use dual::Dual;

/// An answer of a pair.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// Its log-probability.
    pub logp: Dual,
    /// What the reference says of it; 0 where there is none.
    pub reference: f64,
    /// Units of weight among its tokens: how many there are, where all count the same.
    pub tokens: f64,
}

impl Answer {
    /// By how much more probable it is than the reference says.
    pub fn log_ratio(&self) -> Dual {
        self.logp - self.reference
    }

    /// The same for a token of it.
    pub fn per_token(&self, of: Dual) -> Dual {
        of * (1.0 / self.tokens.max(1.0))
    }
}

/// What a pair costs, and what the log says of it.
pub struct Charge {
    /// The cost.
    pub cost: Dual,
    /// What chosen and rejected answer earn.
    pub rewards: [f64; 2],
    /// Further numbers for the log.
    pub more: Vec<(&'static str, f64)>,
}

/// The target tokens of the pairs of a batch.
struct Tokens {
    index_m: Vec<u32>,
    targets_m: Vec<u32>,
    weights_m: Vec<f32>,
    /// Where in the above the two answers of each pair end, and its first row.
    pairs: Vec<([usize; 2], usize)>,
}

impl Tokens {
    fn of(batch: &Batch) -> Result<Self> {
        let b = batch.rows.b();
        if !b.is_multiple_of(2) {
            return Err(Error::failed("batch", format!("{b} rows are not pairs of answers")));
        }
        let mut all = Tokens {
            index_m: Vec::new(),
            targets_m: Vec::new(),
            weights_m: Vec::new(),
            pairs: Vec::new(),
        };
        for row in (0..b).step_by(2) {
            if !counts(batch, row) {
                continue;
            }
            let mut ends = [0; 2];
            for (side, end) in ends.iter_mut().enumerate() {
                let before = all.index_m.len();
                for i in batch.rows.range(row + side).filter(|i| batch.weights_n[*i] != 0.0) {
                    all.index_m.push(i as u32);
                    all.targets_m.push(batch.targets_n[i]);
                    all.weights_m.push(batch.weights_n[i]);
                }
                *end = all.index_m.len();
                if *end == before {
                    let which = ["chosen", "rejected"][side];
                    let at = format!("example {}", batch.examples_b[row]);
                    return Err(Error::failed(at, format!("its {which} answer has no token")));
                }
            }
            all.pairs.push((ends, row));
        }
        Ok(all)
    }
}

/// Whether the pair that begins at a row has anything to learn.
fn counts(batch: &Batch, row: usize) -> bool {
    let both = batch.rows.range(row).start..batch.rows.range(row + 1).end;
    batch.weights_n[both].iter().any(|w| *w != 0.0)
}

/// How many pairs of a step there are to learn from.
pub fn number(step: &[&Batch]) -> f64 {
    let of = |batch: &&Batch| {
        (0..batch.rows.b() / 2).filter(|pair| counts(batch, 2 * pair)).count() as f64
    };
    step.iter().map(of).sum()
}

/// The sum of what the pairs of a batch cost, given chosen and rejected answer.
pub fn charge(
    out: &mut dyn Logits,
    batch: &Batch,
    of: &dyn Fn(&Answer, &Answer) -> Charge,
) -> Result<Terms> {
    let tokens = Tokens::of(batch)?;
    if tokens.pairs.is_empty() {
        return Ok(Terms { sum: Tensor::zeros((), DType::F32, &Device::Cpu)?, logs: Vec::new() });
    }
    let logp_m = out.logp(&tokens.index_m, &tokens.targets_m)?;
    let values: Vec<f32> = logp_m.to_vec1()?;
    let (mut total, mut slopes, mut begin) = (0.0, Vec::with_capacity(values.len()), 0);
    let mut logs: Vec<Log> = Vec::new();
    for (ends, row) in &tokens.pairs {
        let ranges = [begin..ends[0], ends[0]..ends[1]];
        let answer = |side: usize| {
            let range = ranges[side].clone();
            let weights = &tokens.weights_m[range.clone()];
            let logp = weights.iter().zip(&values[range]).map(|(w, l)| f64::from(w * l)).sum();
            Answer {
                logp: Dual::logp(logp, side),
                reference: batch.references_b[row + side],
                tokens: weights.iter().map(|w| f64::from(*w)).sum(),
            }
        };
        let (chosen, rejected) = (answer(0), answer(1));
        let Charge { cost, rewards, more } = of(&chosen, &rejected);
        total += cost.v;
        for (side, range) in ranges.into_iter().enumerate() {
            slopes.extend(tokens.weights_m[range].iter().map(|w| (cost.d[side] as f32) * w));
        }
        begin = ends[1];
        let [better, worse] = rewards;
        let told = [
            ("rewards/chosen", better),
            ("rewards/rejected", worse),
            ("rewards/accuracies", f64::from(u8::from(better > worse))),
            ("rewards/margins", better - worse),
            ("logps/chosen", chosen.logp.v),
            ("logps/rejected", rejected.logp.v),
        ];
        for (name, value) in told.into_iter().chain(more) {
            match logs.iter_mut().find(|log| log.name == name) {
                Some(log) => (log.sum, log.weight) = (log.sum + value, log.weight + 1.0),
                None => logs.push(Log { name, sum: value, weight: 1.0 }),
            }
        }
    }
    let slopes_m = Tensor::from_vec(slopes, logp_m.dims1()?, logp_m.device())?;
    let moves = ((&logp_m - logp_m.detach())? * slopes_m)?.sum_all()?;
    Ok(Terms { sum: (moves + total)?, logs })
}

/// The log-probability of every row's target tokens: what a reference is asked for.
pub fn log_probabilities(out: &mut dyn Logits, batch: &Batch) -> Result<Vec<f64>> {
    let index_m = batch.trained_m();
    if index_m.is_empty() {
        return Ok(vec![0.0; batch.rows.b()]);
    }
    let targets_m: Vec<u32> = index_m.iter().map(|i| batch.targets_n[*i as usize]).collect();
    let values: Vec<f32> = out.logp(&index_m, &targets_m)?.to_vec1()?;
    let mut told = index_m.iter().zip(values).peekable();
    let row = |row: usize| {
        let (end, mut sum) = (batch.rows.range(row).end, 0.0);
        while let Some((i, logp)) = told.next_if(|(i, _)| (**i as usize) < end) {
            sum += f64::from(batch.weights_n[*i as usize] * logp);
        }
        sum
    };
    Ok((0..batch.rows.b()).map(row).collect())
}
