//! Everything a run needs to go on as if it had never stopped, written whole or not at all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use luthier_core::{Error, Param, Result, StateDict, io};
use luthier_params::Bound;
use luthier_update::Stepper;
use serde::{Deserialize, Serialize};

use crate::{balance, course::Course};

/// Where a run stands. The data cursor is the step number: order and packing follow from the seed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Fingerprint of recipe, data and model; resuming something else is refused.
    pub fingerprint: String,
    /// Optimizer steps done.
    pub step: u64,
    /// Tokens read.
    pub tokens: u64,
    /// Lowest evaluation loss and its step.
    pub best: Option<(u64, f64)>,
    /// Evaluations since then.
    pub evals_without_improvement: u64,
    /// Sum of the logged losses, for the mean over the run.
    pub loss_sum: f64,
    /// What the weights of tasks follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<balance::State>,
}

const TRAINED: &str = "trained.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const COURSE: &str = "course.safetensors";
const STATE: &str = "luthier_state.json";

/// The variables' values by name.
pub fn snapshot(params: &[Param]) -> StateDict {
    params.iter().map(|p| (p.name.clone(), p.var.as_detached_tensor())).collect()
}

/// Puts saved values back; every variable must be there with its shape.
pub fn restore(params: &[Param], saved: &StateDict, at: &Path) -> Result<()> {
    for Param { name, var, .. } in params {
        let at = || at.display().to_string();
        let Some(value) = saved.get(name) else {
            return Err(Error::input(at(), format!("`{name}` is missing")));
        };
        if value.dims() != var.dims() {
            let what = format!("`{name}`: expected {:?}, got {:?}", var.dims(), value.dims());
            return Err(Error::input(at(), what));
        }
        var.set(value)?;
    }
    Ok(())
}

/// Writes `out/checkpoint-N` through a temporary folder and a rename. `extra` adds files that make
/// the folder usable elsewhere (the adapter, a trainer state).
pub fn save(
    out: &Path,
    progress: &Progress,
    bound: &Bound,
    course: &Course,
    stepper: &mut Stepper,
    extra: &dyn Fn(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let target = out.join(format!("checkpoint-{}", progress.step));
    let part = out.join(format!(".checkpoint-{}.part", progress.step));
    if part.exists() {
        fs::remove_dir_all(&part).map_err(|e| Error::io(&part, e))?;
    }
    fs::create_dir_all(&part).map_err(|e| Error::io(&part, e))?;
    let mut fill = || -> Result<()> {
        // What others read holds the weights to use. Exchanging them may round, so what is trained
        // on is written after.
        stepper.exchange()?;
        extra(&part)?;
        stepper.exchange()?;
        snapshot(&bound.params).save(&part.join(TRAINED), &[])?;
        stepper.state()?.save(&part.join(OPTIMIZER), &[])?;
        if let Some(chosen) = course.state()? {
            chosen.save(&part.join(COURSE), &[])?;
        }
        // Last: its presence says that the folder is complete.
        io::write_json(&part.join(STATE), progress)
    };
    if let Err(error) = fill() {
        // The first error is the one to report; a leftover folder is harmless and named `.part`.
        let _ = fs::remove_dir_all(&part);
        return Err(error);
    }
    if target.exists() {
        fs::remove_dir_all(&target).map_err(|e| Error::io(&target, e))?;
    }
    fs::rename(&part, &target).map_err(|e| Error::io(&target, e))?;
    Ok(target)
}

/// Complete checkpoints under `out`, by step.
pub fn list(out: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(out, e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(out, e))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let step = name.strip_prefix("checkpoint-").and_then(|n| n.parse::<u64>().ok());
        if let Some(step) = step.filter(|_| path.join(STATE).is_file()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Loads weights, what learns of them, and position from one checkpoint.
pub fn load(dir: &Path, fingerprint: &str, bound: &Bound, course: &mut Course) -> Result<Progress> {
    let progress: Progress = io::read_json(&dir.join(STATE))?;
    if progress.fingerprint != fingerprint {
        return Err(Error::input(
            dir.display().to_string(),
            "this checkpoint belongs to another recipe, data set or model",
        )
        .hint("resume with the same settings, or start anew from its weights with train.continue_from"));
    }
    let trained = dir.join(TRAINED);
    restore(&bound.params, &StateDict::load(&trained)?, &trained)?;
    let chosen = dir.join(COURSE);
    if chosen.is_file() {
        course.load(&StateDict::load(&chosen)?)?;
    }
    Ok(progress)
}

/// Loads the optimizer of one checkpoint.
pub fn load_stepper(dir: &Path, stepper: &mut Stepper) -> Result<()> {
    stepper.load(StateDict::load(&dir.join(OPTIMIZER))?)
}

/// Deletes the oldest checkpoints beyond `limit`, never that of step `spare`.
pub fn prune(out: &Path, limit: usize, spare: Option<u64>) -> Result<()> {
    let all = list(out)?;
    let excess = all.len().saturating_sub(limit.max(1));
    for (_, path) in all.iter().filter(|(step, _)| Some(*step) != spare).take(excess) {
        fs::remove_dir_all(path).map_err(|e| Error::io(path, e))?;
    }
    Ok(())
}
