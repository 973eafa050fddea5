//! Scores of a model on data: generated answers, multiple choice, likelihood; and two models side
//! by side.
//!
//! [`evaluate`] is the way in. Outcomes are one number per example (per row of a likelihood), larger
//! is better, in the order of the table, so that two models can be compared pair by pair.

mod answers;
mod calibration;
mod choice;
mod judged;
mod likelihood;
mod passing;
mod ranking;

use std::collections::BTreeMap;

use luthier_core::{Error, Policy, Result, Table};
use luthier_data::Overlength;
use luthier_decode::Finish;
use luthier_model::Tokenizer;
use luthier_probe::{
    Bootstrap, Calibration, Comparison, Kind, Score,
    metric::{FieldCounts, NllReport, RowNll},
};
use serde::{Deserialize, Serialize};

use crate::decode::Decoding;

pub use answers::answers;
pub use calibration::calibration;
pub use choice::choice;
pub use judged::{Judged, judged};
pub use likelihood::{general, likelihood, rows};
pub use ranking::{Pair, pairs, ranking};

/// Told how many of how many examples are finished, from any thread.
pub type OnDone<'a> = &'a mut (dyn FnMut(usize, usize) + Send);

/// Tokens that go through the model in one pass when nothing is generated: few enough that what
/// passes between its layers stays in the caches.
const PASS_TOKENS: usize = 512;

/// How far an evaluation goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Prompt and answer together at most, in tokens: the model's context; 0 is no limit.
    pub max_context: usize,
    /// Longest row of a likelihood, in tokens.
    pub max_length: usize,
    /// What happens to longer rows. Plain text is cut into pieces of `max_length` by default.
    pub overlength: Overlength,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_new_tokens: 256,
            max_context: 0,
            max_length: 1024,
            overlength: Overlength::Split,
        }
    }
}

/// A score with everything it was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// The metric over the whole set.
    pub score: Score,
    /// One outcome per example, larger is better.
    pub outcomes: Vec<f64>,
    /// What was answered; empty when nothing is answered (likelihood).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<AnswerRow>,
    /// Tokens that went through the model: prompts, rows, and what was generated.
    #[serde(default)]
    pub tokens_read: usize,
    /// Of these, tokens that were generated.
    #[serde(default)]
    pub tokens_new: usize,
    /// Answers that ran into the limit of new tokens.
    #[serde(default)]
    pub cut_answers: usize,
    /// Right and wrong by field, for structured answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<BTreeMap<String, FieldCounts>>,
    /// Mean share of right fields, for structured answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field_accuracy: Option<f64>,
    /// How the score was made, where it is compared between papers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The score for every number of answers, where several were sampled for each question.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passing: Vec<Score>,
    /// All three measures of a multiple choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<ChoiceScores>,
    /// How well confidence tells what is right, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Likelihood and perplexity, with each row's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub likelihood: Option<Likelihood>,
}

/// One example and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnswerRow {
    /// `file:line`.
    pub origin: String,
    /// The last words before the answer.
    pub prompt: String,
    /// What the data says.
    pub expected: String,
    /// What the model said, or the choice it prefers.
    pub answer: String,
    /// The outcome, 1 for right.
    pub value: f64,
    /// Why the answer ended; absent for a multiple choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<Finish>,
    /// Log-probability of each choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logps: Option<Vec<f64>>,
}

/// Shares of right answers when log-probabilities are compared in three ways.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceScores {
    /// As they are.
    pub acc: f64,
    /// Per character.
    pub acc_norm: f64,
    /// Per byte.
    pub acc_bytes: f64,
}

/// The likelihood of a set of rows and of each of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Likelihood {
    /// Over all rows.
    pub report: NllReport,
    /// One by one, in the order of the table.
    pub rows: Vec<RowNll>,
    /// Tokens that went through the model, measured or not.
    #[serde(default)]
    pub tokens_read: usize,
}

impl Evaluated {
    /// A score without further parts.
    fn of(score: Score, outcomes: Vec<f64>, answers: Vec<AnswerRow>) -> Self {
        Evaluated {
            score,
            outcomes,
            answers,
            tokens_read: 0,
            tokens_new: 0,
            cut_answers: 0,
            fields: None,
            field_accuracy: None,
            signature: None,
            passing: Vec::new(),
            choice: None,
            calibration: None,
            likelihood: None,
        }
    }
}

/// Reads a metric: a name, or a name with options in TOML, as in
/// `exact_match = {extract = "after_hashes"}`. `key` is where it was given.
pub fn metric(key: &str, text: &str) -> Result<Kind> {
    let kind = named(key, text)?;
    kind.check(key).map(|()| kind)
}

