//! The tokens of a call that decide which tool is called weigh more (TL-Training, Ye et al. 2025, paper 66).
//!
//! `data.steps`' `key_tokens` has kept the name of the called tool, `g`, and those of all others. With the
//! names as tokens where they stand, the deciding tokens `K` are the first of `g` and, for every other name
//! that begins with the same `c > 0` tokens, the one after them. Then
//!
//! `w = clip(|NK| / |K|, 1, max_weight)`, with `NK` all other trained tokens of the row,
//!
//! and `nll`'s mean by weight is the paper's `(w Σ_K nll + Σ_NK nll) / (w |K| + |NK|)`.
//!
//! **Departures**: (1) the published code leaves tokens that end a parameter's value out of `|NK|`; the
//! paper's count is used. (2) A name that is the beginning of another's decides with the token behind it.

use luthier_core::{Error, Example, Result, Table};
use luthier_data::transform::key_tokens::COLUMN;
use luthier_model::{Tokenizer, render::Rendered};
use serde_json::Value;

/// What a deciding token weighs, where `keys` of `keys + others` tokens decide.
pub fn key_weight(keys: usize, others: usize, max_weight: f64) -> f64 {
    (others as f64 / keys as f64).max(1.0).min(max_weight)
}

/// Where `gold` decides against `others`: places among the tokens of the call from its name on.
pub fn key_places(gold: &[u32], others: &[Vec<u32>]) -> Vec<usize> {
    let common = |other: &Vec<u32>| gold.iter().zip(other).take_while(|(a, b)| a == b).count();
    let mut places: Vec<usize> = others.iter().map(common).chain([0]).collect();
    places.sort_unstable();
    places.dedup();
    // What goes on like another name to the end of the text decides nothing.
    places.retain(|place| *place < gold.len());
    places
}

/// Lets the deciding tokens of every row that has the column weigh more.
pub fn weigh(table: &Table, tokenizer: &Tokenizer, rendered: &mut [Rendered]) -> Result<()> {
    for row in rendered {
        let Some(example) = table.examples.get(row.row.example) else { continue };
        if let Some(found) = example.columns.get(COLUMN) {
            let found = Found::read(found).ok_or_else(|| unreadable(example))?;
            found.weigh(example, tokenizer, row)?;
        }
    }
    Ok(())
}

/// What the data step has found.
struct Found<'a> {
    name: &'a str,
    others: Vec<&'a str>,
    max_weight: f64,
}

fn unreadable(example: &Example) -> Error {
    let what = format!("column {COLUMN}: expected a name, others and max_weight");
    Error::input(example.origin.to_string(), what)
        .hint("the step key_tokens of data.steps writes this column; another of its name must go")
}

impl<'a> Found<'a> {
    fn read(value: &'a Value) -> Option<Self> {
        let name = value.get("name")?.as_str()?;
        let others = value.get("others")?.as_array()?;
        let others = others.iter().map(Value::as_str).collect::<Option<Vec<&str>>>()?;
        let max_weight = value.get("max_weight")?.as_f64()?;
        Some(Found { name, others, max_weight })
    }

