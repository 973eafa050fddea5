//! What a run tells about itself while it runs: `metrics.jsonl`, TensorBoard events, a progress line.
//!
//! Every record is written once, as a [`Line`], and goes to both files. The order that makes a
//! resumed run's `metrics.jsonl` equal to an uninterrupted one's: write the lines of step N
//! (step, then evaluation, then samples), [`Log::sync`], and only then checkpoint N. A resumed run
//! opens its log with the step it resumes from, which drops what was written beyond it.

pub mod metrics;
pub mod progress;
pub mod tensorboard;

use std::path::Path;

use luthier_core::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value};

pub use metrics::Metrics;
pub use progress::{Progress, rss};
pub use tensorboard::Events;

/// File name of the metrics inside a run directory.
pub const METRICS: &str = "metrics.jsonl";

/// One record of a run. Every variant carries the optimizer step it belongs to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Line {
    /// An optimizer step.
    Step(Step),
    /// An evaluation.
    Eval(Eval),
    /// A generation, so that progress can be read and not only plotted.
    Sample(Sample),
    /// The end of training.
    End(End),
}

/// What is known after an optimizer step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Step {
    /// Optimizer steps done, counting from 1.
    pub step: u64,
    /// Passes over the data, with a fraction.
    pub epoch: f64,
    /// Token-weighted mean loss of the step.
    pub loss: f64,
    /// Learning rate used for the step.
    pub learning_rate: f64,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Tokens seen since the start of the run (TensorBoard: `train/num_tokens`, as in TRL).
    pub tokens: u64,
    /// Speed of this step.
    pub tokens_per_second: f64,
    /// Seconds of training since the start of the run.
    pub seconds: f64,
    /// Terms an objective reports of itself (`rewards/margins`, `entropy`, …).
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// What an evaluation found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Eval {
    /// Optimizer steps done.
    pub step: u64,
    /// Passes over the data, with a fraction.
    pub epoch: f64,
    /// Token-weighted mean loss over the evaluation rows.
    pub eval_loss: f64,
    /// Seconds it took.
    pub eval_runtime: f64,
    /// Further metrics, each named `eval_…`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A prompt and what the model under training makes of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// Optimizer steps done.
    pub step: u64,
    /// What the model was asked.
    pub sample_prompt: String,
    /// What it answered.
    pub sample_text: String,
    /// What it should have answered, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_expected: Option<String>,
}

/// The whole of training in numbers, under the Hugging Face trainer's names.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct End {
    /// Optimizer steps done.
    pub step: u64,
    /// Passes over the data.
    pub epoch: f64,
    /// Mean loss over all steps.
    pub train_loss: f64,
    /// Seconds of training.
    pub train_runtime: f64,
    /// Steps per second over the whole run.
    pub train_steps_per_second: f64,
    /// Further numbers.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// The two files of a run, written together.
#[derive(Debug)]
pub struct Log {
    metrics: Metrics,
    events: Option<Events>,
}

impl Log {
    /// Opens the log of the run in `dir`: a new one, or one that goes on after step `resumed`.
    pub fn open(dir: &Path, resumed: Option<u64>, tensorboard: bool) -> Result<Log> {
        let path = dir.join(METRICS);
        let metrics = match resumed {
            None => Metrics::create(&path)?,
            Some(step) => Metrics::resume(&path, step)?,
        };
        let events = if tensorboard { Some(Events::open(dir, resumed)?) } else { None };
        Ok(Log { metrics, events })
    }

    /// Writes one record to both files; it has reached the operating system when this returns.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let value = serde_json::to_value(line)
            .map_err(|e| Error::failed(METRICS, format!("a record cannot be written: {e}")))?;
        self.metrics.write(&value)?;
        let Some(events) = &mut self.events else { return Ok(()) };
        match line {
            Line::Sample(sample) => {
                let text = sample_markdown(sample);
                events.text(sample.step, "sample", &text)
            }
            _ => events.record(&value),
        }
    }

    /// Adds a text to TensorBoard (`args`, `model_config`); `metrics.jsonl` has no place for it.
    pub fn text(&mut self, tag: &str, text: &str) -> Result<()> {
        self.events.as_mut().map_or(Ok(()), |e| e.text(0, tag, text))
    }

    /// Makes everything written so far survive a loss of power. Called before a checkpoint.
    pub fn sync(&mut self) -> Result<()> {
        self.metrics.sync()?;
        self.events.as_mut().map_or(Ok(()), Events::sync)
    }
}

fn sample_markdown(sample: &Sample) -> String {
    let quoted = |text: &str| text.lines().map(|l| format!("    {l}\n")).collect::<String>();
    let mut out = format!("asked\n\n{}\n", quoted(&sample.sample_prompt));
    out += &format!("answered\n\n{}\n", quoted(&sample.sample_text));
    if let Some(expected) = &sample.sample_expected {
        out += &format!("expected\n\n{}\n", quoted(expected));
    }
    out
}

#[cfg(test)]
mod tests;
