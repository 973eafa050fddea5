//! Weights of parts of answers (`luthier_data::parts`), from characters to tokens.

use luthier_core::{Error, Result, Table};
use luthier_data::parts::AnswerWeights;
use luthier_loss::Unit;
use luthier_model::render::Rendered;

/// Multiplies the weights of rendered rows by those that their examples give to parts of answers.
pub fn weigh(table: &Table, unit: Unit, rendered: &mut [Rendered]) -> Result<()> {
    let (mut example, mut completion) = (usize::MAX, 0);
    for rendered in rendered {
        let of = rendered.row.example;
        completion = if of == example { completion + 1 } else { 0 };
        example = of;
        let Some(example) = table.examples.get(of) else { continue };
        let Some(weights) = AnswerWeights::of(example, completion)? else { continue };
        let at = example.origin.to_string();
        if !matches!(unit, Unit::Row | Unit::Pair { .. } | Unit::Pairs { .. }) {
            let what = "parts of its answer have weights, which this loss makes other rows of";
            return Err(Error::input(at, what));
        }
        let Some(answer) = example.completions.get(completion) else { continue };
        let turn = example.prompt.len() + answer.turns.len() - 1;
        one(rendered, turn, answer.text(), &weights).map_err(|e| Error::within(at, e))?;
    }
    Ok(())
}

fn one(rendered: &mut Rendered, turn: usize, words: &str, weights: &AnswerWeights) -> Result<()> {
    let lost = || {
        Error::input("answer_weights", "the chat template changes the words of the answer")
            .hint("its parts cannot be told apart in the text; leave out what makes them")
    };
    let span = rendered.spans.iter().find(|span| span.turn == turn).ok_or_else(lost)?;
    let span = span.range.clone();
    // A template may trim the words.
    let lead = words.len() - words.trim_start().len();
    let said = &rendered.text[span.clone()];
    let (begin, skipped, said) = match (said.find(words), said.find(words.trim())) {
        (Some(at), _) => (span.start + at, 0, words),
        (None, Some(at)) => (span.start + at, lead, words.trim()),
        (None, None) => return Err(lost()),
    };
    // Bytes of the words at which a character begins, and their end.
    let bytes: Vec<usize> =
        words.char_indices().map(|(i, _)| i).chain(std::iter::once(words.len())).collect();
    let mut parts = Vec::with_capacity(weights.parts.len());
    for (from, to, weight) in &weights.parts {
        let (Some(from), Some(to)) = (bytes.get(*from), bytes.get(*to)) else {
            let what =
                format!("the part [{from}, {to}] is outside of the {} characters", bytes.len() - 1);
            return Err(Error::input("answer_weights", what));
        };
        let place = |byte: usize| begin + byte.saturating_sub(skipped).min(said.len());
        parts.push((place(*from), place(*to), *weight));
    }
    let end = begin + said.len();
    for (i, covers) in rendered.offsets.iter().enumerate() {
        if covers.start >= end && covers.start <= span.end {
            rendered.weights[i] *= weights.end.unwrap_or(1.0);
        } else if !covers.is_empty() {
            let last = covers.end - 1;
            let part = parts.iter().find(|(from, to, _)| (*from..*to).contains(&last));
            rendered.weights[i] *= part.map_or(1.0, |(_, _, weight)| *weight);
        }
    }
    let trained = rendered.weights.iter().skip(1).any(|w| *w != 0.0);
    if !trained {
        return Err(Error::input("answer_weights", "no token of the answer is left with a weight"));
    }
    rendered.row.weights = rendered.weights.get(1..).unwrap_or_default().to_vec();
    Ok(())
}

#[cfg(test)]
mod tests {
    use luthier_core::{Example, Form, Turn};
    use luthier_model::{
        Tokenizer,
        render::{RenderOptions, render_table},
    };

    use super::*;

    fn weighed(form: Form, words: &str, weights: AnswerWeights) -> Result<Rendered> {
        let turns = vec![Turn::new("user", "q")];
        let mut example = Example::new("t.jsonl", 3, turns, Some(Turn::new("assistant", words)));
        example.form = form;
        AnswerWeights::put(&[Some(weights)], &mut example);
        let (name, layout) = ("t.jsonl".to_string(), "made".to_string());
        let table = Table { name, layout, sha256: String::new(), examples: vec![example] };
        let mut rows = render_table(&table, &Tokenizer::bytes(), &RenderOptions::default())?;
        weigh(&table, Unit::Row, &mut rows)?;
        Ok(rows.remove(0))
    }

    /// The bytes of the text whose tokens have this weight.
    fn with(rendered: &Rendered, weight: f32) -> String {
        let (mut bytes, mut end) = (Vec::new(), 0);
        for (covers, w) in rendered.offsets.iter().zip(&rendered.weights) {
            // Each byte of a character covers all of it.
            if *w == weight && covers.end > end {
                bytes.extend(&rendered.text.as_bytes()[covers.clone()]);
                end = covers.end;
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn exactly_the_tokens_of_a_part_have_its_weight() {
        for form in [Form::Raw, Form::Chat] {
            let parts = vec![(0, 4, 0.5), (6, 10, 0.0)];
            let plain = weighed(form, "één\ntwo\nthree", AnswerWeights::default()).unwrap();
            let got = AnswerWeights { parts, end: None };
            let got = weighed(form, "één\ntwo\nthree", got).unwrap();
            assert_eq!(with(&got, 0.5), "één\n", "{form:?}");
            assert_eq!(plain.tokens, got.tokens);
            assert_eq!(
                with(&plain, 1.0).replacen("één\n", "", 1).replacen("o\nth", "", 1),
                with(&got, 1.0)
            );
            assert_eq!(got.row.weights, got.weights[1..]);
            let cut = AnswerWeights { parts: Vec::new(), end: Some(0.0) };
            let cut = weighed(form, "één\ntwo\nthree", cut).unwrap();
            assert_eq!(with(&cut, 1.0), "één\ntwo\nthree", "{form:?}");
            assert_eq!(cut.row.trained(), "één\ntwo\nthree".len());
        }
    }

    #[test]
    fn parts_that_cannot_be_are_refused_by_their_row() {
        let of = |parts, end| weighed(Form::Chat, "abc", AnswerWeights { parts, end });
        for bad in [of(vec![(0, 4, 1.0)], None), of(vec![(0, 3, 0.0)], Some(0.0))] {
            let error = bad.unwrap_err().to_string();
            assert!(error.starts_with("t.jsonl:3: answer_weights"), "{error}");
        }
    }
}
