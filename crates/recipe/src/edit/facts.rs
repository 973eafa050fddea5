//! Facts from files: what an editor is trained on, and what it edits.

use luthier_core::{Error, Example, Policy, Result, Row, Seed, Table};
use luthier_model::{
    Tokenizer,
    render::{RenderOptions, render_table},
};
use serde_json::Value;

use super::{Editor, Episode, Judged, Learner};

/// The column with the same asked in other words.
const COLUMN: &str = "rephrase";

/// Facts in two wordings, and texts that shall stay as they are.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What shall be said.
    pub edits: Vec<Row>,
    /// The same in the words of the column `rephrase`, fact by fact.
    pub rephrases: Vec<Row>,
    /// Of these the answers may not drift.
    pub locality: Vec<Row>,
}

/// How long an editor is trained, and on how much at a time.
#[derive(Clone, Copy, Debug)]
pub struct Training {
    /// Edits to learn from.
    pub episodes: usize,
    /// Facts of one edit.
    pub n_edits: usize,
    /// Texts beside it that shall stay.
    pub n_locality: usize,
    /// Of what is drawn.
    pub seed: u64,
}

/// The rows of a table's answers; plain texts are trained whole.
pub fn rows(table: &Table, tokenizer: &Tokenizer) -> Result<Vec<Row>> {
    let rendered = render_table(table, tokenizer, &RenderOptions::default())?;
    let rows: Vec<Row> = rendered.into_iter().map(|rendered| rendered.row).collect();
    match rows.iter().find(|row| row.trained() == 0) {
        None => Ok(rows),
        Some(row) => {
            let at = table.examples[row.example].origin.to_string();
            Err(Error::input(at, "has no answer, so nothing is said"))
        }
    }
}

impl Facts {
    /// Facts with their rephrasings, and what shall stay.
    pub fn new(facts: &Table, locality: &Table, tokenizer: &Tokenizer) -> Result<Self> {
        let other = facts.with(facts.examples.iter().map(rephrased).collect::<Result<_>>()?);
        let (edits, rephrases) = (rows(facts, tokenizer)?, rows(&other, tokenizer)?);
        let locality = rows(locality, tokenizer)?;
        if edits.len() != rephrases.len() {
            return Err(Error::input(&facts.name, "expected one answer per fact"));
        }
        if edits.is_empty() || locality.is_empty() {
            return Err(Error::input(&facts.name, "there is nothing to learn edits from")
                .hint("both facts and texts that shall stay are needed"));
        }
        Ok(Facts { edits, rephrases, locality })
    }

    /// Trains `editor` on facts and texts drawn from these; `told` hears of every episode.
    pub fn train(
        &self,
        policy: &Policy,
        editor: Editor,
        how: &Training,
        told: &mut dyn FnMut(usize, &Judged),
    ) -> Result<Editor> {
        for (key, n) in
            [("episodes", how.episodes), ("n_edits", how.n_edits), ("n_locality", how.n_locality)]
        {
            if n == 0 {
                return Err(Error::input(format!("edit.{key}"), "expected at least 1, got 0"));
            }
        }
        let mut learner = Learner::new(editor)?;
        let seed = Seed(how.seed).split("episodes");
        for number in 0..how.episodes {
            let mut rng = seed.at(number as u64).rng();
            let facts: Vec<usize> = (0..how.n_edits).map(|_| rng.below(self.edits.len())).collect();
            let of = |rows: &[Row]| facts.iter().map(|fact| rows[*fact].clone()).collect();
            let stay = |_| self.locality[rng.below(self.locality.len())].clone();
            let (edits, rephrases) = (of(&self.edits), of(&self.rephrases));
            let locality = (0..how.n_locality).map(stay).collect();
            let judged = learner.episode(policy, &Episode { edits, rephrases, locality })?;
            told(number, &judged);
        }
        Ok(learner.finish())
    }
}

/// The example as the column words it.
fn rephrased(example: &Example) -> Result<Example> {
    let at = example.origin.to_string();
    let Some(Value::String(text)) = example.columns.get(COLUMN) else {
        return Err(Error::input(
            at,
            format!("column {COLUMN}: expected the prompt in other words"),
        )
        .hint("an editor is judged by them: without, it would learn the words alone"));
    };
    let mut other = example.clone();
    let Some(asked) = other.prompt.iter_mut().rev().find(|turn| turn.role == "user") else {
        return Err(Error::input(at, "nobody asks anything, so there are no other words for it"));
    };
    asked.content = text.clone();
    Ok(other)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use luthier_core::Turn;
    use luthier_testkit::{Fake, Shape};

    use super::*;
    use crate::edit::{Mend, edit};

    fn table(facts: &[(&str, Option<&str>)]) -> Table {
        let example = |(i, (prompt, other)): (usize, &(&str, Option<&str>))| {
            let turns = vec![Turn::new("user", *prompt)];
            let answer = Some(Turn::new("assistant", "Four."));
            let mut example = Example::new("facts.jsonl", i + 1, turns, answer);
            let other = other.map(|text| (COLUMN.to_string(), Value::from(text)));
            example.columns.extend(other);
            example
        };
        let examples = facts.iter().enumerate().map(example).collect();
        let text = String::new;
        Table { name: "facts.jsonl".into(), layout: text(), sha256: text(), examples }
    }

    #[test]
    fn an_editor_learns_from_files_and_edits() {
        let bytes = Tokenizer::bytes();
        let facts = table(&[("2 + 2?", Some("Add 2 and 2.")), ("5 - 1?", Some("Take 1 of 5."))]);
        let facts = Facts::new(&facts, &table(&[("Is it?", None)]), &bytes).unwrap();
        assert_eq!((facts.edits.len(), facts.rephrases.len(), facts.locality.len()), (2, 2, 1));
        assert_ne!(facts.edits[0].ids, facts.rephrases[0].ids);
        let shape = Shape { vocab: bytes.vocab_size(), ..Shape::default() };
        let policy = Policy::plain(Arc::new(Fake::new(shape, Seed(1))));
        let mend = Mend { rank: 3, lr: 1e-2, accumulate_bs: 2, ..Mend::default() };
        let mend = Mend { at: Some("layers.1.mlp.{up,down}".into()), ..mend };
        let train = || {
            let editor = Editor::new(policy.model.as_ref(), &mend).unwrap();
            let how = Training { episodes: 6, n_edits: 1, n_locality: 2, seed: 3 };
            let mut heard = 0;
            let editor = facts.train(&policy, editor, &how, &mut |_, _| heard += 1).unwrap();
            assert_eq!(heard, 6);
            edit(&policy, &editor, &facts.edits[..1]).unwrap().1
        };
        let logits = |policy: &Policy| {
            let rows = Arc::new(luthier_core::Rows::single(3));
            let logits = policy.logits(&[1, 5, 2], rows).unwrap();
            logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let edited = logits(&train());
        assert_eq!(edited, logits(&train()));
        assert_ne!(edited, logits(&policy));
    }

    #[test]
    fn a_fact_without_other_words_is_refused_by_its_line() {
        let bytes = Tokenizer::bytes();
        let facts = table(&[("2 + 2?", Some("Add 2 and 2.")), ("5 - 1?", None)]);
        let error = Facts::new(&facts, &facts, &bytes).unwrap_err().to_string();
        assert!(error.starts_with("facts.jsonl:2: column rephrase"), "{error}");
    }
}
