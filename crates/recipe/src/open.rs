//! Models by name: fetched, opened, loaded, with their tokenizer and an adapter if asked for.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use luthier_core::{Model, Policy, Result};
use luthier_kernels::{few::FEW, num};
use luthier_model::{Decoder, Holding, ModelConfig, Source, Tokenizer, decoder::parameters, pull};
use luthier_params::{Bound, peft};

use crate::precision::Precision;

/// A model ready to run.
pub struct Opened {
    /// What the user called it.
    pub name: String,
    /// Where it was found.
    pub path: PathBuf,
    /// The weights and forward pass.
    pub model: Arc<dyn Model>,
    /// The arithmetic of its matrix products, in which the weights are held too.
    pub precision: num::Precision,
    /// Sizes and switches.
    pub config: ModelConfig,
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// SHA-256 of the weight files.
    pub sha256: String,
    /// Number of weights.
    pub parameters: u64,
    /// The file or folder, for the weights as they are written there.
    source: Source,
}

/// Finds `name` (built-in, hub id, folder, file), fetching it if needed, and loads it. What writes
/// weights of the model asks for [`Precision::F32`].
pub fn open(name: &str, precision: Precision) -> Result<Opened> {
    open_held(name, precision.resolve().into())
}

/// [`open`] for reading at most `rows` rows at a time, as in decoding: where they are few and the
/// arithmetic need not be f32's, quantised weights stay as their file has them.
pub fn open_for(name: &str, precision: Precision, rows: usize) -> Result<Opened> {
    let precision = precision.resolve();
    let stored = rows <= FEW && precision != num::Precision::F32;
    open_held(name, Holding { precision, stored })
}

fn open_held(name: &str, holding: Holding) -> Result<Opened> {
    let path = find(name)?;
    let source = Source::open(&path)?;
    let tokenizer = Arc::new(Tokenizer::open(&path)?);
    let decoder = Decoder::load(&source, holding, |_, _| ())?;
    let config = source.config().clone();
    Ok(Opened {
        name: name.to_string(),
        path,
        parameters: parameters(decoder.sites(), config.tied),
        sha256: source.sha256()?.to_string(),
        model: Arc::new(decoder),
        precision: holding.precision,
        config,
        tokenizer,
        source,
    })
}

/// The path of a model, fetched into the cache if it is not local.
pub fn find(name: &str) -> Result<PathBuf> {
    pull::resolve(name, &|what, done, total| {
        tracing::debug!(what, done, total, "fetching");
    })
}

impl Opened {
    /// The model with a PEFT adapter bound, after checking that it was made for this base.
    pub fn with_adapter(&self, dir: &Path) -> Result<Bound> {
        peft::load(dir, &self.model, Some(&self.sha256))
    }

    /// The plain model, or with the adapter in `dir`.
    pub fn policy(&self, dir: Option<&Path>) -> Result<Policy> {
        Ok(match dir {
            Some(dir) => self.with_adapter(dir)?.policy,
            None => Policy::plain(self.model.clone()),
        })
    }

    /// A weight by its Hugging Face name as the file has it, whatever the model's precision.
    pub fn exact(&self, name: &str) -> Result<Vec<f32>> {
        self.source.load_f32(name)
    }
}
