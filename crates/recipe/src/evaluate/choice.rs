//! Multiple choice by likelihood: how probable is each choice after the question?
//!
//! The tokens of a choice are those that reach past the end of the prompt when both are encoded
//! together; the token that would end the turn does not count, as in lm-evaluation-harness. What the
//! choices of a question share is read once and its keys and values are copied.

use std::sync::Arc;

use luthier_core::{
    Batch, Cache, Ctx, Error, Example, Form, Head, Logits, Policy, Result, Row, Rows, Table,
};
use luthier_model::{Tokenizer, render::prompt_text};
use luthier_probe::{
    Bootstrap, Calibration, Score,
    metric::{Choice, ChoiceVerdict},
};
use serde_json::Value;

use super::{
    AnswerRow, ChoiceScores, Evaluated, OnDone, PASS_TOKENS, answers::question as asked,
    calibration::of_choices,
};

/// A question ready to be scored.
struct Question {
    /// The tokens of question and choice, for each choice.
    ids: Vec<Vec<u32>>,
    /// Where each choice begins in its tokens; at least 1.
    begins: Vec<usize>,
    /// How many tokens all choices begin with; less than each of `begins`.
    shared: usize,
    /// The texts of the choices.
    choices: Vec<String>,
    /// Which is right.
    answer: usize,
}

/// Scores a multiple choice: rows with a column `choices`, and the right one in a column `answer`,
/// `label` or `answerKey` (a number from 0, a letter, a label or the text) or as the completion.
pub fn choice(
    policy: &Policy,
    tokenizer: &Tokenizer,
    table: &Table,
    metric: &Choice,
    on_done: OnDone,
) -> Result<Evaluated> {
    let behind = policy.hooks.virtual_tokens;
    let read = |example: &Example| -> Result<Question> {
        Ok(Question::read(example, tokenizer, policy.model.vocab())?.behind(behind))
    };
    let questions: Vec<Question> = table.examples.iter().map(read).collect::<Result<_>>()?;
    let mut rows = Vec::with_capacity(questions.len());
    let (mut outcomes, mut verdicts) = (Vec::new(), Vec::<ChoiceVerdict>::new());
    let mut confidences = Vec::with_capacity(questions.len());
    let mut begin = 0;
    while begin < questions.len() {
        let (mut end, mut tokens) = (begin + 1, questions[begin].tokens());
        while end < questions.len() && tokens + questions[end].tokens() <= PASS_TOKENS {
            tokens += questions[end].tokens();
            end += 1;
        }
        let logps = score(policy, &questions[begin..end])?;
        for (i, logps) in (begin..end).zip(logps) {
            let (question, example) = (&questions[i], &table.examples[i]);
            let texts: Vec<&str> = question.choices.iter().map(String::as_str).collect();
            let at = example.origin.to_string();
            let verdict = metric.judge(&at, &logps, &texts, question.answer)?;
            outcomes.push(verdict.value(metric.measure));
            confidences.push(of_choices(&logps, verdict.picked, question.answer));
            rows.push(AnswerRow {
                origin: at,
                prompt: asked(example),
                expected: question.choices[question.answer].clone(),
                answer: question.choices[verdict.picked].clone(),
                value: verdict.value(metric.measure),
                finish: None,
                logps: Some(logps),
            });
            verdicts.push(verdict);
        }
        on_done(end, questions.len());
        begin = end;
    }
    let share = |right: fn(&ChoiceVerdict) -> bool| {
        verdicts.iter().filter(|v| right(v)).count() as f64 / verdicts.len().max(1) as f64
    };
    let choice = ChoiceScores {
        acc: share(|v| v.acc),
        acc_norm: share(|v| v.acc_norm),
        acc_bytes: share(|v| v.acc_bytes),
    };
    let score = Score::of("choice", &outcomes, &Bootstrap::default())?;
    let tokens_read = questions.iter().map(Question::read_once).sum();
    let calibration = Some(Calibration::of(&confidences)?);
    let plain = Evaluated::of(score, outcomes, rows);
    Ok(Evaluated { tokens_read, choice: Some(choice), calibration, ..plain })
}

