//! How likely a model finds given text.

use std::sync::{Mutex, PoisonError};

use luthier_core::{Batch, Error, Example, Form, Policy, Result, Row, Table, batch::pack};
use luthier_data::{Overlength, transform::overlength};
use luthier_kernels::threads;
use luthier_model::{
    Tokenizer,
    render::{RenderOptions, render_table},
};
use luthier_probe::{
    Bootstrap, Score,
    metric::{NllReport, RowNll, nll},
};

use rayon::prelude::*;

use super::{Evaluated, Likelihood, Limits, OnDone, PASS_TOKENS};

impl Likelihood {
    /// As every other metric looks; outcomes are mean log-probabilities.
    pub(super) fn evaluated(self) -> Evaluated {
        let perplexity = self.report.score();
        let score = Score {
            metric: "nll".to_string(),
            value: self.report.nll,
            ci95: perplexity.ci95.map(f64::ln),
            ..perplexity
        };
        let outcomes = self.rows.iter().map(|row| -row.sum / row.weight).collect();
        let tokens_read = self.tokens_read;
        let plain = Evaluated::of(score, outcomes, Vec::new());
        Evaluated { tokens_read, likelihood: Some(self), ..plain }
    }
}

/// Likelihood of the tokens that training would train: answers with the token that ends them. Plain
/// texts are measured as [`general`] does.
pub fn likelihood(
    policy: &Policy,
    tokenizer: &Tokenizer,
    table: &Table,
    limits: &Limits,
    on_done: OnDone,
) -> Result<Likelihood> {
    measure(policy, &rows(tokenizer, table, limits)?, table, on_done)
}

/// The rows that [`likelihood`] measures.
pub fn rows(tokenizer: &Tokenizer, table: &Table, limits: &Limits) -> Result<Vec<Row>> {
    if table.examples.iter().all(is_text) {
        return texts(tokenizer, table, limits.max_length);
    }
    // A second answer (the rejected one of a pair) is not what the model ought to find likely.
    let first = table.with(table.examples.iter().map(first_answer).collect());
    let rendered = render_table(&first, tokenizer, &RenderOptions::default())?;
    let rows = rendered.into_iter().map(|r| r.row).collect();
    let origin = |example: usize| first.examples[example].origin.to_string();
    let eos = |id: u32| tokenizer.eos_ids().contains(&id);
    let (mut rows, cut) =
        overlength::apply(limits.overlength, limits.max_length, rows, eos, origin)?;
    if cut.over_length > 0 {
        tracing::warn!("{}: rows were too long\n{cut}", table.name);
    }
    // A piece whose answer went to another piece measures nothing.
    rows.retain(|row| row.trained() > 0);
    Ok(rows)
}

/// Perplexity of plain text: every token counts, and none is added at the end.
///
/// Longer texts are read in windows of `max_length` tokens, the first token of each window after
/// the first being the last of the window before, so that every token is predicted once.
pub fn general(
    policy: &Policy,
    tokenizer: &Tokenizer,
    table: &Table,
    max_length: usize,
) -> Result<Likelihood> {
    measure(policy, &texts(tokenizer, table, max_length)?, table, &mut |_, _| ())
}

fn texts(tokenizer: &Tokenizer, table: &Table, max_length: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::with_capacity(table.examples.len());
    for (index, example) in table.examples.iter().enumerate() {
        let turns = example.prompt.iter().chain(example.completions.iter().flat_map(|c| &c.turns));
        let text: String = turns.map(|turn| turn.content.as_str()).collect();
        let mut tokens: Vec<u32> = Vec::new();
        tokens.extend(tokenizer.bos().filter(|_| tokenizer.add_bos()));
        tokens.extend(tokenizer.encode(&text)?);
        let row = Row::from_tokens(&tokens, &vec![1.0; tokens.len()], index);
        // One token alone (a heading of one word) has no predictor.
        if !row.is_empty() {
            rows.push(row);
        }
    }
    let origin = |example: usize| table.examples[example].origin.to_string();
    let (rows, _) = overlength::apply(Overlength::Split, max_length, rows, |_| false, origin)?;
    Ok(rows)
}

fn is_text(example: &Example) -> bool {
    example.form == Form::Raw && example.prompt.is_empty() && example.completions.len() == 1
}

fn first_answer(example: &Example) -> Example {
    let mut first = example.clone();
    first.completions.truncate(1);
    first
}

fn measure(policy: &Policy, rows: &[Row], table: &Table, on_done: OnDone) -> Result<Likelihood> {
    if rows.is_empty() {
        return Err(Error::input(&table.name, "there is no token to measure")
            .hint("every text is shorter than two tokens, or every row was dropped"));
    }
    let measured = measured(policy, rows, on_done)?;
    let report = NllReport::from_rows(&measured, &Bootstrap::default())?;
    let tokens_read = rows.iter().map(Row::len).sum();
    Ok(Likelihood { report, rows: measured, tokens_read })
}

/// Every row's own likelihood, in the order of the rows; `on_done` hears of rows.
pub(super) fn measured(policy: &Policy, rows: &[Row], on_done: OnDone) -> Result<Vec<RowNll>> {
    in_passes(policy, rows, &|batch| nll(policy, [batch]), on_done)
}

/// What `read` finds in every row of a batch, for all rows in their order; `on_done` hears of rows.
pub(super) fn in_passes<T: Send>(
    policy: &Policy,
    rows: &[Row],
    read: &(dyn Fn(Batch) -> Result<Vec<T>> + Sync),
    on_done: OnDone,
) -> Result<Vec<T>> {
    let placed: Vec<Row>;
    let rows = match policy.hooks.virtual_tokens {
        0 => rows,
        n => {
            placed = rows.iter().map(|row| row.clone().behind(n)).collect();
            &placed
        }
    };
    let all: Vec<usize> = (0..rows.len()).collect();
    let passes = pack(&all, |row| rows[row].len(), PASS_TOKENS);
    let finished = Mutex::new((0, on_done));
    let pass = |pass: &Vec<usize>| -> Result<Vec<T>> {
        let measured = read(Batch::from_rows(pass.iter().map(|row| &rows[*row])))?;
        let (done, on_done) = &mut *finished.lock().unwrap_or_else(PoisonError::into_inner);
        *done += pass.len();
        on_done(*done, rows.len());
        Ok(measured)
    };
    // Whole passes side by side; a pass by itself has all threads.
    let parts: Vec<Result<Vec<T>>> = match passes.as_slice() {
        [one] => vec![pass(one)],
        several => several.par_iter().map(|one| threads::alone(|| pass(one))).collect(),
    };
    let mut measured = Vec::with_capacity(rows.len());
    for part in parts {
        measured.extend(part?);
    }
    Ok(measured)
}
