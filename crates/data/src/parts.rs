//! Weights of parts of an answer, kept in a column beside it until it is tokens.
//!
//! The column `answer_weights` is a list with an entry (or null) for every completion:
//! `{"parts": [[0, 12, 0.0], [12, 30, 1.5]], "end": 0.0}`. A part is a range of characters of the
//! completion's last turn with the weight of its tokens; `end` is that of the token which ends the
//! answer. What no part names has the weight it had. A token across a boundary belongs to the later
//! part.

use luthier_core::{Error, Example, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The column's name.
pub const COLUMN: &str = "answer_weights";

/// Weights within one answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AnswerWeights {
    /// Ranges of characters, from and up to, with the weight of each; in order, without overlap.
    pub parts: Vec<(usize, usize, f32)>,
    /// The weight of the token that ends the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<f32>,
}

impl AnswerWeights {
    /// Keeps `all`, one for each completion, with the example.
    pub fn put(all: &[Option<AnswerWeights>], example: &mut Example) {
        let entry = |one: &Option<AnswerWeights>| match one {
            None => Value::Null,
            Some(one) => {
                let part = |(from, to, w): &(usize, usize, f32)| {
                    // An f32 as the shortest text that gives it back, not as its digits in f64.
                    let w: f64 = w.to_string().parse().unwrap_or(f64::from(*w));
                    Value::from(vec![Value::from(*from), Value::from(*to), Value::from(w)])
                };
                let parts: Vec<Value> = one.parts.iter().map(part).collect();
                let mut object = serde_json::Map::new();
                object.insert("parts".to_owned(), Value::from(parts));
                if let Some(end) = one.end {
                    object.insert("end".to_owned(), Value::from(f64::from(end)));
                }
                Value::Object(object)
            }
        };
        let all: Vec<Value> = all.iter().map(entry).collect();
        example.columns.insert(COLUMN.to_owned(), Value::from(all));
    }

    /// Those of the completion number `completion`, if there are any.
    pub fn of(example: &Example, completion: usize) -> Result<Option<AnswerWeights>> {
        let Some(value) = example.columns.get(COLUMN) else { return Ok(None) };
        let at = || format!("{}: column {COLUMN}", example.origin);
        let entry = match value {
            Value::Null => return Ok(None),
            Value::Array(all) => all.get(completion).unwrap_or(&Value::Null),
            _ => {
                return Err(Error::input(at(), "expected a list with an entry for every answer"));
            }
        };
        if entry.is_null() {
            return Ok(None);
        }
        let weights: AnswerWeights = serde_json::from_value(entry.clone()).map_err(|e| {
            Error::input(at(), e.to_string())
                .hint("write an entry as {\"parts\": [[0, 12, 0.0]], \"end\": 1.0}")
        })?;
        let mut last = 0;
        for (from, to, weight) in &weights.parts {
            if from >= to || *from < last || !weight.is_finite() {
                let what = format!(
                    "expected parts in order, without overlap and with finite weights, got \
                    [{from}, {to}, {weight}] after {last}"
                );
                return Err(Error::input(at(), what));
            }
            last = *to;
        }
        if weights.end.is_some_and(|w| !w.is_finite()) {
            return Err(Error::input(at(), "end is not a finite number"));
        }
        Ok(Some(weights))
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Turn;

    use super::*;

    #[test]
    fn what_is_put_is_found_and_nonsense_is_refused_by_its_row() {
        let answer = Some(Turn::new("assistant", "one two"));
        let mut example = Example::new("t.jsonl", 4, vec![Turn::new("user", "?")], answer);
        assert_eq!(AnswerWeights::of(&example, 0).unwrap(), None);
        let weights = AnswerWeights { parts: vec![(0, 4, 0.0), (4, 7, 0.1)], end: Some(0.0) };
        AnswerWeights::put(&[None, Some(weights.clone())], &mut example);
        assert_eq!(AnswerWeights::of(&example, 0).unwrap(), None);
        assert_eq!(AnswerWeights::of(&example, 1).unwrap(), Some(weights));
        assert!(example.columns[COLUMN].to_string().contains("[4,7,0.1]"));
        for bad in ["[{\"parts\": [[3, 2, 1.0]]}]", "[{\"parts\": [[0, 3, 1], [2, 4, 1]]}]", "3"] {
            example.columns.insert(COLUMN.to_owned(), serde_json::from_str(bad).unwrap());
            let error = AnswerWeights::of(&example, 0).unwrap_err().to_string();
            assert!(error.starts_with("t.jsonl:4: column answer_weights"), "{error}");
        }
    }
}