impl Question {
    /// The same behind `n` placeholders for virtual tokens.
    fn behind(mut self, n: usize) -> Self {
        for (ids, begin) in self.ids.iter_mut().zip(&mut self.begins) {
            ids.splice(0..0, std::iter::repeat_n(0, n));
            *begin += n;
        }
        self.shared += n;
        self
    }

    fn read(example: &Example, tokenizer: &Tokenizer, vocab: usize) -> Result<Self> {
        let at = example.origin.to_string();
        let (choices, labels) = choices(example)?;
        let answer = answer(example, &choices, &labels)?;
        let prompt = prompt_text(example, tokenizer)?;
        let opening = match example.form {
            Form::Raw => tokenizer.bos().filter(|_| tokenizer.add_bos()),
            Form::Chat => None,
        };
        let (mut ids, mut begins) = (Vec::new(), Vec::new());
        for text in &choices {
            let mut tokens: Vec<u32> = opening.into_iter().collect();
            let added = tokens.len();
            let encoded = tokenizer.encode_with_offsets(&format!("{prompt}{text}"))?;
            let begin = encoded.iter().position(|(_, covers)| covers.end > prompt.len());
            tokens.extend(encoded.iter().map(|(id, _)| *id));
            let Some(begin) = begin.map(|b| b + added).filter(|b| *b > 0) else {
                return Err(Error::input(at, format!("the choice `{text}` has no token to score"))
                    .hint("a choice needs words, and a question before it"));
            };
            let row = Row::from_tokens(&tokens, &vec![1.0; tokens.len()], 0);
            Batch::from_rows([&row]).check_vocab(vocab)?;
            ids.push(tokens);
            begins.push(begin);
        }
        let first = &ids[0];
        let common = |other: &Vec<u32>| first.iter().zip(other).take_while(|(a, b)| a == b).count();
        let shared = ids.iter().map(common).min().unwrap_or(0);
        // The last shared token is read again with each choice: it predicts the choice's first.
        let shared = shared.min(begins.iter().min().map_or(0, |b| b - 1));
        Ok(Question { ids, begins, shared, choices, answer })
    }

    /// Tokens that are held in memory for this question.
    fn tokens(&self) -> usize {
        self.ids.iter().map(Vec::len).sum()
    }

    /// Tokens that are read for this question: what is shared once, the rest of every choice.
    fn read_once(&self) -> usize {
        self.shared + (0..self.ids.len()).map(|i| self.rest(i).len()).sum::<usize>()
    }

    /// The inputs that follow the shared ones, for choice `i`.
    fn rest(&self, i: usize) -> &[u32] {
        &self.ids[i][self.shared..self.ids[i].len() - 1]
    }
}

