//! Pairs of rows for objectives that compare a better and a worse answer to one prompt.

use luthier_core::{Error, Example, Result, Row, Table};
use luthier_model::{
    Tokenizer,
    render::{RenderOptions, Rendered, render_table},
};

use crate::unpaired;

/// Two rows for every example: the chosen answer, then the rejected one.
pub fn render(
    table: &Table,
    tokenizer: &Tokenizer,
    options: &RenderOptions,
) -> Result<Vec<Rendered>> {
    table.examples.iter().try_for_each(check)?;
    let ordered = |example: &Example| {
        let mut example = example.clone();
        example.completions.sort_by(|a, b| chosen(b).total_cmp(&chosen(a)));
        example
    };
    let ordered = table.with(table.examples.iter().map(ordered).collect());
    let rows = render_table(&ordered, tokenizer, options)?;
    let apart = |pair: &[Rendered]| match pair {
        [a, b] => a.row.example == b.row.example,
        _ => false,
    };
    match rows.chunks(2).find(|pair| !apart(pair)) {
        None => Ok(rows),
        Some(pair) => {
            let at = ordered.examples[pair[0].row.example].origin.to_string();
            Err(Error::failed(at, "its two answers did not become two rows"))
        }
    }
}

/// The mark of an answer; without one it counts as neither.
fn chosen(answer: &luthier_core::Completion) -> f64 {
    answer.marks.get("chosen").copied().unwrap_or(f64::NAN)
}

fn check(example: &Example) -> Result<()> {
    let at = || example.origin.to_string();
    let hint = "every row needs a better and a worse answer, in the columns chosen and rejected";
    let [a, b] = example.completions.as_slice() else {
        let what = format!("expected two answers, found {}", example.completions.len());
        return Err(Error::input(at(), what).hint(hint));
    };
    let marks = [chosen(a), chosen(b)];
    if marks.iter().any(|mark| mark.is_nan()) {
        return Err(
            Error::input(at(), "its answers are not marked as chosen and rejected").hint(hint)
        );
    }
    if marks[0] == marks[1] {
        return Err(Error::input(at(), "a tie: neither of its answers is the better one")
            .hint("leave such rows out"));
    }
    if a.turns == b.turns {
        return Err(Error::input(at(), "chosen and rejected are the same answer")
            .hint("leave such rows out"));
    }
    let scores = [a, b].map(|answer| answer.marks.get("score").copied());
    if let [Some(first), Some(second)] = scores
        && first == second
    {
        let what = format!("a tie: both answers have the score {first}");
        return Err(Error::input(at(), what).hint("leave such rows out"));
    }
    Ok(())
}

/// Pairs in groups of `size`: what is left over at the end is filled up with pairs that count for nothing.
pub fn groups(mut rows: Vec<Row>, size: usize) -> Vec<Row> {
    let last: Vec<Row> = rows.iter().rev().take(2).rev().map(unpaired::untrained).collect();
    while !rows.is_empty() && !rows.len().is_multiple_of(2 * size) {
        rows.extend_from_slice(&last);
    }
    rows
}

/// Refuses answers of which the over-length policy left nothing, or nothing different.
pub fn judge(pair: &[Row], origin: &dyn Fn(usize) -> String) -> Result<()> {
    let [chosen, rejected] = pair else {
        let what = format!("{} rows are no pair", pair.len());
        return Err(Error::input(origin(pair[0].example), what)
            .hint("data.overlength = \"split\" tears pairs apart: choose another"));
    };
    for (row, which) in [(chosen, "chosen"), (rejected, "rejected")] {
        if row.trained() == 0 {
            let what = format!("nothing is left to learn of its {which} answer");
            return Err(Error::input(origin(row.example), what).hint(
                "raise data.max_length, or data.overlength = \"drop\" leaves long pairs out",
            ));
        }
    }
    if chosen.ids == rejected.ids && chosen.targets == rejected.targets {
        let what = "chosen and rejected are the same tokens, as far as they are read";
        return Err(Error::input(origin(chosen.example), what)
            .hint("raise data.max_length, or leave such rows out"));
    }
    Ok(())
}
