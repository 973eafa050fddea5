//! JSON answers, compared as values and field by field.
//!
//! The order of keys and white space mean nothing, numbers compare as numbers (1 equals 1.0),
//! nested objects count by their innermost fields (`when.day`), arrays as one field.

use std::collections::BTreeMap;

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

use super::{Metric, Verdict};

/// Right when the answer is the expected JSON value.
///
/// White space and a Markdown fence (three backticks, with or without `json`) around the value are
/// forgiven; any other text is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonMatch {}

/// What became of each field of one answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fields {
    /// Whether the answer was JSON at all.
    pub parsed: bool,
    /// Fields with the expected value.
    pub right: Vec<String>,
    /// Fields with another value.
    pub wrong: Vec<String>,
    /// Expected fields the answer lacks.
    pub missing: Vec<String>,
    /// Fields nobody asked for.
    pub extra: Vec<String>,
}

impl Fields {
    /// Right fields among all that were expected or given.
    pub fn accuracy(&self) -> f64 {
        let all = self.right.len() + self.wrong.len() + self.missing.len() + self.extra.len();
        if all == 0 {
            f64::from(u8::from(self.parsed))
        } else {
            self.right.len() as f64 / all as f64
        }
    }
}

/// One field over a whole set of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldCounts {
    /// Times it had the expected value.
    pub right: usize,
    /// Times it had another value.
    pub wrong: usize,
    /// Times it was expected and not there.
    pub missing: usize,
    /// Times it was there and not expected.
    pub extra: usize,
}

/// Counts by field name over a set of verdicts.
pub fn field_counts<'a>(
    verdicts: impl IntoIterator<Item = &'a Verdict>,
) -> BTreeMap<String, FieldCounts> {
    let mut counts: BTreeMap<String, FieldCounts> = BTreeMap::new();
    for fields in verdicts.into_iter().filter_map(|v| v.fields.as_ref()) {
        let mut add = |names: &[String], slot: fn(&mut FieldCounts) -> &mut usize| {
            names.iter().for_each(|n| *slot(counts.entry(n.clone()).or_default()) += 1);
        };
        add(&fields.right, |c| &mut c.right);
        add(&fields.wrong, |c| &mut c.wrong);
        add(&fields.missing, |c| &mut c.missing);
        add(&fields.extra, |c| &mut c.extra);
    }
    counts
}

/// Mean over answers of [`Fields::accuracy`]; `None` without structured answers.
pub fn field_accuracy<'a>(verdicts: impl IntoIterator<Item = &'a Verdict>) -> Option<f64> {
    let each: Vec<f64> =
        verdicts.into_iter().filter_map(|v| v.fields.as_ref()).map(Fields::accuracy).collect();
    (!each.is_empty()).then(|| each.iter().sum::<f64>() / each.len() as f64)
}

/// The JSON inside white space or a fence.
fn unfenced(answer: &str) -> &str {
    let text = answer.trim();
    let Some(inner) = text.strip_prefix("```").and_then(|t| t.strip_suffix("```")) else {
        return text;
    };
    let tagged = inner.get(..4).is_some_and(|tag| tag.eq_ignore_ascii_case("json"));
    if tagged { &inner[4..] } else { inner }
}

fn equal_numbers(a: &Number, b: &Number) -> bool {
    let integer = |n: &Number| n.as_i64().map(i128::from).or(n.as_u64().map(i128::from));
    match (integer(a), integer(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a.as_f64() == b.as_f64(),
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => equal_numbers(a, b),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, a)| b.get(k).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

/// The innermost fields of `value` by path; an empty object is a field itself.
fn leaves<'v>(path: &str, value: &'v Value, into: &mut BTreeMap<String, &'v Value>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, inner) in map {
                // Dots inside a key are doubled, so that two different paths never look alike.
                let key = key.replace('.', "..");
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                leaves(&path, inner, into);
            }
        }
        // The empty object as a whole has no fields.
        Value::Object(_) if path.is_empty() => {}
        _ => {
            into.insert(path.to_string(), value);
        }
    }
}

fn fields(answer: Option<&Value>, expected: &Value) -> Fields {
    let (mut want, mut got) = (BTreeMap::new(), BTreeMap::new());
    leaves("", expected, &mut want);
    if let Some(answer) = answer {
        leaves("", answer, &mut got);
    }
    let mut out = Fields { parsed: answer.is_some(), ..Fields::default() };
    for (name, value) in &want {
        let list = match got.get(name) {
            None => &mut out.missing,
            Some(given) if equal(given, value) => &mut out.right,
            Some(_) => &mut out.wrong,
        };
        list.push(name.clone());
    }
    out.extra = got.into_keys().filter(|name| !want.contains_key(name)).collect();
    out
}