/// The summed log-probability of every choice of every question, in two passes.
fn score(policy: &Policy, questions: &[Question]) -> Result<Vec<Vec<f64>>> {
    let model = &*policy.model;
    let n_choices: usize = questions.iter().map(|q| q.choices.len()).sum();
    let mut cache = Cache::new(n_choices, model.n_layers());
    let mut slots = Vec::with_capacity(questions.len());
    let mut next = 0;
    for question in questions {
        slots.push(next);
        next += question.choices.len();
    }
    let sharing: Vec<usize> = (0..questions.len()).filter(|q| questions[*q].shared > 0).collect();
    if !sharing.is_empty() {
        let lengths: Vec<usize> = sharing.iter().map(|q| questions[*q].shared).collect();
        let ids_n: Vec<u32> = sharing
            .iter()
            .flat_map(|q| questions[*q].ids[0][..questions[*q].shared].iter().copied())
            .collect();
        cache.select(sharing.iter().map(|q| slots[*q]).collect());
        let mut ctx = Ctx::new(&policy.hooks, Arc::new(Rows::new(&lengths, |_| 0)), &ids_n);
        ctx.cache = Some(&mut cache);
        policy.hidden(&mut ctx)?;
        for q in sharing {
            (1..questions[q].choices.len()).for_each(|i| cache.fork(slots[q], slots[q] + i));
        }
    }
    cache.select((0..n_choices).collect());
    let rows: Vec<(&Question, usize)> =
        questions.iter().flat_map(|q| (0..q.choices.len()).map(move |i| (q, i))).collect();
    let lengths: Vec<usize> = rows.iter().map(|(q, i)| q.rest(*i).len()).collect();
    let ids_n: Vec<u32> = rows.iter().flat_map(|(q, i)| q.rest(*i).iter().copied()).collect();
    let flat = Arc::new(Rows::new(&lengths, |row| rows[row].0.shared));
    let (mut index_m, mut targets_m) = (Vec::new(), Vec::new());
    for (row, (question, i)) in rows.iter().enumerate() {
        let targets = &question.ids[*i][question.begins[*i]..];
        let end = flat.offsets[row + 1];
        index_m.extend((end - targets.len()..end).map(|at| at as u32));
        targets_m.extend_from_slice(targets);
    }
    let mut ctx = Ctx::new(&policy.hooks, flat, &ids_n);
    ctx.cache = Some(&mut cache);
    let h_nd = policy.hidden(&mut ctx)?;
    let mut head = Head { model, h_nd: &h_nd, ctx: &mut ctx };
    let logp_m = head.logp(&index_m, &targets_m)?.to_vec1::<f32>()?;
    let mut rest = logp_m.as_slice();
    let sum = |(question, i): (&Question, usize)| {
        let (own, later) = rest.split_at(question.ids[i].len() - question.begins[i]);
        rest = later;
        own.iter().map(|logp| f64::from(*logp)).sum::<f64>()
    };
    let sums: Vec<f64> = rows.iter().copied().map(sum).collect();
    Ok(questions.iter().zip(slots).map(|(q, at)| sums[at..at + q.choices.len()].to_vec()).collect())
}

/// The texts of the choices, and their labels if the data has any: a list of texts, or an object of
/// two lists as ARC has it.
fn choices(example: &Example) -> Result<(Vec<String>, Vec<String>)> {
    let wrong = |what: &str| {
        Error::input(example.origin.to_string(), what)
            .hint("a multiple choice has a column choices = [\"…\", \"…\"]; otherwise use exact_match or nll")
    };
    let given =
        example.columns.get("choices").ok_or_else(|| wrong("there is no column choices"))?;
    let texts = |value: Option<&Value>| -> Option<Vec<String>> {
        value?.as_array()?.iter().map(|v| v.as_str().map(str::to_string)).collect()
    };
    let (list, labels) = match given {
        Value::Object(both) => {
            (texts(both.get("text")), texts(both.get("label")).unwrap_or_default())
        }
        list => (texts(Some(list)), Vec::new()),
    };
    let list = list.ok_or_else(|| wrong("column choices: expected a list of texts"))?;
    if list.len() < 2 || list.iter().any(|text| text.trim().is_empty()) {
        return Err(wrong("column choices: expected at least two texts, none of them empty"));
    }
    Ok((list, labels))
}

/// The index of the right choice.
fn answer(example: &Example, choices: &[String], labels: &[String]) -> Result<usize> {
    let at = example.origin.to_string();
    let column = ["answer", "label", "answerKey"]
        .iter()
        .find_map(|name| Some((*name, example.columns.get(*name).filter(|v| !v.is_null())?)));
    let (name, said) = match (column, example.completions.first()) {
        (Some((name, value)), _) => (name, value.clone()),
        (None, Some(completion)) => ("completion", Value::from(completion.text())),
        (None, None) => {
            return Err(Error::input(at, "nothing says which choice is right")
                .hint("add a column answer: a number counted from 0, a letter, or the text"));
        }
    };
    let found = match &said {
        Value::Number(number) => number.as_u64().map(|i| i as usize),
        Value::String(text) => meant(text.trim(), choices, labels, &at)?,
        _ => None,
    };
    found.filter(|i| *i < choices.len()).ok_or_else(|| {
        let what = format!("{name} {said} is none of the {} choices", choices.len());
        Error::input(at, what).hint("give a number counted from 0, a letter, or the text")
    })
}

