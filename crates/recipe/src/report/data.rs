//! The facts a report is made from. Everything is optional: what is absent is not shown.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Everything a report can show.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReportData {
    /// The page's title: usually the recipe's `about`.
    pub title: String,
    /// When the run ended, as it shall be printed.
    pub when: String,
    /// luthier's version.
    pub version: String,
    /// The model that was tuned.
    pub model: Option<ModelFacts>,
    /// The files it was tuned and measured on.
    pub data: Vec<DataFile>,
    /// What the over-length policy took away, per file.
    pub cuts: Vec<Cut>,
    /// How it was tuned.
    pub method: Option<Method>,
    /// Training, step by step.
    pub curve: Vec<CurvePoint>,
    /// Evaluations during training.
    pub evals: Vec<EvalPoint>,
    /// Task metrics before and after; the first is the headline.
    pub tasks: Vec<Task>,
    /// Accuracy per field of a structured answer.
    pub fields: Vec<Field>,
    /// Text that has nothing to do with the task, before and after.
    pub general: Option<General>,
    /// Answers side by side.
    pub answers: Vec<Answer>,
    /// How far each site moved.
    pub changes: Vec<SiteChange>,
    /// Time and memory.
    pub resources: Option<Resources>,
    /// Files the run wrote.
    pub artefacts: Vec<Artefact>,
    /// The command that makes this run again.
    pub command: String,
}

/// A model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelFacts {
    /// Its name.
    pub name: String,
    /// Number of parameters.
    pub parameters: Option<u64>,
    /// SHA-256 of its weights file (or of the list of its shards' hashes).
    pub sha256: String,
    /// Its licence.
    pub license: String,
    /// Where it was read from.
    pub source: String,
    /// Anything else worth a line (architecture, layers, number format).
    pub more: Vec<Fact>,
}

/// A name and what it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fact {
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
}

/// A data file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataFile {
    /// What it served for: `train`, `eval`, `test`, `general`.
    pub role: String,
    /// Its path as the user gave it.
    pub path: String,
    /// The row layout that was recognised.
    pub layout: String,
    /// Rows used.
    pub rows: Option<u64>,
    /// Tokens in them.
    pub tokens: Option<u64>,
    /// Tokens with a non-zero weight.
    pub trained_tokens: Option<u64>,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// What became of rows longer than the limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cut {
    /// The file.
    pub file: String,
    /// The policy: `error`, `drop`, `truncate`, `split`.
    pub policy: String,
    /// Rows over the limit.
    pub rows: u64,
    /// Tokens lost.
    pub tokens: u64,
    /// Rows whose answer was cut.
    pub answers: u64,
    /// Rows that lost their end-of-turn token.
    pub ends: u64,
}

/// How a model was tuned.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Method {
    /// Name of the recipe.
    pub recipe: String,
    /// What exists to be learned: `LoRA`, `all parameters`.
    pub form: String,
    /// Learned parameters.
    pub trainable: Option<u64>,
    /// Learned parameters as a share of the model's.
    pub share: Option<f64>,
    /// Sites that carry learned parameters.
    pub sites: Option<u64>,
    /// Rank.
    pub r: Option<u64>,
    /// Scale numerator.
    pub alpha: Option<f64>,
    /// Every other setting worth a line, in the order to be shown.
    pub settings: Vec<Fact>,
}

/// A step of training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CurvePoint {
    /// Optimizer step.
    pub step: u64,
    /// Token-weighted mean loss.
    pub loss: Option<f64>,
    /// Learning rate.
    pub learning_rate: Option<f64>,
    /// Norm of the gradient before clipping.
    pub grad_norm: Option<f64>,
    /// Speed.
    pub tokens_per_second: Option<f64>,
}

/// An evaluation during training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalPoint {
    /// Optimizer step.
    pub step: u64,
    /// Token-weighted mean loss on the evaluation rows.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
}

/// A measured number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Measured {
    /// The estimate.
    #[serde(deserialize_with = "null_is_nan")]
    pub value: f64,
    /// Its 95 % interval.
    #[serde(deserialize_with = "null_is_no_interval")]
    pub ci95: Option<[f64; 2]>,
}

impl Measured {
    /// The interval, if both its ends are numbers.
    pub fn interval(&self) -> Option<[f64; 2]> {
        self.ci95.filter(|ends| ends.iter().all(|e| e.is_finite()))
    }
}

