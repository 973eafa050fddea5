//! A solution that a model wrote, with what is known of its steps.
//!
//! A row of prompt and answer with the columns
//!
//! | column | holds |
//! |---|---|
//! | `reward` | 1 for a right final answer, 0 for a wrong one |
//! | `values` | the value after the first 0, 1, 2, … steps: as many as steps (the last is `reward`) or one more |
//! | `rollouts` | in place of or beside `values`: for the first 0, 1, 2, … steps a list of continuations, each `{"text": …, "reward": …}` |
//!
//! Lists of `rollouts` may end with the first prefix from which nothing right was found; what follows
//! counts as 0.

use luthier_core::{Error, Example, Result};
use serde::Deserialize;
use serde_json::Value;

use super::{Estimator, answer, steps};

/// What was written after a prefix.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Continuation {
    /// The words.
    pub text: String,
    /// 1 when they end right.
    pub reward: f64,
}

/// One solution.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout<'a> {
    /// Its steps, with their delimiters.
    pub steps: Vec<&'a str>,
    /// Whether it ends right.
    pub right: bool,
    /// The value of every prefix, from the empty one to the whole; empty where nothing is known.
    pub values: Vec<f64>,
    /// What was written after each prefix.
    pub continuations: Vec<Vec<Continuation>>,
}

/// From which reward on an answer is right.
pub const RIGHT: f64 = 1.0;

impl<'a> Rollout<'a> {
    /// What a row says.
    pub fn of(
        example: &'a Example,
        delimiter: &str,
        k: usize,
        estimator: Estimator,
    ) -> Result<Self> {
        let at = || example.origin.to_string();
        let steps = steps(answer(example)?, delimiter);
        let column = |name: &str| example.columns.get(name).filter(|v| !v.is_null());
        let reward = example.marks.get("reward").copied();
        let reward = reward.or_else(|| column("reward").and_then(Value::as_f64));
        let Some(reward) = reward else {
            return Err(Error::input(at(), "expected a number in the column reward, found none")
                .hint("1 for a right answer, 0 for a wrong one"));
        };
        let parsed = |name: &str, value: &Value, shape: &str| {
            Error::input(
                format!("{}: column {name}", at()),
                format!("expected {shape}, found {}", crate::layout::describe(value)),
            )
        };
        let mut continuations: Vec<Vec<Continuation>> = Vec::new();
        if let Some(value) = column("rollouts") {
            let shape = "a list for each prefix of {\"text\": …, \"reward\": …}";
            continuations = serde_json::from_value(value.clone())
                .map_err(|_| parsed("rollouts", value, shape))?;
        }
        let mut values: Vec<f64> = Vec::new();
        if let Some(value) = column("values") {
            values = serde_json::from_value(value.clone())
                .map_err(|_| parsed("values", value, "a list of numbers"))?;
        } else if !continuations.is_empty() {
            let of = |tries: &Vec<Continuation>| {
                let right: Vec<bool> = tries.iter().map(|t| t.reward >= RIGHT).collect();
                estimator.value(&right, k)
            };
            values = continuations.iter().map(of).collect();
            if values.len() < steps.len() && values.last() == Some(&0.0) {
                values.resize(steps.len(), 0.0);
            }
        }
        if !values.is_empty() {
            let (n, got) = (steps.len(), values.len());
            if got == n {
                values.push(if reward >= RIGHT { 1.0 } else { 0.0 });
            } else if got != n + 1 {
                let what = format!("{n} steps have {n} or {} values, found {got}", n + 1);
                return Err(Error::input(at(), what)
                    .hint("is step_split the delimiter of these solutions?"));
            }
            if let Some(bad) = values.iter().find(|v| !(0.0..=1.0).contains(*v)) {
                let what = format!("values are chances from 0 to 1, found {bad}");
                return Err(Error::input(at(), what));
            }
        }
        Ok(Rollout { steps, right: reward >= RIGHT, values, continuations })
    }

    /// The right continuations after the first `n` steps, those left out that begin with `step` (none,
    /// when that is empty).
    pub fn right_after(&self, n: usize, step: &str) -> Vec<&str> {
        let step = step.trim();
        let after = self.continuations.get(n).into_iter().flatten();
        let right = after.filter(|t| t.reward >= RIGHT && !t.text.trim().is_empty());
        let other = right.filter(|t| step.is_empty() || !t.text.trim_start().starts_with(step));
        other.map(|t| t.text.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use luthier_core::Turn;
    use serde_json::json;

    use super::*;

    fn example(text: &str, columns: Value) -> Example {
        let answer = Some(Turn::new("assistant", text));
        let mut example = Example::new("r.jsonl", 7, vec![Turn::new("user", "q")], answer);
        if let Value::Object(map) = columns {
            example.columns = map;
        }
        example
    }

    #[test]
    fn values_come_from_the_column_or_from_continuations() {
        let read = |columns: Value| {
            let example = example("a\nb\nc", columns);
            Rollout::of(&example, "\n", 2, Estimator::Unbiased).map(|r| r.values)
        };
        assert_eq!(
            read(json!({"reward": 0, "values": [0.5, 0.5, 0.1]})).unwrap(),
            [0.5, 0.5, 0.1, 0.0]
        );
        assert_eq!(read(json!({"reward": 1})).unwrap(), [0.0; 0]);
        let said = |reward: u8| json!({"text": "x", "reward": reward});
        let tries = json!([[said(1), said(0), said(0)], [said(0), said(0)]]);
        let got = read(json!({"reward": 0, "rollouts": tries})).unwrap();
        assert_eq!(got.len(), 4);
        assert!((got[0] - 2.0 / 3.0).abs() < 1e-12 && got[1..] == [0.0; 3], "{got:?}");
        for (bad, part) in [
            (json!({}), "r.jsonl:7: expected a number in the column reward"),
            (json!({"reward": 0, "values": [1, 1]}), "r.jsonl:7: 3 steps have 3 or 4 values"),
            (json!({"reward": 0, "values": [1, 1, 2]}), "r.jsonl:7: values are chances"),
            (json!({"reward": 0, "rollouts": [1]}), "r.jsonl:7: column rollouts"),
        ] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.starts_with(part), "{error}");
        }
    }

    #[test]
    fn a_continuation_that_repeats_the_step_is_no_other_one() {
        let texts = ["b\nc", " b2\n", "d\ne", ""];
        let tries: Vec<Value> = texts.iter().map(|t| json!({"text": t, "reward": 1})).collect();
        let row = example("a\nb", json!({"reward": 0, "rollouts": [[], tries]}));
        let rollout = Rollout::of(&row, "\n", 5, Estimator::Unbiased);
        // Nothing was found after the empty prefix, and still something after the first step.
        let rollout = rollout.unwrap();
        assert_eq!(rollout.right_after(1, "b\n"), ["d\ne"]);
        assert_eq!(rollout.right_after(1, "z"), ["b\nc", " b2\n", "d\ne"]);
        assert!(rollout.right_after(5, "z").is_empty() && rollout.right_after(1, "").len() == 3);
    }
}
