//! Pairs of rows for objectives that learn a right answer and know a similar wrong one (paper 25).
//!
//! Data are either preference data, where `chosen` is right and `rejected` wrong, or a prompt and its
//! completion with a column `wrong`: a text, a list of texts, or nothing. Of several wrong answers the
//! most similar counts. An example whose wrong answers are all too far away, or the same, or none,
//! stays, without a mark: all its tokens count the same. How many those are is said.

use std::ops::Range;

use luthier_core::{Completion, Error, Example, Result, Row, Table};
use luthier_loss::term::fait::{LINE, TOKEN};
use luthier_model::{
    Tokenizer,
    render::{RenderOptions, Rendered, render_table},
};
use rayon::prelude::*;
use serde_json::Value;

pub mod marks;
pub mod matching;

use marks::{differing, of_tokens};
use matching::similarity;

/// The column of wrong answers beside a completion.
const COLUMN: &str = "wrong";

/// Two rows for every example, the right answer and the wrong one, with marks where they differ. The
/// wrong one has no weight; where there is none, a row of one token stands in its place.
pub fn render(
    table: &Table,
    tokenizer: &Tokenizer,
    options: &RenderOptions,
    min_similarity: f64,
) -> Result<Vec<Rendered>> {
    let chosen: Vec<Result<Example>> =
        table.examples.par_iter().map(|example| with_nearest(example, min_similarity)).collect();
    let examples = chosen.into_iter().collect::<Result<Vec<Example>>>()?;
    let alone = examples.iter().filter(|example| example.completions.len() == 1).count();
    if alone > 0 {
        let all = examples.len();
        tracing::warn!(
            "{alone} of {all} examples have no wrong answer of similarity {min_similarity} or more: \
             their tokens all count the same"
        );
    }
    let both = table.with(examples);
    let rendered = render_table(&both, tokenizer, options)?;
    let pairs: Vec<&[Rendered]> =
        rendered.chunk_by(|a, b| a.row.example == b.row.example).collect();
    let marked = |pair: &&[Rendered]| {
        let example = &both.examples[pair[0].row.example];
        marked(pair, example).map_err(|e| Error::within(&example.origin, e))
    };
    let pairs: Vec<Result<[Rendered; 2]>> = pairs.par_iter().map(marked).collect();
    Ok(pairs.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// The example with its right answer and the nearest of its wrong ones, if one is near enough.
fn with_nearest(example: &Example, min_similarity: f64) -> Result<Example> {
    let (right, wrong) = answers(example)?;
    let letters = |text: &str| text.chars().collect::<Vec<char>>();
    let own = letters(right.text().trim());
    let near = wrong.into_iter().filter(|wrong| wrong.text().trim() != right.text().trim());
    let near = near.map(|wrong| (similarity(&own, &letters(wrong.text().trim())), wrong));
    // Of equals the first: max_by would take the last.
    let nearest = near.fold(None, |best: Option<(f64, Completion)>, (how, wrong)| match best {
        Some((most, _)) if most >= how => best,
        _ => Some((how, wrong)),
    });
    let mut example = example.clone();
    example.completions = vec![right];
    example.completions.extend(nearest.filter(|(how, _)| *how >= min_similarity).map(|(_, w)| w));
    Ok(example)
}

/// The right answer and the wrong ones of an example.
fn answers(example: &Example) -> Result<(Completion, Vec<Completion>)> {
    let at = || example.origin.to_string();
    let hint = "every row needs a right answer; a wrong one is the rejected of preference data, or \
        stands in a column wrong";
    let is = |answer: &Completion, mark: f64| answer.marks.get("chosen") == Some(&mark);
    let refused = |what: &str| Err(Error::input(at(), what).hint(hint));
    match example.completions.as_slice() {
        [right] => {
            let wrong = |text: &str| {
                let mut wrong = right.clone();
                if let Some(turn) = wrong.turns.last_mut() {
                    turn.content = text.to_string();
                }
                wrong
            };
            let texts: Vec<&str> = match example.columns.get(COLUMN) {
                None | Some(Value::Null) => Vec::new(),
                Some(Value::String(text)) => vec![text],
                Some(Value::Array(all)) if all.iter().all(Value::is_string) => {
                    all.iter().filter_map(Value::as_str).collect()
                }
                Some(_) => {
                    return refused("column wrong: expected a text or a list of texts");
                }
            };
            let texts = texts.into_iter().filter(|text| !text.trim().is_empty());
            Ok((right.clone(), texts.map(wrong).collect()))
        }
        [a, b] if is(a, 1.0) && is(b, 0.0) => Ok((a.clone(), vec![b.clone()])),
        [a, b] if is(a, 0.0) && is(b, 1.0) => Ok((b.clone(), vec![a.clone()])),
        [] => refused("there is no answer"),
        _ => refused("its answers are not one that is right and one that is wrong"),
    }
}

/// The rows of a right and, if there is one, a wrong answer.
fn marked(pair: &[Rendered], example: &Example) -> Result<[Rendered; 2]> {
    let place = |which: usize| words(&pair[which], example.completions[which].text());
    match pair {
        [right] => {
            let mut stands = right.clone();
            let n = stands.row.len().min(1);
            stands.row.ids.truncate(n);
            stands.row.targets.truncate(n);
            stands.row.weights = vec![0.0; n];
            stands.weights.fill(0.0);
            Ok([right.clone(), stands])
        }
        [right, wrong] => {
            let (of_right, of_wrong) = (place(0)?, place(1)?);
            let [a, b] = differing(&right.text[of_right.clone()], &wrong.text[of_wrong.clone()])?;
            let right = tagged(right.clone(), &a, of_right);
            let mut wrong = tagged(wrong.clone(), &b, of_wrong);
            wrong.row.weights.fill(0.0);
            wrong.weights.fill(0.0);
            Ok([right, wrong])
        }
        _ => Err(Error::failed("variants", format!("{} rows are no pair", pair.len()))),
    }
}

/// Where the words of the answer stand in the rendered text.
fn words(rendered: &Rendered, said: &str) -> Result<Range<usize>> {
    let said = said.trim();
    let turn = rendered.spans.last().map_or(0..rendered.text.len(), |span| span.range.clone());
    let found = rendered.text[turn.clone()].find(said).filter(|_| !said.is_empty());
    let begin = found.map(|at| turn.start + at).ok_or_else(|| {
        Error::input("chat template", "it changes the words of the answer, so marks have no place")
    })?;
    Ok(begin..begin + said.len())
}

/// The row with the marks of its answer on its targets.
fn tagged(mut rendered: Rendered, marks: &[u8], place: Range<usize>) -> Rendered {
    let mut all = vec![0; rendered.text.len()];
    all[place].copy_from_slice(marks);
    let tags = of_tokens(&all, &rendered.offsets);
    // The first token is nobody's target.
    rendered.row.tags = tags.into_iter().skip(1).collect();
    debug_assert!(rendered.row.tags.iter().all(|tag| *tag <= LINE | TOKEN));
    rendered
}

/// Refuses what the over-length policy tore apart.
pub fn judge(pair: &[Row], origin: &dyn Fn(usize) -> String) -> Result<()> {
    match pair {
        [right, _] if right.trained() > 0 => Ok(()),
        [right, _] => {
            let what = "nothing is left to learn of its right answer";
            Err(Error::input(origin(right.example), what)
                .hint("raise data.max_length, or data.overlength = \"drop\""))
        }
        _ => {
            let what = format!("{} rows are no pair", pair.len());
            Err(Error::input(origin(pair[0].example), what)
                .hint("data.overlength = \"split\" tears pairs apart: choose another"))
        }
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Turn;

    use super::*;

    fn example(right: &str, wrong: Value) -> Example {
        let turns = vec![Turn::new("user", "Add a and b.")];
        let answer = Some(Turn::new("assistant", right));
        let mut example = Example::new("code.jsonl", 3, turns, answer);
        example.columns.insert(COLUMN.to_string(), wrong);
        example
    }

    fn rendered(examples: Vec<Example>) -> Result<Vec<Rendered>> {
        let text = String::new;
        let table = Table { name: "code.jsonl".into(), layout: text(), sha256: text(), examples };
        render(&table, &Tokenizer::bytes(), &RenderOptions::default(), 0.6)
    }

    /// The letters whose tokens have a mark; every token is a byte here.
    fn marked_letters(row: &Row, bit: u8) -> String {
        let marked = row.targets.iter().zip(&row.tags).filter(|(_, tag)| **tag & bit != 0);
        marked.map(|(id, _)| char::from(*id as u8)).collect()
    }

    #[test]
    fn marks_lie_on_the_targets_where_the_answers_differ() {
        let rows = rendered(vec![example("return a+b", "return a-b".into())]).unwrap();
        let [right, wrong] = rows.as_slice() else { panic!("{} rows", rows.len()) };
        assert_eq!(right.row.tags.len(), right.row.len());
        assert_eq!(
            (marked_letters(&right.row, TOKEN), marked_letters(&wrong.row, TOKEN)),
            ("+".into(), "-".into())
        );
        assert_eq!(marked_letters(&right.row, LINE), "return a+b");
        assert!(right.row.trained() > 0 && wrong.row.trained() == 0);
        judge(&[right.row.clone(), wrong.row.clone()], &|_| String::new()).unwrap();
    }

    #[test]
    fn of_several_wrong_answers_the_nearest_counts_and_a_far_one_does_not() {
        let several =
            example("x = a + b", serde_json::json!(["print(7)", "x = a - b", "x = a * b"]));
        let far = example("x = a + b", "no idea at all".into());
        let mut none = example("x = a + b", Value::Null);
        none.columns.clear();
        let same = example("x = a + b", "x = a + b\n".into());
        let rows = rendered(vec![several, far, none, same]).unwrap();
        assert_eq!(rows.len(), 8);
        assert_eq!(marked_letters(&rows[1].row, TOKEN), "-");
        for pair in rows[2..].chunks(2) {
            assert!(pair[0].row.tags.is_empty() && pair[0].row.trained() > 0);
            assert_eq!((pair[1].row.len(), pair[1].row.trained()), (1, 0));
        }
        let examples: Vec<usize> = rows.iter().map(|r| r.row.example).collect();
        assert_eq!(examples, [0, 0, 1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn preference_data_have_their_wrong_answer() {
        let mut example = example("x = a + b", Value::Null);
        let mut wrong = example.completions[0].clone();
        wrong.turns[0].content = "x = a - b".into();
        wrong.marks.insert("chosen".into(), 0.0);
        example.completions[0].marks.insert("chosen".into(), 1.0);
        example.completions.insert(0, wrong);
        let rows = rendered(vec![example]).unwrap();
        assert_eq!(marked_letters(&rows[0].row, TOKEN), "+");
        assert_eq!(marked_letters(&rows[1].row, TOKEN), "-");
    }

    #[test]
    fn what_cannot_be_compared_is_refused_by_its_line() {
        let error = rendered(vec![example("x = 1", 4.into())]).err().unwrap().to_string();
        assert!(error.starts_with("code.jsonl:3: column wrong"), "{error}");
        let mut two = example("x = 1", Value::Null);
        two.completions.push(two.completions[0].clone());
        let error = rendered(vec![two]).err().unwrap().to_string();
        assert!(error.contains("not one that is right"), "{error}");
    }
}