/// A test of the difference between two measurements of the same items.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Paired {
    /// Name of the test: `McNemar`, `paired bootstrap`.
    pub test: String,
    /// Probability of such a difference if nothing had changed.
    #[serde(deserialize_with = "null_is_nan")]
    pub p: f64,
}

/// A task metric before and after.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Task {
    /// The metric: `exact match`.
    pub metric: String,
    /// What was answered, in the plural: `held-out requests`.
    pub items: String,
    /// How many.
    pub n: Option<u64>,
    /// Before tuning.
    pub before: Option<Measured>,
    /// After tuning.
    pub after: Option<Measured>,
    /// Whether the value is a plain number; otherwise it is a share of 1 and shown in percent.
    pub plain: bool,
    /// Whether less is better.
    pub lower_is_better: bool,
    /// Test of the difference.
    pub paired: Option<Paired>,
}

/// Accuracy of one field of a structured answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Items that have it.
    pub n: Option<u64>,
    /// Share right before.
    pub before: Option<f64>,
    /// Share right after.
    pub after: Option<f64>,
}

/// Perplexity on text that has nothing to do with the task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct General {
    /// What text.
    pub text: String,
    /// Its tokens.
    pub tokens: Option<u64>,
    /// Perplexity before.
    pub before: Option<Measured>,
    /// Perplexity after.
    pub after: Option<Measured>,
    /// After divided by before, with the paired interval.
    pub ratio: Option<Measured>,
    /// Test of the difference.
    pub paired: Option<Paired>,
}

/// One question with its answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Answer {
    /// The prompt.
    pub prompt: String,
    /// The answer wanted.
    pub expected: Option<String>,
    /// The model's before tuning.
    pub before: Option<String>,
    /// The model's after tuning.
    pub after: Option<String>,
    /// Whether the first was right.
    pub before_right: Option<bool>,
    /// Whether the second was right.
    pub after_right: Option<bool>,
}

/// How far one site's weight moved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SiteChange {
    /// Its layer; absent for the embedding, the head and the last norm.
    pub layer: Option<usize>,
    /// Its name within the layer: `attn.q`.
    pub site: String,
    /// ‖Δ‖ / ‖W‖ in the Frobenius norm.
    #[serde(deserialize_with = "null_is_nan")]
    pub relative_norm: f64,
    /// Effective rank of Δ.
    pub effective_rank: Option<f64>,
}

/// A part of the run and the time it took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stage {
    /// What was done.
    pub name: String,
    /// Seconds.
    #[serde(deserialize_with = "null_is_nan")]
    pub seconds: f64,
}

/// Time and memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Seconds of training.
    pub seconds: Option<f64>,
    /// Tokens per second of training.
    pub tokens_per_second: Option<f64>,
    /// Peak resident memory.
    pub peak_rss_bytes: Option<u64>,
    /// Cores used.
    pub cores: Option<u64>,
    /// Precision of the arithmetic.
    pub precision: String,
    /// The processor.
    pub processor: String,
    /// Where the time of the whole run went.
    pub stages: Vec<Stage>,
}

/// A file the run wrote.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Artefact {
    /// Its path relative to the report.
    pub path: String,
    /// Its size.
    pub bytes: Option<u64>,
    /// Its SHA-256.
    pub sha256: String,
}

/// JSON has no word for a number that is none; it is written as `null` and read back here.
fn null_is_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

fn null_is_no_interval<'de, D: Deserializer<'de>>(from: D) -> Result<Option<[f64; 2]>, D::Error> {
    Ok(match Option::<[Option<f64>; 2]>::deserialize(from)? {
        Some([Some(lo), Some(hi)]) => Some([lo, hi]),
        _ => None,
    })
}

/// The curve and the evaluations in the records of a `metrics.jsonl`.
pub fn from_metrics(records: &[Value]) -> (Vec<CurvePoint>, Vec<EvalPoint>) {
    let (mut curve, mut evals) = (Vec::new(), Vec::new());
    for record in records {
        let number = |key: &str| record.get(key).and_then(Value::as_f64);
        let Some(step) = record.get("step").and_then(Value::as_u64) else { continue };
        if let Some(loss) = number("eval_loss") {
            evals.push(EvalPoint { step, loss });
        }
        if let Some(loss) = number("loss") {
            curve.push(CurvePoint {
                step,
                loss: Some(loss),
                learning_rate: number("learning_rate"),
                grad_norm: number("grad_norm"),
                tokens_per_second: number("tokens_per_second"),
            });
        }
    }
    (curve, evals)
}
