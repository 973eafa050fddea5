//! Rows for objectives that are told of every answer whether it is wanted: rows in groups, and with them,
//! where the objective asks for it, each prompt with the answer of the row before.

use luthier_core::{Error, Example, Result, Row, Table};
use luthier_model::{
    Tokenizer,
    render::{RenderOptions, Rendered, render_table},
};
use serde_json::Value;

/// The column, and the mark that its layout makes of it.
const LABEL: &str = "label";

/// One row for every example, labelled 1 where its answer is wanted and 0 where it is not.
pub fn render(
    table: &Table,
    tokenizer: &Tokenizer,
    options: &RenderOptions,
) -> Result<Vec<Rendered>> {
    let labels = table.examples.iter().map(label).collect::<Result<Vec<f64>>>()?;
    let mut rows = render_table(table, tokenizer, options)?;
    rows.iter_mut().for_each(|rendered| rendered.row.label = labels[rendered.row.example]);
    Ok(rows)
}

fn label(example: &Example) -> Result<f64> {
    let at = || example.origin.to_string();
    let hint = "every row needs a prompt, one completion, and a label: true where the completion is \
        wanted, false where it is not";
    let [answer] = example.completions.as_slice() else {
        let what = format!("expected one answer, found {}", example.completions.len());
        return Err(Error::input(at(), what).hint(hint));
    };
    if let Some(mark) = answer.marks.get(LABEL) {
        return Ok(*mark);
    }
    match example.columns.get(LABEL) {
        Some(Value::Bool(wanted)) => Ok(f64::from(u8::from(*wanted))),
        Some(Value::Number(number)) if number.as_f64() == Some(0.0) => Ok(0.0),
        Some(Value::Number(number)) if number.as_f64() == Some(1.0) => Ok(1.0),
        Some(other) => {
            let what = format!("column {LABEL}: expected true or false (or 1 or 0), found {other}");
            Err(Error::input(at(), what).hint(hint))
        }
        None => Err(Error::input(at(), format!("there is no column {LABEL}")).hint(hint)),
    }
}

/// Groups of `size` neighbouring rows; with `mismatched`, each is followed by as many rows of its
/// prompts with the answers of the rows before them, as far as `max_length` reaches. What is left over
/// at the end is filled up with rows that count for nothing.
pub fn groups(
    rows: Vec<Row>,
    size: usize,
    mismatched: bool,
    max_length: usize,
    origin: &dyn Fn(usize) -> String,
) -> Result<Vec<Row>> {
    if let Some(row) = rows.iter().find(|row| row.trained() == 0) {
        let what = "nothing is left to learn of its answer";
        return Err(Error::input(origin(row.example), what)
            .hint("raise data.max_length, or data.overlength = \"drop\" leaves long rows out"));
    }
    if let Some(pair) = rows.windows(2).find(|pair| pair[0].example == pair[1].example) {
        let what = "its answer came out as several rows";
        return Err(Error::input(origin(pair[0].example), what)
            .hint("data.overlength = \"split\" tears answers apart: choose another"));
    }
    let mut all = Vec::with_capacity(rows.len() << usize::from(mismatched));
    for group in rows.chunks(size) {
        let filled = |all: &mut Vec<Row>, rows: Vec<Row>| {
            let idle = rows.last().map(untrained);
            let missing = size - rows.len();
            all.extend(rows.into_iter().chain(idle.into_iter().cycle().take(missing)));
        };
        filled(&mut all, group.to_vec());
        if mismatched {
            let before = |i: usize| &group[(i + group.len() - 1) % group.len()];
            let other = |(i, row)| mismatch(row, before(i), max_length);
            filled(&mut all, group.iter().enumerate().map(other).collect());
        }
    }
    Ok(all)
}

/// The same row without anything to learn.
pub fn untrained(row: &Row) -> Row {
    Row { weights: vec![0.0; row.len()], ..row.clone() }
}