fn named(key: &str, text: &str) -> Result<Kind> {
    let Some((name, _)) = text.split_once('=') else {
        return Kind::named(key, text.trim());
    };
    // A wrong name gets its suggestion; wrong options get the parser's sentence.
    Kind::named(key, name.trim())?;
    let mut table: BTreeMap<String, Kind> =
        toml::from_str(&format!("metric.{text}")).map_err(|e| {
            Error::input(key, format!("`{text}`: {}", e.message()))
                .hint("write it as exact_match = {extract = \"after_hashes\"}")
        })?;
    table.remove("metric").ok_or_else(|| Error::input(key, format!("`{text}` names no metric")))
}

/// Scores a policy on a table. `on_done` hears how many of how many examples are finished.
pub fn evaluate(
    policy: &Policy,
    tokenizer: &Tokenizer,
    table: &Table,
    metric: &Kind,
    limits: &Limits,
    on_done: OnDone,
) -> Result<Evaluated> {
    evaluate_by(None, policy, tokenizer, table, metric, limits, on_done)
}

/// [`evaluate`] with answers decoded by `decoding` in the place of greedy ones by `policy`.
pub fn evaluate_by(
    decoding: Option<&Decoding>,
    policy: &Policy,
    tokenizer: &Tokenizer,
    table: &Table,
    metric: &Kind,
    limits: &Limits,
    on_done: OnDone,
) -> Result<Evaluated> {
    match metric {
        metric if metric.text().is_some() => {
            answers::bounded(decoding, policy, tokenizer, table, metric, limits, on_done)
        }
        Kind::PassAtK(options) => {
            passing::passing(decoding, policy, tokenizer, table, options, limits, on_done)
        }
        _ if decoding.is_some() => {
            let what = format!("{} generates no answers that could be decoded", metric.name());
            Err(Error::input("decode", what).hint("use exact_match or json_match"))
        }
        Kind::Choice(options) => choice(policy, tokenizer, table, options, on_done),
        Kind::Calibration(settings) => {
            calibration(policy, tokenizer, table, settings, limits, on_done)
        }
        Kind::Nll(_) => Ok(likelihood(policy, tokenizer, table, limits, on_done)?.evaluated()),
        other => Err(Error::failed(other.name(), "is not known how to evaluate")),
    }
}

/// Compares two evaluations of the same examples: `after` against `before`.
///
/// Likelihoods are compared by each row's mean log-probability, so that larger is better there too.
pub fn compare(before: &Evaluated, after: &Evaluated) -> Result<Comparison> {
    if before.score.metric != after.score.metric {
        let what =
            format!("{} cannot be compared with {}", before.score.metric, after.score.metric);
        return Err(Error::failed("comparison", what));
    }
    let name = match (&after.likelihood, &after.signature) {
        (Some(_), _) => "logp".to_string(),
        // The number of a set is no mean of its answers'; pair by pair there are only these.
        (None, Some(_)) if after.passing.is_empty() => {
            format!("mean {} of single answers", after.score.metric)
        }
        // An error has no value for one token; the square of its confidence has.
        (None, _) if after.score.metric == "calibration" => "negative Brier score".to_string(),
        (None, _) => after.score.metric.clone(),
    };
    Comparison::of(&name, &before.outcomes, &after.outcomes, &Bootstrap::default())
}

#[cfg(test)]
mod tests {
    use luthier_probe::metric::{ExactMatch, Extract};

    use super::*;

    #[test]
    fn a_metric_is_a_name_or_a_name_with_options() {
        assert_eq!(metric("--metric", "nll").unwrap().name(), "nll");
        let hashes = metric("--metric", "exact_match={extract=\"after_hashes\"}").unwrap();
        let expected = ExactMatch { extract: Extract::AfterHashes, ..ExactMatch::default() };
        assert_eq!(hashes, Kind::ExactMatch(expected));
        let refused = |text: &str, part: &str| {
            let error = metric("--metric", text).unwrap_err();
            assert!(error.to_string().contains(part) && error.exit_code() == 2, "{error}");
        };
        refused("exact_mach", "exact_match");
        refused("exact_mach={strip=true}", "exact_match");
        refused("exact_match={stripp=true}", "stripp");
        refused("exact_match={", "exact_match");
        refused("bleu={max_ngram_order=0}", "--metric.max_ngram_order");
        let text = "pass_at_k={k=[1,5],n=8,by={json_match={}}}";
        let Kind::PassAtK(passing) = metric("--metric", text).unwrap() else { panic!("{text}") };
        assert_eq!((passing.k, passing.n, passing.by.name()), (vec![1, 5], 8, "json_match"));
    }
}
