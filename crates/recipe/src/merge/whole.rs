//! A model's weights in memory, as a merge reads them.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use luthier_core::{Result, StateDict};
use luthier_model::names::tensors;
use luthier_weights::Model;

use super::models::Opened;

/// All weights of a model in f32, with an adapter folded in. `find` brings models by name.
pub fn weights(
    name: &str,
    adapter: Option<&Path>,
    find: &dyn Fn(&str) -> Result<PathBuf>,
) -> Result<StateDict> {
    let adapter = adapter.map(|dir| dir.display().to_string());
    let opened = Opened::open(&Model { name: name.to_string(), adapter }, "", &[], find)?;
    let mut state = StateDict::default();
    for (tensor, dims) in tensors(opened.config()) {
        let stored = opened.stands_for(&tensor);
        let numbers = match &opened.tuned {
            Some(tuned) if tuned.changes(stored) => tuned.load(stored)?,
            _ => opened.source.load_f32(stored)?,
        };
        state.insert(tensor.clone(), Tensor::from_vec(numbers, &dims[..], &Device::Cpu)?);
    }
    Ok(state)
}
