//! What can be asked of a policy and rows, without a tokenizer.

use candle_core::D;
use luthier_core::{Batch, Ctx, Error, Head, Logits, Policy, Result, Row};
use luthier_decode::TokenText;
use luthier_kernels::threads;
use luthier_train::{Train, evaluate::evaluate, order::micro_batches};

/// Tokens of a forward pass.
const PASS: usize = 4096;

/// The text of tokens that nobody reads.
pub struct Silent;

impl TokenText for Silent {
    fn decode(&self, _ids: &[u32]) -> String {
        String::new()
    }
}

/// A row that trains `answer` after `prompt`.
pub fn row(prompt: &[u32], answer: &[u32], example: usize) -> Row {
    let tokens = [prompt, answer].concat();
    let weights: Vec<f32> =
        (0..tokens.len()).map(|i| f32::from(u8::from(i >= prompt.len()))).collect();
    Row::from_tokens(&tokens, &weights, example)
}

/// Of every row, whether each trained token is the likeliest where the ones before it are given.
pub fn right(policy: &Policy, rows: &[Row]) -> Result<Vec<bool>> {
    let all: Vec<usize> = (0..rows.len()).collect();
    let mut right = Vec::with_capacity(rows.len());
    for pass in micro_batches(&all, rows, PASS, 1) {
        let batch = Batch::from_rows(pass.iter().map(|i| &rows[*i]));
        right.extend(threads::together(|| pass_right(policy, &batch))?);
    }
    Ok(right)
}

fn pass_right(policy: &Policy, batch: &Batch) -> Result<Vec<bool>> {
    let mut ctx = Ctx::new(&policy.hooks, batch.rows.clone(), &batch.ids_n);
    ctx.weights_n = Some(&batch.weights_n);
    let h_nd = policy.hidden(&mut ctx)?;
    let index_m = batch.trained_m();
    let mut head = Head { model: policy.model.as_ref(), h_nd: &h_nd, ctx: &mut ctx };
    let best_m = head.logits(&index_m)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
    let mut answers = index_m.iter().zip(best_m).peekable();
    let mut right = Vec::with_capacity(batch.rows.b());
    for row in 0..batch.rows.b() {
        let range = batch.rows.range(row);
        let (mut asked, mut all) = (0, true);
        while let Some((index, best)) = answers.next_if(|(i, _)| range.contains(&(**i as usize))) {
            asked += 1;
            all &= batch.targets_n[*index as usize] == best;
        }
        if asked == 0 {
            let at = format!("row {}", batch.examples_b[row]);
            return Err(Error::failed(at, "has no trained token, so nothing is asked of it"));
        }
        right.push(all);
    }
    Ok(right)
}

/// The share of rows whose trained tokens are all the likeliest (teacher-forced exact match).
pub fn exact(policy: &Policy, rows: &[Row]) -> Result<f64> {
    let right = right(policy, rows)?;
    Ok(right.iter().filter(|r| **r).count() as f64 / right.len() as f64)
}

/// The mean negative log-likelihood of the trained tokens.
pub fn loss(policy: &Policy, rows: &[Row]) -> Result<f64> {
    let config = Train::default();
    let (loss, _) = evaluate(policy, config.loss.objective()?.as_ref(), None, rows, PASS)?;
    Ok(loss)
}

/// `exp` of [`loss`].
pub fn perplexity(policy: &Policy, rows: &[Row]) -> Result<f64> {
    Ok(loss(policy, rows)?.exp())
}
