//! What a run leaves besides its files.

use std::path::PathBuf;

use serde::Serialize;

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Optimizer steps done.
    pub steps: u64,
    /// Steps that were planned.
    pub total_steps: u64,
    /// Seconds of this process's training (evaluation and checkpoints included).
    pub seconds: f64,
    /// Tokens read by this process.
    pub tokens: u64,
    /// Tokens per second of stepping.
    pub tokens_per_second: f64,
    /// Mean loss over all steps.
    pub train_loss: f64,
    /// Last evaluation loss.
    pub eval_loss: Option<f64>,
    /// Best evaluation: step and loss.
    pub best: Option<(u64, f64)>,
    /// Largest resident memory of the process, where the system tells.
    pub peak_rss_bytes: Option<u64>,
    /// Why it ended before the last step, if it did.
    pub stopped: Option<Stopped>,
}

/// Reasons to end early.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// Interrupted; the checkpoint to resume from.
    Interrupted(PathBuf),
    /// Evaluation had stopped improving.
    EarlyStopping,
}
