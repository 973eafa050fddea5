//! `[train]`: everything about the main job, under the names that TRL and transformers use.

use luthier_core::{Error, Result, Row};
use luthier_loss::Loss;
use luthier_params::Params;
use luthier_update::Update;
use serde::{Deserialize, Serialize};

use crate::{
    backward::Activation, balance::Balance, copilot::Copilot, draw::Corrupt, order::GroupByTask,
};

/// Tokens of a step when nobody says how large it is.
const BATCH_TOKENS: usize = 4096;
/// Tokens of a pass when nothing is said: enough for products at full speed, few enough that what a
/// pass keeps is small.
const MICRO_TOKENS: usize = 512;

/// The training stage of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Passes over the data; may be a fraction.
    pub epochs: f64,
    /// Stops after this many optimizer steps, whatever `epochs` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Rows of one optimizer step, whatever their length (pairs, where the objective compares two).
    /// Instead of `batch_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// Tokens of one optimizer step (at least one row); 4096 unless `batch_size` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_tokens: Option<usize>,
    /// Tokens of one forward pass; smaller needs less memory and changes nothing but rounding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_tokens: Option<usize>,
    /// Whether every epoch has an order of its own; otherwise rows come as in the file.
    pub shuffle: bool,
    /// Whether rows of like length share a step.
    pub group_by_length: bool,
    /// Whether a step, or a forward pass, holds rows of one task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_by_task: Option<GroupByTask>,
    /// Steps between evaluations; 0 evaluates at the end only.
    pub eval_steps: u64,
    /// Whether evaluations also tell the expected calibration error of the next token (`eval_ece`), how often
    /// the likeliest one is right (`eval_token_accuracy`) and how open distributions are (`eval_entropy`),
    /// which takes whole distributions: another pass. Objectives that choose between answers or labels
    /// tell the calibration of that choice in any case.
    pub eval_ece: bool,
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
    /// Noise on what training embeds; TRL's setting and meaning. Usually 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neftune_noise_alpha: Option<f64>,
    /// What is hidden of the answers that the model reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<Corrupt>,
    /// A small decoder that learns the errors of the policy as they come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copilot: Option<Copilot>,
    /// All randomness of the run.
    pub seed: u64,
    /// What learns.
    pub params: Params,
    /// What is minimised.
    pub loss: Loss,
    /// Weights of tasks that follow how the tasks converge.
    #[serde(skip_serializing_if = "Balance::is_off")]
    pub balance: Balance,
    /// How gradients become steps.
    pub update: Update,
}

