//! What a training run works on.

use std::{path::Path, sync::atomic::AtomicBool};

use luthier_core::{Policy, Result, Row, Seed};
use luthier_params::Bound;
use luthier_update::Start;

use crate::{config::Train, log};

/// Everything a training run works on.
pub struct Job<'a> {
    /// Model, hooks and what may learn.
    pub bound: &'a Bound,
    /// The stage's settings.
    pub config: &'a Train,
    /// Rows to train on.
    pub train: &'a [Row],
    /// Rows to evaluate on; may be empty.
    pub eval: &'a [Row],
    /// How often the schedule is run, each time with a new optimizer.
    pub rounds: usize,
    /// The steps of an epoch of a round as indices into `train`.
    pub order: &'a dyn Fn(usize, usize) -> Vec<Vec<usize>>,
    /// What is done to the rows of a step as they are drawn.
    pub draw: Option<&'a Draw<'a>>,
    /// Whose distributions the objective compares with, if it does.
    pub teacher: Option<&'a Policy>,
    /// What the update needs to know of model and data.
    pub start: &'a Start<'a>,
    /// Names an example for errors.
    pub describe: &'a dyn Fn(usize) -> String,
    /// Adds files to a checkpoint folder so that it can be used as a model or adapter.
    pub export: &'a dyn Fn(&Path) -> Result<()>,
    /// Generates samples for the log.
    pub sample: &'a dyn Fn(u64) -> Result<Vec<log::Sample>>,
    /// Set to stop after the step in progress.
    pub stop: &'a AtomicBool,
    /// The run directory.
    pub out: &'a Path,
    /// Goes on from the newest checkpoint in `out`.
    pub resume: bool,
    /// Identifies recipe, data and model.
    pub fingerprint: String,
    /// Whether block activations are kept.
    pub keep: bool,
    /// Shows a progress bar.
    pub progress: bool,
}

/// Makes the rows of a step from those that were drawn for it: a function of nothing but what it is
/// told, so that a resumed run makes the same.
pub type Draw<'a> = dyn Fn(Drawn) -> Result<Vec<Row>> + 'a;

/// What was drawn for a step.
pub struct Drawn<'a> {
    /// How many steps came before.
    pub step: u64,
    /// Steps of the whole run.
    pub of: u64,
    /// Of everything random.
    pub seed: Seed,
    /// The policy as it is.
    pub policy: &'a Policy,
    /// In whole units.
    pub rows: Vec<Row>,
}
