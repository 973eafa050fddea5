//! Answers, greedy unless a table says otherwise, judged one by one.

use luthier_core::{Error, Example, Policy, Result, Table};
use luthier_decode::{Finish, Generate, Generated, Sampler, generate};
use luthier_model::{Tokenizer, render::generation_prompt};
use luthier_probe::{
    Bootstrap, Kind, Metric, Score, Verdict,
    metric::{field_accuracy, field_counts},
};

use super::{AnswerRow, Evaluated, Limits, OnDone};
use crate::{
    decode::{Decoding, Job},
    text::Text,
};

/// Answers every prompt of `table` greedily and judges the answers by `metric`, which must be one
/// that judges text.
pub fn answers(
    policy: &Policy,
    tokenizer: &Tokenizer,
    table: &Table,
    metric: &Kind,
    max_new_tokens: usize,
    on_done: OnDone,
) -> Result<Evaluated> {
    let limits = Limits { max_new_tokens, ..Limits::default() };
    bounded(None, policy, tokenizer, table, metric, &limits, on_done)
}

/// The same within the model's context.
///
/// Where an example has several completions, the first is the expected one. Prompts are not sorted
/// by length: nothing is padded, and a finished sequence makes room for the next at once.
pub(super) fn bounded(
    decoding: Option<&Decoding>,
    policy: &Policy,
    tokenizer: &Tokenizer,
    table: &Table,
    metric: &Kind,
    limits: &Limits,
    on_done: OnDone,
) -> Result<Evaluated> {
    let Some(judge) = metric.text() else {
        let what = format!("{} does not judge generated answers", metric.name());
        return Err(Error::input("metric", what)
            .hint("use exact_match or json_match, or bleu, chrf or rouge_l"));
    };
    let questions = Questions::new(table, judge, tokenizer, limits.max_context)?;
    let sampler = decoding.and_then(|d| d.table().sampler).unwrap_or_default();
    let said = questions.answers(decoding, policy, sampler, limits, 1, on_done)?;
    let tokens_new: usize = said.iter().map(|answer| answer.tokens.len()).sum();
    let tokens_read = tokens_new + questions.prompts.iter().map(Vec::len).sum::<usize>();
    let mut rows = Vec::with_capacity(said.len());
    let mut verdicts: Vec<Verdict> = Vec::with_capacity(said.len());
    for (example, answer) in table.examples.iter().zip(said) {
        let verdict = judge.judge(&answer.text, expected(example)?);
        rows.push(row(example, answer, verdict.value)?);
        verdicts.push(verdict);
    }
    let outcomes: Vec<f64> = verdicts.iter().map(|v| metric.whole() * v.value).collect();
    let pairs: Vec<(&str, &str)> =
        rows.iter().map(|row| (row.answer.as_str(), row.expected.as_str())).collect();
    let score = match judge.over(&pairs, &Bootstrap::default()) {
        Some(score) => score?,
        None => Score::of(metric.name(), &outcomes, &Bootstrap::default())?,
    };
    let accuracy = field_accuracy(&verdicts);
    Ok(Evaluated {
        tokens_read,
        tokens_new,
        cut_answers: rows.iter().filter(|row| row.finish == Some(Finish::Length)).count(),
        fields: accuracy.map(|_| field_counts(&verdicts)),
        field_accuracy: accuracy,
        signature: metric.signature(),
        ..Evaluated::of(score, outcomes, rows)
    })
}

/// What is asked, in words and tokens.
pub(super) struct Questions<'a> {
    tokenizer: &'a Tokenizer,
    judge: &'a dyn Metric,
    examples: Vec<Example>,
    /// Up to the answers.
    pub prompts: Vec<Vec<u32>>,
}

