//! What PEFT has no file for, in two files of our own.
//!
//! - `luthier_adapter.json`: `version`, `base` (`name`, `sha256` of its weights) and `params`, the
//!   recipe's table `[train.params]`, which says how the tensors are bound; what was measured for it
//!   (EVA's ranks) is written out;
//! - `luthier_adapter.safetensors`: every variable under its name, f32. A variable of which only
//!   chosen entries learned is two tensors: `NAME.positions` (u32, each the distance from the one
//!   before, the first from 0) and `NAME.differences` (f32, what is added to the base there).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, Tensor, Var};
use luthier_core::{Error, Mask, Model, Param, Result, StateDict, io};
use serde::{Deserialize, Serialize};

use crate::{Bound, Exact, Params, Scope, peft::Base};

/// How the tensors are bound.
pub const CONFIG: &str = "luthier_adapter.json";
/// The tensors.
pub const WEIGHTS: &str = "luthier_adapter.safetensors";

#[derive(Serialize, Deserialize)]
struct Config {
    version: String,
    base: Base,
    params: Params,
}

pub(crate) fn positions(name: &str) -> String {
    format!("{name}.positions")
}

pub(crate) fn differences(name: &str) -> String {
    format!("{name}.differences")
}

/// Writes both files into `dir`. `exact` gives a weight of the base by its name, to tell what chosen
/// entries differ by.
pub fn save(
    dir: &Path,
    bound: &Bound,
    base: &Base,
    exact: &dyn Fn(&str) -> Result<Vec<f32>>,
) -> Result<Vec<PathBuf>> {
    let mut state = StateDict::default();
    for Param { name, var, mask, .. } in &bound.params {
        // What never learns is kept for its own sake, whole.
        let Some(mask) = mask.as_ref().filter(|mask| !mask.is_empty()) else {
            state.insert(name, var.as_detached_tensor());
            continue;
        };
        let (now, before) = (var.flatten_all()?.to_vec1::<f32>()?, exact(name)?);
        let by: Vec<f32> =
            mask.positions().iter().map(|i| *i as usize).map(|i| now[i] - before[i]).collect();
        state.insert(positions(name), Tensor::new(gaps(mask), &Device::Cpu)?);
        state.insert(differences(name), Tensor::new(by, &Device::Cpu)?);
    }
    let config = Config {
        version: env!("CARGO_PKG_VERSION").into(),
        base: base.clone(),
        params: settled(bound)?,
    };
    let (weights, about) = (dir.join(WEIGHTS), dir.join(CONFIG));
    state.save(&weights, &[("format", "luthier")])?;
    io::write_json(&about, &config)?;
    Ok(vec![about, weights])
}

/// The table that binds the same without a measurement.
fn settled(bound: &Bound) -> Result<Params> {
    let mut form = bound.form.clone();
    if let Some(lora) = form.lora.take() {
        form.lora = Some(lora.settled(bound)?);
    }
    Ok(form)
}

/// Binds what [`save`] wrote. Its variables can be trained further.
pub fn load(
    dir: &Path,
    model: &Arc<dyn Model>,
    base_sha256: Option<&str>,
    exact: Option<Exact>,
) -> Result<Bound> {
    let config: Config = io::read_json(&dir.join(CONFIG))?;
    config.base.check(dir, base_sha256)?;
    let weights = dir.join(WEIGHTS);
    let mut scope = Scope::given(StateDict::load(&weights)?);
    if let Some(exact) = exact {
        scope = scope.with_exact(exact);
    }
    config.params.bind_in(model, scope).map_err(|e| Error::within(weights.display(), e))
}

/// The distance of each position from the one before.
fn gaps(mask: &Mask) -> Vec<u32> {
    let before = [0].into_iter().chain(mask.positions().iter().copied());
    mask.positions().iter().zip(before).map(|(at, before)| at - before).collect()
}

/// The parameter with the entries that `gaps` names moved by `by`, and learning there alone.
pub(crate) fn move_entries(param: Param, gaps: &Tensor, by: Option<&Tensor>) -> Result<Param> {
    let mut at = 0u32;
    let mut add = |gap: &u32| {
        at = at.checked_add(*gap)?;
        Some(at)
    };
    let places: Option<Vec<u32>> = gaps.to_vec1::<u32>()?.iter().map(&mut add).collect();
    let too_far = || Error::input(positions(&param.name), "names entries beyond 2^32");
    let mask = Mask::new(places.ok_or_else(too_far)?)?;
    let param = param.masked(mask.clone())?;
    if let Some(by) = by {
        let mut all = param.var.flatten_all()?.to_vec1::<f32>()?;
        let moved: Vec<f32> =
            mask.gather(&all).iter().zip(by.to_vec1::<f32>()?).map(|(a, b)| a + b).collect();
        mask.scatter(&moved, &mut all);
        set(&param.var, all)?;
    }
    Ok(param)
}

/// Replaces a variable's numbers.
pub(crate) fn set(var: &Var, values: Vec<f32>) -> Result<()> {
    Ok(var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?)
}
