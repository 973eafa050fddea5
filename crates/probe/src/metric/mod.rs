//! Numbers about answers and texts.

mod choice;
mod exact_match;
mod json_match;
mod nll;

use luthier_core::{Error, Result, nearest::nearest};
use serde::{Deserialize, Serialize};

pub use choice::{Choice, ChoiceVerdict, Measure};
pub use exact_match::{ExactMatch, Extract};
pub use json_match::{FieldCounts, Fields, JsonMatch, field_accuracy, field_counts};
pub use nll::{Nll, NllReport, RowNll, nll};

/// What a metric says of one answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// 1 for a right answer, 0 for a wrong one.
    pub value: f64,
    /// The fields of a structured answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Fields>,
}

/// Judges an answer by the expected text.
pub trait Metric: Send + Sync {
    /// The verdict; total: a malformed answer is wrong, never an error.
    fn judge(&self, answer: &str, expected: &str) -> Verdict;

    /// Refuses an expected text that no answer could equal; `at` is where it stands.
    fn check(&self, _at: &str, _expected: &str) -> Result<()> {
        Ok(())
    }
}

/// The metrics by the key a recipe uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Kind {
    /// Equal text.
    ExactMatch(ExactMatch),
    /// Equal JSON.
    JsonMatch(JsonMatch),
    /// Most likely of several choices.
    Choice(Choice),
    /// Likelihood of a text.
    Nll(Nll),
}

impl Kind {
    /// The metric called `name`, with its defaults; `key` is where the name was given.
    pub fn named(key: &str, name: &str) -> Result<Self> {
        Ok(match name {
            "exact_match" => Kind::ExactMatch(ExactMatch::default()),
            "json_match" => Kind::JsonMatch(JsonMatch::default()),
            "choice" => Kind::Choice(Choice::default()),
            "nll" | "perplexity" => Kind::Nll(Nll::default()),
            _ => {
                let known = ["exact_match", "json_match", "choice", "nll", "perplexity"];
                let near = nearest(name, known, 1);
                let hint = match near.first() {
                    Some(one) => format!("did you mean `{one}`?"),
                    None => format!("known metrics: {}", known.join(", ")),
                };
                return Err(Error::input(key, format!("no metric is called `{name}`")).hint(hint));
            }
        })
    }

    /// The name a report uses.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::ExactMatch(_) => "exact_match",
            Kind::JsonMatch(_) => "json_match",
            Kind::Choice(_) => "choice",
            Kind::Nll(_) => "nll",
        }
    }

    /// The judge of generated text, for those metrics that judge text.
    pub fn text(&self) -> Option<&dyn Metric> {
        match self {
            Kind::ExactMatch(metric) => Some(metric),
            Kind::JsonMatch(metric) => Some(metric),
            Kind::Choice(_) | Kind::Nll(_) => None,
        }
    }
}
