//! Rows for objectives that learn an answer and the reason for it, which the column `rationale` holds.

use luthier_core::{Error, Example, Result, Row, Table};
use luthier_loss::Place;
use luthier_model::{
    Tokenizer,
    render::{RenderOptions, Rendered, render_table},
};

use crate::column;

/// The column of the reason.
const COLUMN: &str = "rationale";
/// Between an answer and its reason, as between paragraphs.
const BETWEEN: &str = "\n\n";

/// The rows of every example: the answer (task 0), then the answer with its reason (task 1).
pub fn render(
    table: &Table,
    tokenizer: &Tokenizer,
    options: &RenderOptions,
    place: Place,
    kinds: [bool; 2],
) -> Result<Vec<Rendered>> {
    let several = table.examples.iter().find(|example| example.completions.len() > 1);
    if let Some(example) = several {
        return Err(Error::input(example.origin.to_string(), "expected one answer, found several"));
    }
    let of = |kind: usize| -> Result<Vec<Rendered>> {
        let mut rows = match kind {
            0 => render_table(table, tokenizer, options)?,
            _ => {
                let explained = |example| explained(example, place);
                let examples = table.examples.iter().map(explained).collect::<Result<_>>()?;
                let table = table.with(examples);
                render_table(&table, tokenizer, options)?
            }
        };
        rows.iter_mut().for_each(|rendered| rendered.row.task = kind);
        Ok(rows)
    };
    match kinds {
        [true, true] => {
            let (answers, reasons) = (of(0)?, of(1)?);
            Ok(answers.into_iter().zip(reasons).flat_map(|(a, b)| [a, b]).collect())
        }
        [answer, _] => of(usize::from(!answer)),
    }
}

/// The example with its reason in the answer.
fn explained(example: &Example, place: Place) -> Result<Example> {
    let at = example.origin.to_string();
    let hint = "train.loss.rationale learns the reason for every answer: a text in the column \
        rationale; with alpha = 0 there is none";
    let reason = column::text(example, COLUMN, hint)?;
    let mut explained = example.clone();
    let last = explained.completions.first_mut().and_then(|answer| answer.turns.last_mut());
    let Some(turn) = last else {
        return Err(Error::input(at, "there is no answer to train on"));
    };
    turn.content = match place {
        Place::After => [&turn.content, BETWEEN, reason].concat(),
        Place::Before => [reason, BETWEEN, &turn.content].concat(),
    };
    Ok(explained)
}

/// Refuses rows of which the over-length policy left nothing to learn, or more than there were.
pub fn judge(rows: &[Row], origin: &dyn Fn(usize) -> String) -> Result<()> {
    let at = || origin(rows[0].example);
    if !matches!(rows, [answer, reason] if (answer.task, reason.task) == (0, 1)) {
        let what = "its answer and its answer with a reason are not one row each";
        return Err(Error::input(at(), what)
            .hint("data.overlength = \"split\" tears them apart: choose another"));
    }
    if rows.iter().any(|row| row.trained() == 0) {
        return Err(Error::input(at(), "nothing is left to learn of its answer")
            .hint("raise data.max_length, or data.overlength = \"drop\" leaves long ones out"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use luthier_core::Turn;
    use serde_json::Value;

    use super::*;

    fn table(rationale: Option<Value>) -> Table {
        let prompt = vec![Turn::new("user", "Mend: retrun 1")];
        let answer = Some(Turn::new("assistant", "return 1"));
        let mut example = Example::new("bugs.jsonl", 5, prompt, answer);
        example.columns.extend(rationale.map(|value| (COLUMN.to_string(), value)));
        let text = String::new;
        Table { name: "bugs.jsonl".into(), layout: text(), sha256: text(), examples: vec![example] }
    }

    fn run(rationale: Option<Value>, place: Place, kinds: [bool; 2]) -> Result<Vec<Rendered>> {
        render(&table(rationale), &Tokenizer::bytes(), &RenderOptions::default(), place, kinds)
    }

    /// The text that a row trains.
    fn told(rendered: &Rendered) -> String {
        let ids = rendered.row.targets.iter().zip(&rendered.row.weights);
        let ids: Vec<u32> = ids.filter(|(_, w)| **w != 0.0).map(|(id, _)| *id).collect();
        Tokenizer::bytes().decode(&ids).unwrap()
    }

    #[test]
    fn the_answer_stands_alone_and_then_with_its_reason() {
        let reason = || Some("It is a typo.".into());
        let rows = run(reason(), Place::After, [true, true]).unwrap();
        let texts: Vec<String> = rows.iter().map(told).collect();
        assert_eq!(texts, ["return 1", "return 1\n\nIt is a typo."]);
        assert_eq!(
            rows.iter().map(|r| (r.row.task, r.row.example)).collect::<Vec<_>>(),
            [(0, 0), (1, 0)]
        );
        // Both objectives read the same up to the end of the answer.
        let prompt = rows[0].row.weights.iter().position(|w| *w != 0.0).unwrap();
        let same = prompt + "return 1".len();
        assert_eq!(rows[0].row.ids[..same], rows[1].row.ids[..same]);
        assert_eq!(rows[0].row.targets[..same], rows[1].row.targets[..same]);
        let before = run(reason(), Place::Before, [false, true]).unwrap();
        assert_eq!((before.len(), before[0].row.task), (1, 1));
        assert_eq!(told(&before[0]), "It is a typo.\n\nreturn 1");
        let both: Vec<Row> = rows.into_iter().map(|r| r.row).collect();
        judge(&both, &|_| String::new()).unwrap();
        let error = judge(&both[..1], &|i| format!("bugs.jsonl:{i}")).unwrap_err().to_string();
        assert!(error.starts_with("bugs.jsonl:0: ") && error.contains("split"), "{error}");
    }

    #[test]
    fn without_its_share_the_reason_is_not_even_read() {
        let plain = run(None, Place::After, [true, false]).unwrap();
        assert_eq!(plain, run(Some(3.into()), Place::After, [true, false]).unwrap());
        for (value, what) in [(None, "no column rationale"), (Some(3.into()), "expected a text")] {
            let error = run(value, Place::After, [true, true]).err().unwrap().to_string();
            assert!(error.starts_with("bugs.jsonl:5: ") && error.contains(what), "{error}");
        }
    }
}
