//! `[train]`: everything about the main job, under the names that TRL and transformers use.

use luthier_core::{Error, Result};
use luthier_loss::Loss;
use luthier_params::Params;
use luthier_update::Update;
use serde::{Deserialize, Serialize};

use crate::backward::Activation;

/// The training stage of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Passes over the data; may be a fraction.
    pub epochs: f64,
    /// Stops after this many optimizer steps, whatever `epochs` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Tokens of one optimizer step (at least one row).
    pub batch_tokens: usize,
    /// Tokens of one forward pass; smaller needs less memory and changes nothing but rounding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_tokens: Option<usize>,
    /// Whether rows of like length share a step.
    pub group_by_length: bool,
    /// Steps between evaluations; 0 evaluates at the end only.
    pub eval_steps: u64,
    /// Steps between checkpoints; 0 writes none but on interruption.
    pub save_steps: u64,
    /// Checkpoints kept; older ones are deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_total_limit: Option<usize>,
    /// Steps between log lines.
    pub logging_steps: u64,
    /// Steps between sample generations in the log; 0 is never.
    pub sample_steps: u64,
    /// How many evaluation prompts are sampled.
    pub samples: usize,
    /// Ends with the weights of the best evaluation instead of the last ones.
    pub load_best_model_at_end: bool,
    /// Stops after this many evaluations without improvement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping_patience: Option<u64>,
    /// Improvements smaller than this do not count.
    pub early_stopping_threshold: f64,
    /// Whether block activations are kept or computed again.
    pub activation: Activation,
    /// Starts from the trained weights of this adapter or checkpoint folder, with a new optimizer
    /// and schedule. (Resuming a run is `--resume`.)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continue_from: Option<String>,
    /// All randomness of the run.
    pub seed: u64,
    /// What learns.
    pub params: Params,
    /// What is minimised.
    pub loss: Loss,
    /// How gradients become steps.
    pub update: Update,
}

impl Default for Train {
    fn default() -> Self {
        Train {
            epochs: 1.0,
            max_steps: None,
            batch_tokens: 4096,
            micro_tokens: None,
            group_by_length: false,
            eval_steps: 0,
            save_steps: 0,
            save_total_limit: None,
            logging_steps: 1,
            sample_steps: 0,
            samples: 2,
            load_best_model_at_end: false,
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
            activation: Activation::Auto,
            continue_from: None,
            seed: 42,
            params: Params::default(),
            loss: Loss::default(),
            update: Update::default(),
        }
    }
}

impl Train {
    /// Refuses values that cannot be meant.
    pub fn check(&self) -> Result<()> {
        let positive = |key: &str, ok: bool, got: &dyn std::fmt::Display| match ok {
            true => Ok(()),
            false => {
                let what = format!("expected a positive number, got {got}");
                Err(Error::input(format!("train.{key}"), what))
            }
        };
        positive("epochs", self.epochs.is_finite() && self.epochs > 0.0, &self.epochs)?;
        positive("batch_tokens", self.batch_tokens > 0, &self.batch_tokens)?;
        positive("logging_steps", self.logging_steps > 0, &self.logging_steps)?;
        if let Some(micro) = self.micro_tokens {
            positive("micro_tokens", micro > 0, &micro)?;
        }
        if let Some(steps) = self.max_steps {
            positive("max_steps", steps > 0, &steps)?;
        }
        Ok(())
    }

    /// Tokens of one forward pass.
    pub fn micro_tokens(&self) -> usize {
        self.micro_tokens.unwrap_or(self.batch_tokens).min(self.batch_tokens)
    }
}