    fn weigh(&self, example: &Example, tokenizer: &Tokenizer, row: &mut Rendered) -> Result<()> {
        let trained = |at: usize| row.weights[at] != 0.0;
        let span = row.spans.iter().rev().find(|span| span.weight != 0.0);
        let Some(span) = span.map(|span| span.range.clone()) else { return Ok(()) };
        let Some(begin) = row.text[span.clone()].find(self.name).map(|at| span.start + at) else {
            let what =
                format!("the called tool's name `{}` is not in its answer's text", self.name);
            return Err(Error::failed(example.origin.to_string(), what)
                .hint("the chat template writes calls in another way"));
        };
        let first = row.offsets.iter().position(|covers| covers.end > begin);
        let Some(first) = first else { return Ok(()) };
        let gold = &row.tokens[first..];
        let behind = begin + self.name.len();
        let other = |name: &&str| -> Result<Vec<u32>> {
            let text = [&row.text[..begin], *name, &row.text[behind..]].concat();
            let tokens = tokenizer.encode_with_offsets(&text)?;
            let at = tokens.iter().position(|(_, covers)| covers.end > begin);
            Ok(tokens[at.unwrap_or(tokens.len())..].iter().map(|(id, _)| *id).collect())
        };
        let others: Vec<Vec<u32>> = self.others.iter().map(other).collect::<Result<_>>()?;
        let places = key_places(gold, &others).into_iter().map(|place| first + place);
        let keys: Vec<usize> = places.filter(|at| trained(*at)).collect();
        if keys.is_empty() {
            return Ok(());
        }
        let all = (0..row.weights.len()).filter(|at| trained(*at)).count();
        let weight = key_weight(keys.len(), all - keys.len(), self.max_weight) as f32;
        for at in keys {
            row.weights[at] *= weight;
            // A row's positions are those of its targets: the first token has none.
            if let Some(target) = at.checked_sub(1) {
                row.row.weights[target] = row.weights[at];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::{Seed, Turn};
    use luthier_data::{Step, transform::key_tokens::KeyTokens};
    use luthier_model::render::{RenderOptions, render_table};

    use super::*;

    #[test]
    fn weights_are_those_of_the_paper() {
        let weight = |others, keys| key_weight(keys, others, 9.0);
        assert_eq!([weight(22, 2), weight(18, 2), weight(49, 1)], [9.0; 3]);
        assert_eq!((weight(6, 1), weight(1, 2)), (6.0, 1.0));
        let loss = |keys: usize, others: usize| {
            let w = weight(others, keys);
            (w * keys as f64 * 2.0 + others as f64 * 0.5) / (w * keys as f64 + others as f64)
        };
        assert!((loss(2, 22) - 1.175).abs() < 1e-12 && (loss(1, 6) - 1.25).abs() < 1e-12);
    }

    #[test]
    fn a_name_decides_where_others_go_another_way() {
        // get P apers By Key words; get P aper Details; finish.
        let gold = [1, 2, 3, 4, 5, 6];
        assert_eq!(key_places(&gold, &[vec![1, 2, 7, 8], vec![9]]), [0, 2]);
        assert_eq!(key_places(&gold, &[vec![1, 2, 3, 9], vec![1, 2, 3, 8], vec![1, 9]]), [0, 1, 3]);
        assert_eq!(key_places(&gold, &[gold.to_vec()]), [0]);
    }

    /// One token a byte: `get_paper(` against `get_papers(`, `get_author(` and `finish(`.
    #[test]
    fn a_rendered_call_weighs_what_decides() {
        let system = "def get_paper(t: str):\ndef get_papers(by: str):\ndef get_author(n: str):\ndef finish(a: str):";
        let prompt = vec![Turn::new("system", system), Turn::new("user", "?")];
        let answer = Turn::new("assistant", "get_paper(t='get_paper')");
        let example = Example::new("t.jsonl", 1, prompt, Some(answer));
        let (name, layout, sha256) = (String::new(), String::new(), String::new());
        let table = Table { name, layout, sha256, examples: vec![example] };
        let table = KeyTokens::default().apply(table, Seed(0)).unwrap();
        let tokenizer = Tokenizer::bytes();
        let mut rows = render_table(&table, &tokenizer, &RenderOptions::default()).unwrap();
        let plain = rows[0].clone();
        weigh(&table, &tokenizer, &mut rows).unwrap();
        let row = &rows[0];
        let trained: Vec<usize> =
            (0..plain.weights.len()).filter(|i| plain.weights[*i] == 1.0).collect();
        // g, the p of paper, and the ( behind it, of 24 letters and the end of the turn.
        let keys: Vec<usize> = [0, 4, 9].iter().map(|place| trained[*place]).collect();
        let want = 22.0 / 3.0;
        assert_eq!(trained.len(), 25);
        for (i, weight) in row.weights.iter().enumerate() {
            let want = if keys.contains(&i) { want as f32 } else { plain.weights[i] };
            assert_eq!(*weight, want, "{i}");
        }
        assert_eq!(row.row.weights, row.weights[1..]);
    }
}
