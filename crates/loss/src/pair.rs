//! A better and a worse answer to one prompt: two neighbouring rows, and what is charged for them.
//!
//! What an objective says of a pair is a function of two numbers, the log-probabilities of its
//! answers, `Σ w · logp` over the target tokens of each. Formulas are written in numbers that carry
//! their derivatives ([`dual`]); `answers` makes a graph of the outcome.

use candle_core::{D, Tensor};
use luthier_core::{Batch, Error, Logits, Result, Row};

use crate::{Terms, told::sure_of};

pub(crate) mod answers;
pub mod dual;

use answers::{Answers, counts, nothing, tell, torn};
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
    pub more: Told,
}

/// Numbers for the log, by name.
pub type Told = Vec<(&'static str, f64)>;

/// What a group of pairs costs together.
pub struct Charges {
    /// The chosen answer of one pair, the rejected answer of another or the same, and what they cost.
    pub costs: Vec<([usize; 2], Dual)>,
    /// What the log says of each pair: its rewards, and further numbers.
    pub told: Vec<([f64; 2], Told)>,
}

/// How many pairs of a step there are to learn from.
pub fn number(step: &[&Batch]) -> f64 {
    let of = |batch: &&Batch| {
        (0..batch.rows.b() / 2).filter(|pair| counts(batch, 2 * pair..2 * pair + 2)).count() as f64
    };
    step.iter().map(of).sum()
}

/// The sum of what the pairs of a batch cost, given chosen and rejected answer.
pub fn charge(
    out: &mut dyn Logits,
    batch: &Batch,
    of: &dyn Fn(&Answer, &Answer) -> Charge,
) -> Result<Terms> {
    let one = |pairs: &[[Answer; 2]], _first: usize| {
        let Charge { cost, rewards, more } = of(&pairs[0][0], &pairs[0][1]);
        Charges { costs: vec![([0, 0], cost)], told: vec![(rewards, more)] }
    };
    charge_groups(out, batch, 1, &one)
}

/// The same for groups of `size` pairs that are charged together; pairs without a trained token count
/// for nothing. `of` is also told which of the batch's pairs that have one the group begins with.
pub fn charge_groups(
    out: &mut dyn Logits,
    batch: &Batch,
    size: usize,
    of: &dyn Fn(&[[Answer; 2]], usize) -> Charges,
) -> Result<Terms> {
    torn(batch, 2 * size)?;
    let live = live(batch);
    if live.is_empty() {
        return nothing();
    }
    let rows: Vec<usize> = live.iter().flat_map(|pair| [2 * pair, 2 * pair + 1]).collect();
    let answers = Answers::ask(out, batch, &rows)?;
    for (i, row) in rows.iter().enumerate() {
        if answers.tokens(i) == 0 {
            let which = ["chosen", "rejected"][i % 2];
            let at = format!("example {}", batch.examples_b[*row]);
            return Err(Error::failed(at, format!("its {which} answer has no token")));
        }
    }
    let (mut total, mut slopes, mut logs) = (0.0, vec![0.0; rows.len()], Vec::new());
    let mut first = 0;
    for group in live.chunk_by(|a, b| a / size == b / size) {
        let pair = |i: usize| [0, 1].map(|side| answers.answer(2 * (first + i) + side, side));
        let pairs: Vec<[Answer; 2]> = (0..group.len()).map(pair).collect();
        let Charges { costs, told } = of(&pairs, first);
        for ([chosen, rejected], cost) in costs {
            total += cost.v;
            slopes[2 * (first + chosen)] += cost.d[0];
            slopes[2 * (first + rejected) + 1] += cost.d[1];
        }
        for ([chosen, rejected], ([better, worse], more)) in pairs.iter().zip(told) {
            let told = [
                ("rewards/chosen", better),
                ("rewards/rejected", worse),
                ("rewards/accuracies", f64::from(u8::from(better > worse))),
                ("rewards/margins", better - worse),
                ("logps/chosen", chosen.logp.v),
                ("logps/rejected", rejected.logp.v),
            ];
            told.into_iter().chain(more).for_each(|(name, value)| tell(&mut logs, name, value));
            sure_of(&mut logs, better - worse, true, 1.0);
        }
        first += group.len();
    }
    Ok(Terms { sum: answers.charge(total, &slopes)?, logs })
}

/// The pairs of a batch that have anything to learn.
fn live(batch: &Batch) -> Vec<usize> {
    (0..batch.rows.b() / 2).filter(|pair| counts(batch, 2 * pair..2 * pair + 2)).collect()
}

/// Tokens whose logits exist at a time.
const PIECE: usize = 64;

/// WPO's weight of each pair of a batch that has anything to learn (Zhou et al. 2024): the product of
/// `exp(mean (logp − ln Σ_v p_v²))` of its two answers, a constant.
pub fn on_policy(out: &mut dyn Logits, batch: &Batch) -> Result<Vec<f64>> {
    let weight = |out: &mut dyn Logits, row: usize| -> Result<f64> {
        let trained = |i: &usize| batch.weights_n[*i] != 0.0;
        let index: Vec<u32> = batch.rows.range(row).filter(trained).map(|i| i as u32).collect();
        let (mut sum, count) = (0.0, index.len().max(1) as f64);
        for piece in index.chunks(PIECE) {
            let targets: Vec<u32> = piece.iter().map(|i| batch.targets_n[*i as usize]).collect();
            let logits_mv = out.logits(piece)?.detach();
            let top_m1 = logits_mv.max_keepdim(D::Minus1)?;
            let shifted_mv = logits_mv.broadcast_sub(&top_m1)?;
            let of = Tensor::from_slice(&targets, (targets.len(), 1), logits_mv.device())?;
            let own_m = shifted_mv.gather(&of, 1)?.squeeze(1)?;
            let log_z_m = shifted_mv.exp()?.sum(D::Minus1)?.log()?;
            let squares_m = (shifted_mv * 2.0)?.exp()?.sum(D::Minus1)?.log()?;
            // logp − ln Σ p² = (x − ln z) − (ln Σ e^2x − 2 ln z).
            let of_m: Vec<f32> = ((own_m + log_z_m)? - squares_m)?.to_vec1()?;
            sum += of_m.into_iter().map(f64::from).sum::<f64>();
        }
        Ok((sum / count).exp())
    };
    live(batch)
        .into_iter()
        .map(|pair| Ok(weight(out, 2 * pair)? * weight(out, 2 * pair + 1)?))
        .collect()
}

/// LD-DPO's view of pairs (Liu et al. 2024): what an answer says beyond the length of the shorter one
/// of its pair counts `alpha` times as much.
pub fn tails(rows: &mut [Row], alpha: f64) {
    for pair in rows.chunks_mut(2) {
        let shared = pair.iter().map(Row::trained).min().unwrap_or(0);
        for row in pair {
            let trained = row.weights.iter_mut().filter(|weight| **weight != 0.0);
            trained.skip(shared).for_each(|weight| *weight *= alpha as f32);
        }
    }
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
