//! Rows for objectives of a head: what it reads is the last token, what it shall say the row's label.

use luthier_core::{Error, Example, Model, Result, Row, Table};
use luthier_loss::{Loss, Unit, term::reward::RewardType};
use luthier_model::{
    Tokenizer,
    names::SCORE,
    render::{RenderOptions, Rendered, generation_prompt, prompt_text, render},
};
use luthier_train::Train;
use serde_json::Value;

use crate::{open::Opened, pairs};

/// The columns of a row's number and of how far a better answer shall lead.
const LABEL: &str = "label";
const MARGIN: &str = "margin";

/// One row for every example, or two for a better and a worse answer. A prompt without an answer is
/// read by itself. `names` are the labels' names, where the data has names.
pub fn table(
    table: &Table,
    tokenizer: &Tokenizer,
    options: &RenderOptions,
    pair: bool,
    names: &[String],
) -> Result<Vec<Rendered>> {
    rendered(table, tokenizer, options, pair, &|example| label(example, names))
}

/// The same rows to be asked about: one without a label has NaN in its place.
pub fn asked(
    table: &Table,
    tokenizer: &Tokenizer,
    pair: bool,
    names: &[String],
) -> Result<Vec<Rendered>> {
    rendered(
        table,
        tokenizer,
        &RenderOptions::default(),
        pair,
        &|example| match labelled(example) {
            true => label(example, names),
            false => Ok(f64::NAN),
        },
    )
}

fn labelled(example: &Example) -> bool {
    let mark = example.completions.first().is_some_and(|a| a.marks.contains_key(LABEL));
    mark || example.columns.get(LABEL).is_some_and(|value| !value.is_null())
}

fn rendered(
    table: &Table,
    tokenizer: &Tokenizer,
    options: &RenderOptions,
    pair: bool,
    label: &dyn Fn(&Example) -> Result<f64>,
) -> Result<Vec<Rendered>> {
    if pair {
        let margins = table.examples.iter().map(margin).collect::<Result<Vec<f64>>>()?;
        let mut rows = pairs::render(table, tokenizer, options)?;
        rows.iter_mut().for_each(|rendered| rendered.row.label = margins[rendered.row.example]);
        return Ok(rows);
    }
    let row = |(index, example): (usize, &Example)| {
        let label = label(example)?;
        let mut rendered = match example.completions.len() {
            0 => prompt(example, tokenizer)?,
            1 => render(example, 0, tokenizer, options)?,
            several => {
                let what = format!("expected one answer or none, found {several}");
                return Err(Error::input(example.origin.to_string(), what));
            }
        };
        (rendered.row.label, rendered.row.example) = (label, index);
        Ok(rendered)
    };
    table.examples.iter().enumerate().map(row).collect()
}

/// A prompt alone, as it stands before an answer.
fn prompt(example: &Example, tokenizer: &Tokenizer) -> Result<Rendered> {
    let tokens = generation_prompt(example, tokenizer)?;
    let weights = vec![1.0; tokens.len()];
    Ok(Rendered {
        row: Row::from_tokens(&tokens, &weights, 0),
        text: prompt_text(example, tokenizer)?,
        tokens,
        weights,
        ..Rendered::default()
    })
}

fn label(example: &Example, names: &[String]) -> Result<f64> {
    let at = || example.origin.to_string();
    let hint = "every row needs the column label: a number, true or false, or one of the names in \
        data.labels";
    let mark = example.completions.first().and_then(|answer| answer.marks.get(LABEL));
    if let Some(mark) = mark {
        return Ok(*mark);
    }
    let found = match example.columns.get(LABEL) {
        Some(Value::Bool(yes)) => Some(f64::from(u8::from(*yes))),
        Some(Value::Number(number)) => number.as_f64().filter(|number| number.is_finite()),
        Some(Value::String(name)) => {
            let known = names.iter().position(|known| known == name);
            let Some(known) = known else {
                let what = format!("column {LABEL}: `{name}` is none of the known labels");
                let hint = match names.is_empty() {
                    true => "name them in order: train.params.head.labels = [\"…\", \"…\"]".into(),
                    false => luthier_core::nearest::suggest(name, names.iter().map(String::as_str)),
                };
                return Err(Error::input(at(), what).hint(hint));
            };
            Some(known as f64)
        }
        None => {
            return Err(Error::input(at(), format!("there is no column {LABEL}")).hint(hint));
        }
        Some(_) => None,
    };
    found.ok_or_else(|| {
        let what = format!("column {LABEL}: expected a number, found {}", example.columns[LABEL]);
        Error::input(at(), what).hint(hint)
    })
}

fn margin(example: &Example) -> Result<f64> {
    match example.columns.get(MARGIN) {
        None | Some(Value::Null) => Ok(0.0),
        Some(value) => value.as_f64().ok_or_else(|| {
            let what = format!("column {MARGIN}: expected a number, found {value}");
            Error::input(example.origin.to_string(), what)
        }),
    }
}

/// Refuses an objective of a head without one, and a head without such an objective. `scores`: whether
/// there is one, of the model's own or to be learned.
pub fn check(unit: Unit, scores: bool, sample_steps: u64) -> Result<()> {
    match unit {
        Unit::Judged { .. } if !scores => {
            Err(Error::input("train.loss", "learns a head, which this model does not have")
                .hint("[train.params.head] with labels = 2, or as many as there are"))
        }
        Unit::Judged { .. } if sample_steps > 0 => {
            Err(Error::input("train.sample_steps", "a head of labels generates no text")
                .hint("sample_steps = 0"))
        }
        Unit::Judged { .. } => Ok(()),
        _ if scores => {
            let what = "learns tokens, and the model's head scores labels";
            Err(Error::input("train.loss", what)
                .hint("choose classify, regress or reward, or leave train.params.head out"))
        }
        _ => Ok(()),
    }
}

