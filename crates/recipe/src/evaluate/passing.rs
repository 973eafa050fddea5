//! Several answers to each question: how likely is a right one among k?

use luthier_core::{Error, Policy, Result, Table};
use luthier_decode::{Finish, Sampler};
use luthier_model::Tokenizer;
use luthier_probe::{
    Bootstrap, Score,
    metric::{PassAtK, pass_at_k},
};

use super::{
    Evaluated, Limits, OnDone,
    answers::{Questions, expected, row},
};
use crate::decode::Decoding;

/// Samples `options.n` answers to every question and judges each. Outcomes are the chances at the first
/// k, question by question.
pub(super) fn passing(
    decoding: Option<&Decoding>,
    policy: &Policy,
    tokenizer: &Tokenizer,
    table: &Table,
    options: &PassAtK,
    limits: &Limits,
    on_done: OnDone,
) -> Result<Evaluated> {
    options.check("metric.pass_at_k")?;
    let Some(judge) = options.by.text() else {
        let what = format!("{} does not judge generated answers", options.by.name());
        return Err(Error::input("metric.pass_at_k.by", what));
    };
    if decoding.is_some_and(|d| d.table().several() > 1 || d.table().beam.is_some()) {
        let what = "one answer is chosen or searched for each question, and pass_at_k wants many";
        return Err(
            Error::input("decode", what).hint("leave out best_of, self_consistency and beam")
        );
    }
    let questions = Questions::new(table, judge, tokenizer, limits.max_context)?;
    let own = Sampler {
        temperature: options.temperature,
        top_p: options.top_p,
        seed: options.seed,
        ..Sampler::default()
    };
    let sampler = decoding.and_then(|d| d.table().sampler).unwrap_or(own);
    let n = options.n;
    let said = questions.answers(decoding, policy, sampler, limits, n, on_done)?;
    let tokens_new: usize = said.iter().map(|answer| answer.tokens.len()).sum();
    let prompts: usize = questions.prompts.iter().map(Vec::len).sum();
    let each = table.examples.len();
    let (mut rows, mut right) = (Vec::with_capacity(said.len()), vec![0; each]);
    for (i, answer) in said.into_iter().enumerate() {
        let example = &table.examples[i % each];
        let value = judge.judge(&answer.text, expected(example)?).value;
        right[i % each] += usize::from(value >= 1.0);
        rows.push((i % each, row(example, answer, value)?));
    }
    // Told question by question.
    rows.sort_by_key(|(question, _)| *question);
    let rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    let chances =
        |k: usize| -> Vec<f64> { right.iter().map(|right| pass_at_k(n, *right, k)).collect() };
    let score = |k: &usize| Score::of(&format!("pass@{k}"), &chances(*k), &Bootstrap::default());
    let passing: Vec<Score> = options.k.iter().map(score).collect::<Result<_>>()?;
    let first = passing.first().cloned().ok_or_else(|| {
        Error::input("metric.pass_at_k.k", "expected at least one number, got none")
    })?;
    Ok(Evaluated {
        tokens_read: tokens_new + n * prompts,
        tokens_new,
        cut_answers: rows.iter().filter(|row| row.finish == Some(Finish::Length)).count(),
        signature: Some(format!(
            "n:{n}|temp:{}|top_p:{}|by:{}",
            sampler.temperature,
            sampler.top_p,
            options.by.name()
        )),
        passing,
        ..Evaluated::of(first, chances(options.k[0]), rows)
    })
}