impl<'a> Questions<'a> {
    /// Everything the user could have got wrong shows before the first token is generated.
    pub fn new(
        table: &Table,
        judge: &'a dyn Metric,
        tokenizer: &'a Tokenizer,
        max_context: usize,
    ) -> Result<Self> {
        for example in &table.examples {
            judge.check(&example.origin.to_string(), expected(example)?)?;
        }
        let examples: Vec<Example> = table.examples.iter().map(asked).collect();
        let mut prompts: Vec<Vec<u32>> = Vec::with_capacity(examples.len());
        for example in &examples {
            let ids = generation_prompt(example, tokenizer)?;
            if max_context != 0 && ids.len() >= max_context {
                let what = format!(
                    "the question has {} tokens, the model's context is {max_context}",
                    ids.len()
                );
                return Err(Error::input(example.origin.to_string(), what)
                    .hint("shorten it or leave the row out"));
            }
            prompts.push(ids);
        }
        Ok(Questions { tokenizer, judge, examples, prompts })
    }

    /// `n` answers to each: the first to every question, then the second to every question, ….
    pub fn answers(
        &self,
        decoding: Option<&Decoding>,
        policy: &Policy,
        sampler: Sampler,
        limits: &Limits,
        n: usize,
        on_done: OnDone,
    ) -> Result<Vec<Generated>> {
        let Limits { max_new_tokens, max_context, .. } = *limits;
        let (tokenizer, judge) = (self.tokenizer, self.judge);
        let prompts: Vec<Vec<u32>> =
            std::iter::repeat_n(&self.prompts, n).flatten().cloned().collect();
        let eos = tokenizer.eos_ids().to_vec();
        let options = Generate {
            max_new_tokens,
            max_context,
            eos: eos.clone(),
            sampler,
            ..Generate::default()
        };
        let several = n * decoding.map_or(1, |d| d.table().several());
        let (mut done, mut lengths) = (0, vec![0usize; several * self.prompts.len()]);
        let mut listen = |sequence: usize, token: u32, _: &str| {
            lengths[sequence] += 1;
            if eos.contains(&token) || lengths[sequence] == max_new_tokens {
                done += 1;
                on_done(done / several, lengths.len() / several);
            }
        };
        let text = Text(tokenizer);
        let said = match decoding {
            None => generate(policy, &prompts, &options, &text, &mut listen)?,
            Some(decoding) => {
                // Two answers agree where the metric takes the one for the other.
                let agree = |one: &str, other: &str| judge.judge(one, other).value >= 1.0;
                let examples: Vec<Example> =
                    std::iter::repeat_n(&self.examples, n).flatten().cloned().collect();
                let (prompts, options) = (&prompts, &options);
                let job = Job { examples: &examples, prompts, options, agree: &agree };
                decoding.answer(&job, &text, &mut listen)?
            }
        };
        // Answers that the context cut short were not heard of.
        on_done(self.prompts.len(), self.prompts.len());
        Ok(said)
    }
}

pub(super) fn row(example: &Example, answer: Generated, value: f64) -> Result<AnswerRow> {
    Ok(AnswerRow {
        origin: example.origin.to_string(),
        prompt: question(example),
        expected: expected(example)?.to_string(),
        answer: answer.text,
        value,
        finish: Some(answer.finish),
        logps: None,
    })
}

/// The last words before the answer.
pub(super) fn question(example: &Example) -> String {
    example.prompt.last().map_or_else(String::new, |turn| turn.content.clone())
}

/// The text that is expected, of the first completion.
pub(super) fn expected(example: &Example) -> Result<&str> {
    match example.completions.first() {
        Some(completion) => Ok(completion.text()),
        None => Err(Error::input(example.origin.to_string(), "there is no expected answer")
            .hint("add a completion to the row, or sample with `luthier generate --prompts`")),
    }
}

/// The example whose prompt holds every turn before the expected one: what tools answered on the
/// way to it is given, not asked for.
fn asked(example: &Example) -> Example {
    let mut asked = Example { completions: Vec::new(), ..example.clone() };
    if let Some((_, before)) = example.completions.first().and_then(|c| c.turns.split_last()) {
        asked.prompt.extend(before.iter().cloned());
    }
    asked
}
