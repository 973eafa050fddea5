//! Translation pairs as prompts, in both directions (ALMA's second stage, Xu et al. 2024, arXiv
//! 2309.11674).
//!
//! A row of a sentence (its prompt) and its translation (its answer) becomes raw text,
//! `Translate this from {source} to {target}:\n{source}: {sentence}\n{target}:` and, directly behind it,
//! the translation; with `bidirectional` a second row translates it back. Only the translation and the
//! end of text are trained. The columns `source_language` and `target_language` of a row go before the
//! step's. **Departures**: (1) the published code finds the end of the prompt by tokenizing it again,
//! which with a token at the beginning is off by one; here it is found in the text.

use luthier_core::{Completion, Error, Example, Form, Result, Seed, Table, Turn};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Step;

/// `translate = { source = "English", target = "German" }`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Translate {
    /// The language of prompts, where a row does not say it.
    pub source: String,
    /// The language of answers, where a row does not say it.
    pub target: String,
    /// Whether every pair is used in both directions.
    pub bidirectional: bool,
    /// What is asked, with `{source}`, `{target}` and `{text}`.
    pub prompt: String,
}

impl Default for Translate {
    fn default() -> Self {
        Translate {
            source: String::new(),
            target: String::new(),
            bidirectional: true,
            prompt: "Translate this from {source} to {target}:\n{source}: {text}\n{target}:".into(),
        }
    }
}

impl Translate {
    /// The prompt for a sentence.
    pub fn asked(&self, source: &str, target: &str, text: &str) -> String {
        // The sentence last, for it may hold anything.
        let worded = self.prompt.replace("{source}", source).replace("{target}", target);
        worded.replacen("{text}", text, 1)
    }

    fn row(&self, example: &Example, languages: [&str; 2], texts: [&str; 2]) -> Example {
        let asked = self.asked(languages[0], languages[1], texts[0]);
        let turns = vec![Turn::new("assistant", texts[1])];
        Example {
            prompt: vec![Turn::new("user", asked)],
            completions: vec![Completion { turns, ..Completion::default() }],
            form: Form::Raw,
            ..example.clone()
        }
    }
}

impl Step for Translate {
    fn apply(&self, mut table: Table, _seed: Seed) -> Result<Table> {
        if !self.prompt.contains("{text}") {
            return Err(Error::input("translate.prompt", "has no {text} for the sentence"));
        }
        let mut rows = Vec::with_capacity(2 * table.examples.len());
        for example in &table.examples {
            let at = || example.origin.to_string();
            let ([question], [answer]) = (&example.prompt[..], &example.completions[..]) else {
                return Err(Error::input(at(), "expected one sentence and one translation"));
            };
            if question.content.trim().is_empty() || answer.text().trim().is_empty() {
                return Err(Error::input(at(), "the sentence or its translation is empty"));
            }
            let named = |column: &str, usual: &str, key: &str| -> Result<String> {
                let own = example.columns.get(column).and_then(Value::as_str);
                match own.unwrap_or(usual) {
                    "" => Err(Error::input(
                        at(),
                        format!(
                            "which language? the column {column} and \
                        translate.{key} are both empty"
                        ),
                    )),
                    name => Ok(name.to_owned()),
                }
            };
            let from = named("source_language", &self.source, "source")?;
            let to = named("target_language", &self.target, "target")?;
            if from == to {
                return Err(Error::input(at(), format!("translates from {from} to {to}")));
            }
            let texts = [question.content.as_str(), answer.text()];
            rows.push(self.row(example, [&from, &to], texts));
            if self.bidirectional {
                rows.push(self.row(example, [&to, &from], [texts[1], texts[0]]));
            }
        }
        table.examples = rows;
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(n: usize) -> Table {
        let row = |i: usize| {
            let turns = vec![Turn::new("user", format!("sentence {i}"))];
            Example::new("t.jsonl", i + 1, turns, Some(Turn::new("assistant", format!("Satz {i}"))))
        };
        let (name, layout) = ("t.jsonl".to_string(), "made".to_string());
        Table { name, layout, sha256: String::new(), examples: (0..n).map(row).collect() }
    }

    #[test]
    fn a_pair_is_two_rows_in_the_published_words() {
        let step =
            Translate { source: "English".into(), target: "German".into(), ..Translate::default() };
        let after = step.apply(table(58), Seed(0)).unwrap();
        assert_eq!(after.examples.len(), 116);
        let said = |i: usize| {
            let e = &after.examples[i];
            (e.form, e.prompt[0].content.clone(), e.completions[0].text().to_owned())
        };
        let there = "Translate this from English to German:\nEnglish: sentence 0\nGerman:";
        let back = "Translate this from German to English:\nGerman: Satz 0\nEnglish:";
        assert_eq!(said(0), (Form::Raw, there.into(), "Satz 0".into()));
        assert_eq!(said(1), (Form::Raw, back.into(), "sentence 0".into()));
        let one = Translate { bidirectional: false, ..step };
        assert_eq!(one.apply(table(3), Seed(0)).unwrap().examples.len(), 3);
        assert_eq!(one.asked("A", "B", "{target}").matches("{target}").count(), 1);
    }

    #[test]
    fn languages_come_from_the_row_or_the_step_and_must_differ() {
        let mut own = table(1);
        for (column, name) in [("source_language", "Czech"), ("target_language", "English")] {
            own.examples[0].columns.insert(column.into(), name.into());
        }
        let after = Translate::default().apply(own, Seed(0)).unwrap();
        assert!(
            after.examples[0].prompt[0]
                .content
                .starts_with("Translate this from Czech to English:")
        );
        for step in [
            Translate::default(),
            Translate { source: "A".into(), target: "A".into(), ..Translate::default() },
            Translate {
                source: "A".into(),
                target: "B".into(),
                prompt: "x".into(),
                ..Translate::default()
            },
        ] {
            assert_eq!(step.apply(table(1), Seed(0)).unwrap_err().exit_code(), 2);
        }
    }
}
