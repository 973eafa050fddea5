//! What a head of labels says of rows: of a text, of a prompt with its answer, of a better and a worse one.
//!
//! Rows are made as training makes them, and the head is asked where training asks it, at the last token.

use luthier_core::{Batch, Ctx, Error, Head, Logits, Policy, Result, Row, Table};
use luthier_data::{Overlength, transform::overlength};
use luthier_model::Tokenizer;

use super::{OnDone, likelihood::in_passes};
use crate::heads;

/// What a head says of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// Which example of the table it is of; a pair's better answer comes first.
    pub example: usize,
    /// What the data says of it, if anything.
    pub label: Option<f64>,
    /// One number for every label.
    pub scores: Vec<f64>,
}

impl Judged {
    /// The labels' probabilities.
    pub fn probabilities(&self) -> Vec<f64> {
        let top = self.scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let odds: Vec<f64> = self.scores.iter().map(|score| (score - top).exp()).collect();
        let total: f64 = odds.iter().sum();
        odds.into_iter().map(|odds| odds / total).collect()
    }

    /// The label with the largest score; of equal ones the first, as in torch's argmax.
    pub fn best(&self) -> usize {
        let top = self.scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        self.scores.iter().position(|score| *score == top).unwrap_or_default()
    }
}

/// Whether a table holds better and worse answers.
fn pairs(table: &Table) -> bool {
    let marked = |c: &luthier_core::Completion| c.marks.contains_key("chosen");
    table.examples.iter().any(|e| e.completions.len() > 1 || e.completions.iter().any(marked))
}

/// Asks the head for every row, or for both answers of every pair; `names` are what labels are called. A row of
/// more than `max_length` tokens is refused: the head would read another text.
pub fn judged(
    policy: &Policy,
    names: &[String],
    tokenizer: &Tokenizer,
    table: &Table,
    max_length: usize,
    on_done: OnDone,
) -> Result<Vec<Judged>> {
    let pair = pairs(table);
    if pair && names.len() > 1 {
        let what =
            format!("has two answers to compare, and the head scores {} labels", names.len());
        return Err(Error::input(table.examples[0].origin.to_string(), what)
            .hint("a reward model, with a head of one label, compares answers"));
    }
    let rows: Vec<Row> = heads::asked(table, tokenizer, pair, names)?
        .into_iter()
        .map(|rendered| rendered.row)
        .collect();
    let origin = |example: usize| table.examples[example].origin.to_string();
    let (rows, _) = overlength::apply(Overlength::Error, max_length, rows, |_| false, origin)?;
    let rows = heads::read(rows, &origin)?;
    let of_pass = |batch: Batch| -> Result<Vec<Judged>> {
        let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
        let h_nd = policy.hidden(&mut ctx)?;
        let mut head = Head { model: policy.model.as_ref(), h_nd: &h_nd, ctx: &mut ctx };
        let all = 0..batch.rows.b();
        let last: Vec<u32> = all.map(|row| batch.rows.range(row).end as u32 - 1).collect();
        let scores: Vec<Vec<f32>> = head.logits(&last)?.to_vec2()?;
        let of = |(row, scores): (usize, Vec<f32>)| Judged {
            example: batch.examples_b[row],
            label: Some(batch.labels_b[row]).filter(|label| !pair && !label.is_nan()),
            scores: scores.into_iter().map(f64::from).collect(),
        };
        Ok(scores.into_iter().enumerate().map(of).collect())
    };
    in_passes(policy, &rows, &of_pass, on_done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_a_softmax_and_the_first_of_equals_is_best() {
        let scores = vec![2f64.ln() + 800.0, 800.0, 2f64.ln() + 800.0];
        let judged = Judged { example: 0, label: None, scores };
        for (got, want) in judged.probabilities().into_iter().zip([0.4, 0.2, 0.4]) {
            assert!((got - want).abs() < 1e-12, "{got}");
        }
        assert_eq!(judged.best(), 0);
    }
}
