//! `[train.copilot]`: a small decoder that learns the policy's errors beside it, and is kept beside it.

use std::path::{Path, PathBuf};

use luthier_core::{Error, Result, Seed};
use luthier_loss::Unit;
use luthier_params::{Bound, copilot::Copilot};
use luthier_train::{Beside, Job, Outcome, Train, copilot::Learner};

use crate::open::Opened;

const KEY: &str = "train.copilot";

/// The copilot that `config` asks for, beside what is bound to a model.
pub fn of(config: &Train, opened: &Opened, bound: &Bound) -> Result<Option<Copilot>> {
    let Some(settings) = &config.copilot else { return Ok(None) };
    if config.loss.objective()?.unit() != Unit::Row {
        let what = "every target must be what the policy should write, and this objective compares \
            or judges answers";
        return Err(Error::input(KEY, what).hint("train.loss.nll, for example, trains on answers"));
    }
    if bound.policy.hooks.virtual_tokens > 0 {
        let what = "rows begin with virtual tokens, which stand for no text";
        return Err(Error::input(KEY, what).hint("train.params.lora leaves rows as they are"));
    }
    let model = opened.model.as_ref();
    let sizes = settings.sizes(model.vocab(), model.width());
    let copilot = Copilot::new(sizes, Seed(config.seed).split("copilot"))?;
    if let Some(dir) = &settings.from {
        let (_, earlier) =
            Copilot::open(dir).map_err(|e| Error::within(format!("{KEY}.from"), e))?;
        if earlier.sizes != sizes {
            let what = format!("{}: expected {sizes:?}, got {:?}", dir.display(), earlier.sizes);
            return Err(Error::input(format!("{KEY}.from"), what)
                .hint("layers, width and heads as in its copilot.json, beside the same base"));
        }
        copilot.load(dir)?;
    }
    Ok(Some(copilot))
}

/// Bytes of what is learned with it: the weights, their gradients, AdamW's two means.
pub fn bytes(copilot: Option<&Copilot>) -> u64 {
    copilot.map_or(0, |copilot| 16 * copilot.count() as u64)
}

/// Runs the job, with its copilot if it has one, whose files it then writes into `out`.
pub fn train(
    job: &Job,
    copilot: Option<&Copilot>,
    base: &str,
    out: &Path,
) -> Result<(Outcome, Vec<PathBuf>)> {
    let (Some(settings), Some(copilot)) = (&job.config.copilot, copilot) else {
        return Ok((luthier_train::run(job)?, Vec::new()));
    };
    let mut learner = Learner::new(settings, copilot, &job.config.update, base)?;
    let outcome = luthier_train::run_beside(job, Some(&mut learner as &mut dyn Beside))?;
    let files = match outcome.stopped {
        Some(luthier_train::Stopped::Interrupted(_)) => Vec::new(),
        _ => learner.export(out)?,
    };
    Ok((outcome, files))
}