impl Default for Train {
    fn default() -> Self {
        Train {
            epochs: 1.0,
            max_steps: None,
            batch_size: None,
            batch_tokens: None,
            micro_tokens: None,
            shuffle: true,
            group_by_length: false,
            group_by_task: None,
            eval_steps: 0,
            eval_ece: false,
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
            neftune_noise_alpha: None,
            corrupt: None,
            copilot: None,
            seed: 42,
            params: Params::default(),
            loss: Loss::default(),
            balance: Balance::default(),
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
        positive("logging_steps", self.logging_steps > 0, &self.logging_steps)?;
        let sizes = [
            ("batch_size", self.batch_size),
            ("batch_tokens", self.batch_tokens),
            ("micro_tokens", self.micro_tokens),
        ];
        for (key, size) in sizes {
            positive(key, size != Some(0), &0)?;
        }
        if let (Some(rows), Some(tokens)) = (self.batch_size, self.batch_tokens) {
            let what = format!(
                "{rows} rows, and train.batch_tokens: {tokens} tokens, both say how large a step is"
            );
            return Err(Error::input("train.batch_size", what).hint("keep one of them"));
        }
        if self.group_by_length && !self.shuffle {
            let what = "expected train.group_by_length = false with it, got true";
            return Err(Error::input("train.shuffle = false", what)
                .hint("rows either keep the order of the file or are grouped"));
        }
        self.check_tasks()?;
        self.balance.check(&self.loss)?;
        if self.eval_ece && self.loss.tells_numbers() {
            let what = "a head that tells a number is not sure of anything";
            return Err(Error::input("train.eval_ece", what).hint("eval_ece = false"));
        }
        if let Some(alpha) = self.neftune_noise_alpha {
            positive("neftune_noise_alpha", alpha.is_finite() && alpha > 0.0, &alpha)?;
        }
        if let Some(corrupt) = &self.corrupt {
            corrupt.check()?;
        }
        if let Some(copilot) = &self.copilot {
            copilot.check()?;
        }
        if let Some(steps) = self.max_steps {
            positive("max_steps", steps > 0, &steps)?;
        }
        Ok(())
    }

    /// Refuses to group rows by tasks that are unknown, or where tasks are to be weighed within a step.
    fn check_tasks(&self) -> Result<()> {
        let Some(group) = self.group_by_task else { return Ok(()) };
        let refuse = |what: &str, hint: &str| {
            Err(Error::input("train.group_by_task", what).hint(hint.to_owned()))
        };
        let Some(tasks) = &self.loss.tasks else {
            let hint =
                "data.task says which task a row belongs to, and [train.loss.tasks] what counts";
            return refuse("this objective does not tell tasks apart", hint);
        };
        if group == GroupByTask::Pass {
            return match self.loss.undivided() {
                false => Ok(()),
                true => refuse(
                    "this objective needs a step in one pass",
                    "\"step\" makes every step one of one task",
                ),
            };
        }
        if !self.shuffle {
            let hint = "rows either keep the order of the file or are grouped";
            return refuse("expected train.shuffle = true with it, got false", hint);
        }
        if !tasks.task_weights.is_empty() || !self.balance.is_off() {
            let what = "a step of one task has nothing to weigh it against, and weights of tasks are given";
            return refuse(what, "group_by_task = \"pass\" keeps several tasks in a step");
        }
        Ok(())
    }

    /// The task of every row, where a step holds rows of one task; nothing where tasks mix.
    pub fn step_tasks(&self, rows: &[Row]) -> Vec<usize> {
        match self.group_by_task {
            Some(GroupByTask::Step) => rows.iter().map(|row| row.task).collect(),
            _ => Vec::new(),
        }
    }

    /// The same with every default written out, as a plan prints it.
    pub fn with_defaults(mut self) -> Self {
        if self.batch_size.is_none() {
            self.batch_tokens.get_or_insert(BATCH_TOKENS);
        }
        self.params = self.params.with_defaults();
        self.loss = self.loss.with_defaults();
        self.update = self.update.with_defaults();
        self
    }

    /// Tokens of one forward pass; a longer row is a pass of its own.
    pub fn micro_tokens(&self) -> usize {
        self.micro_tokens.unwrap_or(MICRO_TOKENS).min(self.batch_tokens.unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let error = toml::from_str::<Train>(text).unwrap().check().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    }

    #[test]
    fn a_step_has_one_size() {
        let usual = Train::default().with_defaults();
        assert_eq!((usual.batch_size, usual.batch_tokens), (None, Some(4096)));
        let rows: Train = toml::from_str("batch_size = 8").unwrap();
        assert_eq!(rows.clone().with_defaults().batch_tokens, None);
        rows.check().unwrap();
        let both = refused("batch_size = 8\nbatch_tokens = 512");
        assert!(both.contains("train.batch_size") && both.contains("train.batch_tokens"), "{both}");
        assert!(refused("batch_size = 0").contains("train.batch_size: expected a positive"));
        assert!(refused("batch_tokens = 0").contains("train.batch_tokens: expected a positive"));
    }

    #[test]
    fn a_pass_is_never_larger_than_its_step_nor_without_bound() {
        let micro = |text: &str| toml::from_str::<Train>(text).unwrap().micro_tokens();
        assert_eq!(micro(""), 512);
        assert_eq!(micro("batch_tokens = 300"), 300);
        assert_eq!(micro("batch_tokens = 300\nmicro_tokens = 500"), 300);
        assert_eq!(micro("batch_tokens = 9000\nmicro_tokens = 500"), 500);
        assert_eq!(micro("batch_size = 64"), 512);
        assert_eq!(micro("batch_size = 64\nmicro_tokens = 9000"), 9000);
    }

    #[test]
    fn rows_are_grouped_by_tasks_that_are_known_and_not_weighed() {
        for (text, what) in [
            ("group_by_task = \"pass\"", "does not tell tasks apart"),
            ("group_by_task = \"pass\"\n[loss.tasks]\nmode = \"focal_task\"", "in one pass"),
            ("shuffle = false\ngroup_by_task = \"step\"\n[loss.tasks]", "train.shuffle = true"),
            ("group_by_task = \"step\"\n[loss.tasks]\ntask_weights = { a = 1.0 }", "weigh it"),
            ("group_by_task = \"step\"\n[loss.tasks]\n[balance.coba]", "weigh it"),
        ] {
            let error = refused(text);
            assert!(error.starts_with("train.group_by_task: ") && error.contains(what), "{error}");
        }
        let pass = "shuffle = false\ngroup_by_task = \"pass\"\n[loss.tasks]\n[balance.coba]";
        for text in [pass, "group_by_task = \"step\"\ngroup_by_length = true\n[loss.tasks]"] {
            toml::from_str::<Train>(text).unwrap().check().unwrap();
        }
        let step = |group_by_task| Train { group_by_task, ..Train::default() };
        let rows = [1, 0].map(|task| Row { task, ..Row::default() });
        assert_eq!(step(Some(GroupByTask::Step)).step_tasks(&rows), [1, 0]);
        assert!(step(Some(GroupByTask::Pass)).step_tasks(&rows).is_empty());
    }

    #[test]
    fn the_order_of_the_file_cannot_be_grouped() {
        let both = refused("shuffle = false\ngroup_by_length = true");
        assert!(both.contains("train.shuffle") && both.contains("train.group_by_length"), "{both}");
    }
}
