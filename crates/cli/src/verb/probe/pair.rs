//! A tuned model and its base: the flags that probes of both share.

use std::path::{Path, PathBuf};

use luthier_core::{Error, Result, StateDict, Table};
use luthier_data::ReadOptions;
use luthier_recipe::{Precision, landscape::Weights, merge::weights, open};

use crate::verb::{
    model_args::{ModelArgs, check_adapter},
    pull::bring,
};

/// A tuned model and its base.
#[derive(clap::Args)]
pub struct Pair {
    /// The tuned model: built-in name, hub id, folder or GGUF file [default with --adapter: the
    /// adapter's base]
    #[arg(long, short, value_name = "MODEL")]
    model: Option<String>,
    /// Folder of its adapter
    #[arg(long, short, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// What it was tuned from [default with --adapter: the same model without the adapter]
    #[arg(long, value_name = "MODEL", required_unless_present = "adapter")]
    base: Option<String>,
}

/// Both as weights in f32, and a model to write them into.
pub struct Both {
    pub base: StateDict,
    pub tuned: StateDict,
    pub weights: Weights,
}

impl Pair {
    /// Loads both.
    pub fn load(&self) -> Result<Both> {
        let tuned = model(&self.model, &self.adapter)?;
        let base = self.base.clone().unwrap_or_else(|| tuned.clone());
        Ok(Both {
            base: weights(&base, None, &bring)?,
            tuned: weights(&tuned, self.adapter.as_deref(), &bring)?,
            weights: writable(&base)?,
        })
    }
}

/// The name of a model that may be an adapter's base.
pub fn model(model: &Option<String>, adapter: &Option<PathBuf>) -> Result<String> {
    if let Some(adapter) = adapter {
        check_adapter(adapter)?;
    }
    let (model, adapter) = (model.clone(), adapter.clone());
    ModelArgs { model, adapter, precision: Precision::F32 }.name()
}

/// A model in f32 whose weights can be written.
pub fn writable(name: &str) -> Result<Weights> {
    bring(name)?;
    Weights::of(&open(name, Precision::F32)?)
}

/// Rows of a file, the first so many.
pub fn table(data: &Path, limit: Option<usize>) -> Result<Table> {
    if limit == Some(0) {
        return Err(Error::input("--limit", "expected at least 1, got 0"));
    }
    let mut table = luthier_data::read(data, &ReadOptions::default())?;
    table.examples.truncate(limit.unwrap_or(usize::MAX));
    match table.examples.is_empty() {
        true => Err(Error::input(&table.name, "holds no example")),
        false => Ok(table),
    }
}
