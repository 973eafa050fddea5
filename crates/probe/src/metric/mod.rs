//! Numbers about answers and texts.

mod bleu;
mod choice;
mod chrf;
mod corpus;
mod exact_match;
mod json_match;
mod nll;
mod pass_at_k;
mod rouge_l;

use luthier_core::{Error, Result, nearest::nearest};
use serde::{Deserialize, Serialize};

pub use bleu::{Bleu, Smooth, Tokenize};
pub use choice::{Choice, ChoiceVerdict, Measure};
pub use chrf::Chrf;
pub use exact_match::{ExactMatch, Extract};
pub use json_match::{FieldCounts, Fields, JsonMatch, field_accuracy, field_counts};
pub use nll::{Nll, NllReport, RowNll, nll};
pub use pass_at_k::{PassAtK, pass_at_k};
pub use rouge_l::RougeL;

use crate::calibration::NextToken;
use crate::stats::{Bootstrap, Score};

/// What a metric says of one answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// 1 for a right answer, 0 for a wrong one; for metrics of likeness, anything between.
    pub value: f64,
    /// The fields of a structured answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Fields>,
}

/// Judges an answer by the expected text.
pub trait Metric: Send + Sync {
    /// The verdict; total: a malformed answer is wrong, never an error.
    fn judge(&self, answer: &str, expected: &str) -> Verdict;

    /// The number of a set of answers with expected texts, where it is not the mean of verdicts.
    fn over(&self, _pairs: &[(&str, &str)], _bootstrap: &Bootstrap) -> Option<Result<Score>> {
        None
    }

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
    /// Likeness by n-grams of words.
    Bleu(Bleu),
    /// Likeness by n-grams of characters.
    Chrf(Chrf),
    /// Likeness by the longest common subsequence of words.
    RougeL(RougeL),
    /// The chance of a right answer among several.
    PassAtK(PassAtK),
    /// Most likely of several choices.
    Choice(Choice),
    /// How well confidence in the next token tells whether it is right.
    Calibration(NextToken),
    /// Likelihood of a text.
    Nll(Nll),
}

impl Kind {
    /// The metric called `name`, with its defaults; `key` is where the name was given.
    pub fn named(key: &str, name: &str) -> Result<Self> {
        Ok(match name {
            "exact_match" => Kind::ExactMatch(ExactMatch::default()),
            "json_match" => Kind::JsonMatch(JsonMatch::default()),
            "bleu" => Kind::Bleu(Bleu::default()),
            "chrf" => Kind::Chrf(Chrf::default()),
            "rouge_l" => Kind::RougeL(RougeL::default()),
            "pass_at_k" => Kind::PassAtK(PassAtK::default()),
            "choice" => Kind::Choice(Choice::default()),
            "calibration" => Kind::Calibration(NextToken::default()),
            "nll" | "perplexity" => Kind::Nll(Nll::default()),
            _ => {
                let known = [
                    "exact_match",
                    "json_match",
                    "bleu",
                    "chrf",
                    "rouge_l",
                    "pass_at_k",
                    "choice",
                    "calibration",
                    "nll",
                    "perplexity",
                ];
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
            Kind::Bleu(_) => "bleu",
            Kind::Chrf(_) => "chrf",
            Kind::RougeL(_) => "rouge_l",
            Kind::PassAtK(_) => "pass_at_k",
            Kind::Choice(_) => "choice",
            Kind::Calibration(_) => "calibration",
            Kind::Nll(_) => "nll",
        }
    }

    /// The judge of generated text, for those metrics that judge text.
    pub fn text(&self) -> Option<&dyn Metric> {
        match self {
            Kind::ExactMatch(metric) => Some(metric),
            Kind::JsonMatch(metric) => Some(metric),
            Kind::Bleu(metric) => Some(metric),
            Kind::Chrf(metric) => Some(metric),
            Kind::RougeL(metric) => Some(metric),
            Kind::PassAtK(_) | Kind::Choice(_) | Kind::Calibration(_) | Kind::Nll(_) => None,
        }
    }

    /// Refuses settings without a meaning; `key` is where they were given.
    pub fn check(&self, key: &str) -> Result<()> {
        match self {
            Kind::Bleu(metric) => metric.check(key),
            Kind::Chrf(metric) => metric.check(key),
            Kind::PassAtK(metric) => metric.check(key),
            _ => Ok(()),
        }
    }

    /// What a perfect set has: 100 where the literature counts so.
    pub fn whole(&self) -> f64 {
        match self {
            Kind::Bleu(_) | Kind::Chrf(_) => 100.0,
            _ => 1.0,
        }
    }

    /// How the number was made, for metrics that are compared between papers.
    pub fn signature(&self) -> Option<String> {
        match self {
            Kind::Bleu(metric) => Some(metric.signature()),
            Kind::Chrf(metric) => Some(metric.signature()),
            _ => None,
        }
    }
}
