//! Multiple choice by likelihood, as lm-evaluation-harness defines it: the choice with the largest
//! summed log-probability (`acc`), or the largest per character (`acc_norm`) or byte (`acc_bytes`)
//! of its text. Of equals, the first.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// What a choice's log-probability is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Nothing.
    #[default]
    Acc,
    /// The number of characters of its text.
    AccNorm,
    /// The number of UTF-8 bytes of its text.
    AccBytes,
}

/// Picks the most likely of several choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Choice {
    /// The measure that is the metric's value.
    pub measure: Measure,
}

/// One question's outcome under all three measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChoiceVerdict {
    /// The choice with the largest log-probability.
    pub picked: usize,
    /// Whether it is the right one.
    pub acc: bool,
    /// The same per character.
    pub acc_norm: bool,
    /// The same per byte.
    pub acc_bytes: bool,
}

impl ChoiceVerdict {
    /// 1 or 0 under `measure`.
    pub fn value(&self, measure: Measure) -> f64 {
        f64::from(u8::from(match measure {
            Measure::Acc => self.acc,
            Measure::AccNorm => self.acc_norm,
            Measure::AccBytes => self.acc_bytes,
        }))
    }
}

fn first_largest(scores: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, score) in scores.enumerate() {
        if score > best.1 {
            best = (i, score);
        }
    }
    best.0
}

impl Choice {
    /// Judges one question: `logps[i]` is the summed log-probability of the tokens of `choices[i]`
    /// after the question, `answer` the index of the right one, `at` where the question stands.
    pub fn judge(
        &self,
        at: &str,
        logps: &[f64],
        choices: &[&str],
        answer: usize,
    ) -> Result<ChoiceVerdict> {
        if logps.len() != choices.len() || answer >= choices.len() {
            let what = format!(
                "expected one of {} choices, got answer {answer} and {} log-probabilities",
                choices.len(),
                logps.len()
            );
            return Err(Error::input(at, what).hint("answers are counted from 0"));
        }
        if let Some(i) = logps.iter().position(|logp| logp.is_nan()) {
            return Err(Error::failed(at, format!("choice {i} has the log-probability NaN")));
        }
        if choices.iter().any(|text| text.is_empty()) {
            return Err(Error::input(at, "has an empty choice"));
        }
        let per = |length: fn(&str) -> usize| {
            first_largest(logps.iter().zip(choices).map(|(l, text)| l / length(text) as f64))
        };
        let picked = first_largest(logps.iter().copied());
        Ok(ChoiceVerdict {
            picked,
            acc: picked == answer,
            acc_norm: per(|text| text.chars().count()) == answer,
            acc_bytes: per(str::len) == answer,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_measures_can_disagree() {
        // Per character −1, −0.75, −1; per byte −1, −0.75, −0.5.
        let (logps, choices) = ([-2.0, -3.0, -4.0], ["no", "maya", "éééé"]);
        let judge = |answer| Choice::default().judge("q", &logps, &choices, answer).unwrap();
        assert_eq!(
            judge(0),
            ChoiceVerdict { picked: 0, acc: true, acc_norm: false, acc_bytes: false }
        );
        assert!(judge(1).acc_norm && !judge(1).acc);
        assert!(judge(2).acc_bytes && judge(2).value(Measure::AccBytes) == 1.0);
    }

    #[test]
    fn the_first_of_equals_wins() {
        let verdict = Choice::default().judge("q", &[-1.0, -1.0], &["a", "b"], 1).unwrap();
        assert_eq!((verdict.picked, verdict.acc), (0, false));
    }

    #[test]
    fn questions_without_a_possible_answer_are_refused() {
        let refused = |logps: &[f64], choices: &[&str], answer| {
            let err = Choice::default().judge("q.jsonl:3", logps, choices, answer).unwrap_err();
            assert!(err.to_string().starts_with("q.jsonl:3"));
        };
        refused(&[-1.0], &["a"], 1);
        refused(&[-1.0], &["a", "b"], 0);
        refused(&[f64::NAN, -1.0], &["a", "b"], 0);
        refused(&[-1.0, -1.0], &["a", ""], 0);
    }
}