/// The prompt of one row and the answer of another: all from the first trained token on.
fn mismatch(asked: &Row, answered: &Row, max_length: usize) -> Row {
    let first = |row: &Row| row.weights.iter().position(|w| *w != 0.0).unwrap_or(row.len());
    let (prompt, answer) = (first(asked), first(answered));
    let mut targets: Vec<u32> = asked.targets[..prompt].to_vec();
    targets.extend(&answered.targets[answer..]);
    let mut weights = vec![0.0; prompt];
    weights.extend(&answered.weights[answer..]);
    let begin = asked.ids.first().copied().unwrap_or_default();
    let mut ids: Vec<u32> = std::iter::once(begin).chain(targets.iter().copied()).collect();
    ids.pop();
    let most = max_length.saturating_sub(1);
    [&mut ids, &mut targets].into_iter().for_each(|of| of.truncate(most));
    weights.truncate(most);
    Row { ids, targets, weights, example: asked.example, label: asked.label, ..Row::default() }
}

#[cfg(test)]
mod tests {
    use luthier_core::Turn;

    use super::*;

    fn row(prompt: &[u32], answer: &[u32], example: usize) -> Row {
        let tokens = [prompt, answer].concat();
        let weights: Vec<f32> =
            (0..tokens.len()).map(|i| f32::from(u8::from(i >= prompt.len()))).collect();
        Row::from_tokens(&tokens, &weights, example)
    }

    #[test]
    fn each_prompt_of_a_group_meets_the_answer_before_its_own() {
        let rows =
            vec![row(&[1, 2], &[11], 0), row(&[3], &[12, 13], 1), row(&[4, 5, 6], &[14, 15], 2)];
        let all = groups(rows.clone(), 2, true, 99, &|_| String::new()).unwrap();
        assert_eq!(all.len(), 8);
        assert_eq!(all[..2], rows[..2]);
        assert_eq!(all[2], row(&[1, 2], &[12, 13], 0));
        assert_eq!(all[3], row(&[3], &[11], 1));
        // The third is alone: it meets itself, and its group is filled up.
        assert_eq!((&all[4], &all[6]), (&rows[2], &rows[2]));
        assert_eq!([5, 7].map(|i: usize| all[i].trained()), [0, 0]);
        assert_eq!(all[5].ids, rows[2].ids);
        let alone = groups(rows.clone(), 2, false, 99, &|_| String::new()).unwrap();
        assert_eq!((alone.len(), alone[3].trained()), (4, 0));
        // Four tokens are three positions: the second answer's last token does not fit.
        let cut = groups(rows, 2, true, 3, &|_| String::new()).unwrap();
        assert_eq!(cut[2], row(&[1, 2], &[12], 0));
    }

    #[test]
    fn labels_are_yes_or_no_and_what_is_neither_is_refused_by_its_row() {
        let example = |value: Option<Value>| {
            let turns = vec![Turn::new("user", "a")];
            let mut example = Example::new("t.jsonl", 4, turns, Some(Turn::new("assistant", "b")));
            example.columns.extend(value.map(|value| (LABEL.to_string(), value)));
            example
        };
        let of = |value: Value| label(&example(Some(value)));
        assert_eq!(of(true.into()).unwrap(), 1.0);
        assert_eq!(of(0.into()).unwrap(), 0.0);
        assert_eq!(of(1.0.into()).unwrap(), 1.0);
        for (bad, word) in [(Value::from(2), "found 2"), ("good".into(), "good")] {
            let error = of(bad).unwrap_err().to_string();
            assert!(error.starts_with("t.jsonl:4") && error.contains(word), "{error}");
        }
        let error = label(&example(None)).unwrap_err().to_string();
        assert!(error.contains("no column label"), "{error}");
        let mut several = example(Some(true.into()));
        several.completions.push(several.completions[0].clone());
        assert!(label(&several).unwrap_err().to_string().contains("found 2"));
        let torn = vec![row(&[1], &[2], 0), row(&[2], &[3], 0)];
        assert!(groups(torn, 2, false, 9, &|_| "t.jsonl:1".into()).is_err());
        let empty = vec![untrained(&row(&[1], &[2], 0))];
        assert!(groups(empty, 2, false, 9, &|_| "t.jsonl:1".into()).is_err());
    }
}