/// The choice that a text means: the choice itself, its label, its letter, its number from 0.
fn meant(text: &str, choices: &[String], labels: &[String], at: &str) -> Result<Option<usize>> {
    let itself = choices.iter().position(|choice| choice.trim() == text);
    let label = labels.iter().position(|label| label.trim() == text);
    let letter = match text.trim_matches(['(', ')', '.']).as_bytes() {
        [letter] if letter.is_ascii_alphabetic() => {
            Some(usize::from(letter.to_ascii_uppercase() - b'A'))
        }
        _ => None,
    };
    let place = label.or(letter).or_else(|| text.parse().ok());
    match (itself, place) {
        (Some(a), Some(b)) if a != b && b < choices.len() => {
            let what = format!("the answer `{text}` is both a choice and the place of another");
            Err(Error::input(at, what).hint("give the place as a number: label = 0, 1, …"))
        }
        (itself, place) => Ok(itself.or(place)),
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Turn;
    use serde_json::json;

    use super::*;

    fn row(columns: Value, completion: Option<&str>) -> Result<(usize, usize)> {
        let said = completion.map(|text| Turn::new("assistant", text));
        let mut example = Example::new("q.jsonl", 3, vec![Turn::new("user", "which?")], said);
        example.columns = columns.as_object().unwrap().clone();
        let (texts, labels) = choices(&example)?;
        Ok((answer(&example, &texts, &labels)?, texts.len()))
    }

    #[test]
    fn the_right_choice_is_understood_in_every_usual_spelling() {
        let list = json!(["red", "green", "blue"]);
        for (columns, completion) in [
            (json!({"choices": list, "answer": 1}), None),
            (json!({"choices": list, "answer": "B"}), None),
            (json!({"choices": list, "label": "(b)"}), None),
            (json!({"choices": list, "answer": null, "answerKey": "green"}), None),
            (json!({"choices": list}), Some(" green")),
            (json!({"choices": list}), Some("1")),
            (json!({"choices": {"text": list, "label": ["1", "2", "3"]}, "answerKey": "2"}), None),
            // A column says it more surely than the answer's text.
            (json!({"choices": list, "label": 1}), Some("blue")),
        ] {
            assert_eq!(row(columns.clone(), completion).unwrap(), (1, 3), "{columns}");
        }
    }

    #[test]
    fn questions_that_cannot_be_asked_are_refused() {
        let list = json!(["red", "green"]);
        for (columns, completion, part) in [
            (json!({}), Some("red"), "no column choices"),
            (json!({"choices": "red"}), Some("red"), "list of texts"),
            (json!({"choices": ["red"]}), Some("red"), "at least two"),
            (json!({"choices": ["red", " "]}), Some("red"), "at least two"),
            (json!({"choices": list}), None, "nothing says"),
            (json!({"choices": list}), Some("yellow"), "none of the 2"),
            (json!({"choices": list, "answer": 2}), None, "none of the 2"),
            (json!({"choices": list, "answer": -1}), None, "none of the 2"),
            (json!({"choices": ["1", "0"], "answer": "1"}), None, "both a choice and the place"),
        ] {
            let error = row(columns.clone(), completion).unwrap_err();
            assert!(error.to_string().contains(part), "{columns}: {error}");
            assert!(error.to_string().starts_with("q.jsonl:3") && error.exit_code() == 2);
        }
    }
}