impl Metric for JsonMatch {
    fn judge(&self, answer: &str, expected: &str) -> Verdict {
        let answer: Option<Value> = serde_json::from_str(unfenced(answer)).ok();
        // `check` has refused a malformed expected text; without it nothing can be right.
        let expected: Option<Value> = serde_json::from_str(unfenced(expected)).ok();
        let right = matches!((&answer, &expected), (Some(a), Some(b)) if equal(a, b));
        let fields = expected.map(|expected| fields(answer.as_ref(), &expected));
        Verdict { value: f64::from(u8::from(right)), fields }
    }

    fn check(&self, at: &str, expected: &str) -> Result<()> {
        match serde_json::from_str::<Value>(unfenced(expected)) {
            Ok(_) => Ok(()),
            Err(e) => Err(Error::input(at, format!("the expected answer is not JSON: {e}"))
                .hint("use the metric exact_match for plain text")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(answer: &str, expected: &str) -> bool {
        JsonMatch {}.judge(answer, expected).value == 1.0
    }

    #[test]
    fn values_count_not_their_spelling() {
        let expected = r#"{"action": "add", "n": 2, "tags": ["a", 1.5], "when": {"day": null}}"#;
        for answer in [
            r#"{"when":{"day":null},"n":2.0,"tags":["a",1.50],"action":"add"}"#,
            "\n ```json\n{\"action\":\"\\u0061dd\",\"n\":2,\"tags\":[\"a\",15e-1],\"when\":{\"day\":null}}\n```\n",
            "```\n{\"action\":\"add\",\"n\":2,\"tags\":[\"a\",1.5],\"when\":{\"day\":null}}```",
        ] {
            assert!(right(answer, expected), "{answer}");
        }
        for answer in [
            r#"{"action":"add","n":2,"tags":[1.5,"a"],"when":{"day":null}}"#,
            r#"{"action":"Add","n":2,"tags":["a",1.5],"when":{"day":null}}"#,
            r#"{"action":"add","n":"2","tags":["a",1.5],"when":{"day":null}}"#,
            r#"{"action":"add","n":2,"tags":["a",1.5],"when":{}}"#,
            r#"{"action":"add","n":2,"tags":["a",1.5],"when":{"day":null},"x":1}"#,
            r#"Sure! {"action":"add","n":2,"tags":["a",1.5],"when":{"day":null}}"#,
            "",
        ] {
            assert!(!right(answer, expected), "{answer}");
        }
    }

    #[test]
    fn large_integers_are_not_rounded_together() {
        assert!(!right("9007199254740993", "9007199254740992"));
        assert!(right("18446744073709551615", "18446744073709551615"));
        assert!(right("-0.0", "0") && right("1e2", "100"));
    }

    #[test]
    fn malformed_answers_are_wrong_and_never_an_error() {
        let deep = "[".repeat(100_000);
        for answer in
            ["{", "{\"a\":1}}", "nul", "```json", "``````", "\u{0}", "{'a':1}", &deep, "```木"]
        {
            let verdict = JsonMatch {}.judge(answer, r#"{"a": 1, "b": 2}"#);
            let fields = verdict.fields.unwrap();
            assert_eq!((verdict.value, fields.parsed), (0.0, false), "{answer:.20}");
            assert_eq!((fields.missing.len(), fields.accuracy()), (2, 0.0));
        }
    }

    #[test]
    fn fields_are_counted_one_by_one() {
        let expected = r#"{"to": "Ann", "at": {"day": 3, "hour": 9}, "note": "x"}"#;
        let answer = r#"{"to": "Ann", "at": {"day": 4}, "note": "x", "cc": "Bob"}"#;
        let verdict = JsonMatch {}.judge(answer, expected);
        let fields = verdict.fields.clone().unwrap();
        assert_eq!(fields.right, ["note", "to"]);
        assert_eq!(
            (fields.wrong, fields.missing),
            (vec!["at.day".into()], vec!["at.hour".to_string()])
        );
        assert_eq!(fields.extra, ["cc"]);
        let whole = JsonMatch {}.judge(expected, expected);
        let mean = field_accuracy([&verdict, &whole]).unwrap();
        assert!((mean - (2.0 / 5.0 + 1.0) / 2.0).abs() < 1e-12);
        let counts = field_counts([&verdict, &whole]);
        assert_eq!(counts["to"], FieldCounts { right: 2, ..FieldCounts::default() });
        assert_eq!(counts["at.day"], FieldCounts { right: 1, wrong: 1, ..FieldCounts::default() });
        assert_eq!(counts["cc"].extra, 1);
    }

    #[test]
    fn an_expected_text_that_is_not_json_is_the_users_error() {
        let err = JsonMatch {}.check("test.jsonl:4", "Paris").unwrap_err();
        assert!(err.to_string().starts_with("test.jsonl:4") && err.exit_code() == 2);
        assert!(JsonMatch {}.check("test.jsonl:4", "\"Paris\"").is_ok());
    }
}
