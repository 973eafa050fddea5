//! Pairs of rows for objectives that look at two phrasings of a prompt: first the answer after the
//! reference, which the column `reference` holds, then after the prompt itself.

use luthier_core::{Error, Example, Result, Row, Table};
use luthier_model::{
    Tokenizer,
    render::{RenderOptions, Rendered, render_table},
};

use crate::column;

/// The column of the reference phrasing.
const COLUMN: &str = "reference";

/// Two rows for every example.
pub fn render(
    table: &Table,
    tokenizer: &Tokenizer,
    options: &RenderOptions,
) -> Result<Vec<Rendered>> {
    let examples = table.examples.iter().map(reference).collect::<Result<_>>()?;
    let references = table.with(examples);
    let references = render_table(&references, tokenizer, options)?;
    let own = render_table(table, tokenizer, options)?;
    Ok(references.into_iter().zip(own).flat_map(|(reference, own)| [reference, own]).collect())
}

/// The example with the reference phrasing for what the user says last.
fn reference(example: &Example) -> Result<Example> {
    let at = example.origin.to_string();
    let hint = "train.loss.align compares every prompt with another phrasing of it: a text in the \
        column reference";
    let text = column::text(example, COLUMN, hint)?;
    if example.completions.len() > 1 {
        return Err(Error::input(at, "expected one answer, found several").hint(hint));
    }
    let mut reference = example.clone();
    let asked = reference.prompt.iter_mut().rev().find(|turn| turn.role == "user");
    let Some(asked) = asked else {
        let what = "nobody asks anything, so there is nothing to say in other words";
        return Err(Error::input(at, what).hint(hint));
    };
    asked.content = text.to_string();
    Ok(reference)
}

/// Refuses pairs with different answers.
pub fn judge(pair: &[Row], origin: &dyn Fn(usize) -> String) -> Result<()> {
    match pair {
        [reference, own] if told(reference).eq(told(own)) => Ok(()),
        _ => {
            let what = "its answers after the two phrasings are not the same tokens";
            Err(Error::input(origin(pair[0].example), what).hint(
                "only answers may be trained (data.loss_on = \"assistant\"), and whole ones \
                 (raise data.max_length, or data.overlength = \"drop\")",
            ))
        }
    }
}

/// The trained targets with their weights.
fn told(row: &Row) -> impl Iterator<Item = (u32, f32)> {
    let all = row.targets.iter().copied().zip(row.weights.iter().copied());
    all.filter(|(_, weight)| *weight != 0.0)
}

#[cfg(test)]
mod tests {
    use luthier_core::Turn;
    use serde_json::Value;

    use super::*;

    fn example(prompt: &str, reference: Value) -> Example {
        let turns = vec![Turn::new("system", "Be brief."), Turn::new("user", prompt)];
        let answer = Some(Turn::new("assistant", "Four."));
        let mut example = Example::new("pairs.jsonl", 7, turns, answer);
        example.columns.insert(COLUMN.to_string(), reference);
        example
    }

    fn table(examples: Vec<Example>) -> Table {
        let text = String::new;
        Table { name: "pairs.jsonl".into(), layout: text(), sha256: text(), examples }
    }

    #[test]
    fn the_reference_stands_before_the_prompt_and_both_have_one_answer() {
        let tokenizer = Tokenizer::bytes();
        let table = table(vec![
            example("What is 2 + 2?", "Add 2 and 2.".into()),
            example("2 + 2?", "Add 2 and 2.".into()),
        ]);
        let rendered = render(&table, &tokenizer, &RenderOptions::default()).unwrap();
        let examples: Vec<usize> = rendered.iter().map(|r| r.row.example).collect();
        assert_eq!(examples, [0, 0, 1, 1]);
        for (r, asks) in rendered.iter().zip(["Add 2", "What is 2", "Add 2", "2 + 2?"]) {
            assert!(r.text.contains(asks) && r.text.contains("Be brief."), "{}", r.text);
        }
        let rows: Vec<Row> = rendered.into_iter().map(|r| r.row).collect();
        rows.chunks(2).for_each(|pair| judge(pair, &|_| String::new()).unwrap());
    }

    #[test]
    fn what_cannot_be_compared_is_refused_by_its_line() {
        let refused = |example: Example, what: &str| {
            let table = table(vec![example]);
            let options = RenderOptions::default();
            let error = render(&table, &Tokenizer::bytes(), &options).err().unwrap().to_string();
            assert!(error.starts_with("pairs.jsonl:7: ") && error.contains(what), "{error}");
        };
        refused(example("2 + 2?", " ".into()), "expected a text");
        refused(example("2 + 2?", 4.into()), "expected a text");
        let mut none = example("2 + 2?", "".into());
        none.columns.clear();
        refused(none, "no column reference");
        let mut silent = example("2 + 2?", "Add 2 and 2.".into());
        silent.prompt.truncate(1);
        refused(silent, "nobody asks");
        let mut several = example("2 + 2?", "Add 2 and 2.".into());
        several.completions.push(several.completions[0].clone());
        refused(several, "found several");
    }

    #[test]
    fn unequal_halves_are_refused() {
        let row =
            |tokens: &[u32], weights: &[f32], example| Row::from_tokens(tokens, weights, example);
        let pair = |example| {
            [row(&[1, 2, 9], &[0.0, 0.0, 1.0], example), row(&[3, 9], &[0.0, 1.0], example)]
        };
        let refused = |rows: &[Row]| {
            judge(rows, &|example| format!("a.jsonl:{example}")).unwrap_err().to_string()
        };
        let mut other = pair(4);
        other[1].weights[0] = 0.5;
        assert!(refused(&other).starts_with("a.jsonl:4: its answers"));
        let split = [pair(5).to_vec(), pair(5).to_vec()].concat();
        assert!(refused(&split).starts_with("a.jsonl:5: its answers"));
        judge(&pair(6), &|_| String::new()).unwrap();
    }
}