/// How many labels there are: of the head that is to be learned, or of the model's own.
pub fn labels(config: &Train, opened: &Opened) -> Option<usize> {
    let head = config.params.head.as_ref().map(|head| head.labels.count());
    head.or(opened.config.labels)
}

/// Refuses labels that cannot be learned: numbers of no label of the head, or chances that are none.
pub fn known(
    loss: &Loss,
    labels: Option<usize>,
    rows: &[Row],
    origin: &dyn Fn(usize) -> String,
) -> Result<()> {
    let bce = loss.reward.as_ref().is_some_and(|reward| reward.loss_type == RewardType::Bce);
    for Row { label, example, .. } in rows {
        let (wanted, hint) = match (&loss.classify, labels) {
            (Some(_), Some(labels))
                if label.fract() != 0.0 || !(0.0..labels as f64).contains(label) =>
            {
                let most = labels.saturating_sub(1);
                let hint = "train.params.head.labels says how many labels there are";
                (format!("a whole number from 0 to {most}"), hint)
            }
            _ if bce && !(0.0..=1.0).contains(label) => {
                ("a number from 0 to 1".to_string(), "loss_type = \"mse\" learns any number")
            }
            _ => continue,
        };
        let what = format!("column {LABEL}: expected {wanted}, got {label}");
        return Err(Error::input(origin(*example), what).hint(hint));
    }
    Ok(())
}

/// Whether the head scores labels in place of tokens.
pub fn scores(model: &dyn Model) -> bool {
    let head = model.sites().get("logits");
    head.is_some_and(|site| site.module.as_deref() == Some(SCORE))
}

/// The rows as a head reads them: all tokens, of which the last one counts, as much as the row's own
/// targets did.
pub fn read(rows: Vec<Row>, origin: &dyn Fn(usize) -> String) -> Result<Vec<Row>> {
    let of = |row: Row| {
        let Some(last) = row.targets.last().copied() else {
            return Err(Error::input(origin(row.example), "a text of one token or less"));
        };
        let mut ids = row.ids;
        ids.push(last);
        // Nothing is predicted; a row has a target for every position all the same.
        let targets = [&row.targets[..], &[last]].concat();
        let mut weights = vec![0.0; ids.len()];
        weights[ids.len() - 1] = row.weights.iter().copied().fold(0.0, f32::max);
        Ok(Row { ids, targets, weights, tags: Vec::new(), teacher: None, ..row })
    };
    rows.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use luthier_core::Turn;

    use super::*;

    fn example(label: Value) -> Example {
        let turns = vec![Turn::new("user", "good film")];
        let mut example = Example::new("t.jsonl", 6, turns, None);
        example.columns.insert(LABEL.into(), label);
        example
    }

    #[test]
    fn the_last_token_counts_what_the_row_did() {
        let row = Row { label: 2.0, ..Row::from_tokens(&[5, 6, 7], &[0.0, 0.0, 0.5], 3) };
        let read = read(vec![row], &|_| String::new()).unwrap();
        assert_eq!(
            (&read[0].ids[..], &read[0].weights[..]),
            (&[5, 6, 7][..], &[0.0, 0.0, 0.5][..])
        );
        assert_eq!((read[0].targets.len(), read[0].label, read[0].example), (3, 2.0, 3));
        assert!(super::read(vec![Row::default()], &|_| "t.jsonl:1".into()).is_err());
    }

    #[test]
    fn labels_are_numbers_switches_or_known_names() {
        let names = ["bad".to_string(), "good".to_string()];
        let of = |value: Value| label(&example(value), &names);
        assert_eq!(of(3.5.into()).unwrap(), 3.5);
        assert_eq!(of(true.into()).unwrap(), 1.0);
        assert_eq!(of("good".into()).unwrap(), 1.0);
        for (value, words) in [(Value::from("god"), "none of the known"), (Value::Null, "a number")]
        {
            let error = of(value).unwrap_err().to_string();
            assert!(error.starts_with("t.jsonl:6") && error.contains(words), "{error}");
        }
        let mut without = example(Value::Null);
        without.columns.clear();
        assert!(label(&without, &names).unwrap_err().to_string().contains("no column"));
    }

    #[test]
    fn a_prompt_is_read_by_itself_and_pairs_know_their_margin() {
        let tokenizer = Tokenizer::bytes();
        let options = RenderOptions::default();
        let of = |examples: Vec<Example>| Table {
            name: "t.jsonl".into(),
            layout: String::new(),
            sha256: String::new(),
            examples,
        };
        let alone = of(vec![example(1.into())]);
        let rows = table(&alone, &tokenizer, &options, false, &[]).unwrap();
        assert!(rows[0].text.contains("good film"));
        assert_eq!((rows[0].row.label, rows[0].row.trained()), (1.0, rows[0].row.len()));
        let mut pair = example(Value::Null);
        for (text, chosen) in [("worse", 0.0), ("better", 1.0)] {
            let turns = vec![Turn::new("assistant", text)];
            let marks = [("chosen".to_string(), chosen)].into_iter().collect();
            pair.completions.push(luthier_core::Completion { turns, marks });
        }
        pair.columns.insert(MARGIN.into(), 0.25.into());
        let rows = table(&of(vec![pair]), &tokenizer, &options, true, &[]).unwrap();
        assert!(rows[0].text.contains("better") && rows[1].text.contains("worse"));
        assert_eq!(rows[0].row.label, 0.25);
    }
}
