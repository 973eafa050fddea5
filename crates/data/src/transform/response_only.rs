//! Response tuning (Hewitt et al. 2024, arXiv 2409.14254): answers without their questions.
//!
//! Every user turn becomes empty. It stays a turn, so that the template writes its marks: a model tuned
//! without them would meet them for the first time when it is asked something. **Departures**: none.

use luthier_core::{Error, Form, Result, Seed, Table};
use serde::{Deserialize, Serialize};

use crate::Step;

/// `response_only = {}`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResponseOnly {}

impl Step for ResponseOnly {
    fn apply(&self, mut table: Table, _seed: Seed) -> Result<Table> {
        for example in &mut table.examples {
            let at = example.origin.to_string();
            if example.form == Form::Raw {
                return Err(Error::input(at, "raw text has no user turn that could be emptied")
                    .hint("read the rows with form = \"chat\""));
            }
            let mut users = example.prompt.iter_mut().filter(|turn| turn.role == "user").peekable();
            if users.peek().is_none() {
                return Err(Error::input(at, "there is no user turn to empty"));
            }
            users.for_each(|turn| turn.content.clear());
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::{Example, Turn};

    use super::*;

    fn table(examples: Vec<Example>) -> Table {
        let (name, layout) = ("t.jsonl".to_string(), "made".to_string());
        Table { name, layout, sha256: String::new(), examples }
    }

    fn example(turns: &[(&str, &str)]) -> Example {
        let turns = turns.iter().map(|(role, text)| Turn::new(*role, *text)).collect();
        Example::new("t.jsonl", 3, turns, Some(Turn::new("assistant", "Paris.")))
    }

    #[test]
    fn questions_become_empty_turns_and_all_else_stays() {
        let turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "?")];
        let before = example(&turns);
        let after = ResponseOnly {}.apply(table(vec![before.clone()]), Seed(1)).unwrap();
        let after = &after.examples[0];
        let texts: Vec<&str> = after.prompt.iter().map(|turn| turn.content.as_str()).collect();
        assert_eq!(texts, ["Be kind.", "", "Hello", ""]);
        let roles = |e: &Example| e.prompt.iter().map(|t| t.role.clone()).collect::<Vec<_>>();
        assert_eq!((roles(after), &after.completions), (roles(&before), &before.completions));
    }

    #[test]
    fn what_has_no_question_is_refused_by_its_row() {
        let raw = Example { form: Form::Raw, ..example(&[("user", "x")]) };
        for bad in [raw, example(&[("system", "x")])] {
            let error = ResponseOnly {}.apply(table(vec![bad]), Seed(1)).unwrap_err();
            assert!(error.to_string().starts_with("t.jsonl:3"), "{error}");
        }
    }
}
