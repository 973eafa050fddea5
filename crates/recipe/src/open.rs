//! Models by name: fetched, opened, loaded, with their tokenizer and an adapter if asked for.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use luthier_core::{Error, Model, Policy, Result};
use luthier_kernels::{few::FEW, num};
use luthier_model::{
    Decoder, Holding, ModelConfig, Quantize as To, Source, Tokenizer, decoder::parameters, names,
    pull,
};
use luthier_params::Bound;
use serde_json::Value;

use crate::{
    heads,
    precision::{self, Precision, Quantize},
    schema::{Models, Recipe},
    training::RECIPE,
};

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
    /// Bytes of the weights as they are held.
    pub bytes: u64,
    /// How they are held. Weights that were quantised as they were loaded are not those of the file
    /// even in f32; the hash is the file's all the same, for what is trained beside them belongs to
    /// the file, whoever quantises it.
    pub holding: Holding,
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
    open_held(name, Holding { stored, ..precision.into() })
}

/// The model that is trained, held as `models` says; `frozen`: none of its weights learns.
pub fn open_base(models: &Models, frozen: bool) -> Result<Opened> {
    let Models { policy, precision, quantize, double_quant, .. } = models;
    let (path, source) = opened_source(policy)?;
    let sizes = names::tensors(source.config());
    let parameters = sizes.iter().map(|(_, dims)| dims.iter().product::<usize>() as u64).sum();
    let holding = quantize.holding(precision.resolve(), *double_quant, frozen, parameters)?;
    if *quantize == Quantize::Stored && !is_quantized(&source)? {
        let what = "`stored` asks for weights as their file has them, and it has them unquantised";
        return Err(Error::input("models.quantize", what)
            .hint("nf4 quantises a model as it is loaded; a GGUF file may be quantised itself"));
    }
    load(policy, path, source, holding)
}

fn open_held(name: &str, holding: Holding) -> Result<Opened> {
    let (path, source) = opened_source(name)?;
    load(name, path, source, holding)
}

fn opened_source(name: &str) -> Result<(PathBuf, Source)> {
    let path = find(name)?;
    let source = Source::open(&path)?;
    Ok((path, source))
}

fn load(name: &str, path: PathBuf, source: Source, holding: Holding) -> Result<Opened> {
    let tokenizer = Arc::new(Tokenizer::open(&path)?);
    let decoder = Decoder::load(&source, holding, |_, _| ())?;
    let config = source.config().clone();
    Ok(Opened {
        name: name.to_string(),
        path,
        parameters: parameters(decoder.sites(), config.tied),
        bytes: decoder.held_bytes(),
        holding: Holding { stored: holding.stored && is_quantized(&source)?, ..holding },
        sha256: source.sha256()?.to_string(),
        model: Arc::new(decoder),
        precision: holding.precision,
        config,
        tokenizer,
        source,
    })
}

/// Whether a file has quantised weights.
fn is_quantized(source: &Source) -> Result<bool> {
    for name in source.tensor_names() {
        if !matches!(source.dtype_name(name)?, "F32" | "F16" | "BF16") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The path of a model, fetched into the cache if it is not local.
pub fn find(name: &str) -> Result<PathBuf> {
    pull::resolve(name, &|what, done, total| {
        tracing::debug!(what, done, total, "fetching");
    })
}

impl Opened {
    /// The model with an adapter bound, after checking that it was made for this base.
    pub fn with_adapter(&self, dir: &Path) -> Result<Bound> {
        self.compare_quantization(dir);
        let exact = |name: &str| self.exact_if(name);
        luthier_params::load(dir, &self.model, Some(&self.sha256), Some(&exact))
    }

    /// The plain model, or with the adapter in `dir`.
    pub fn policy(&self, dir: Option<&Path>) -> Result<Policy> {
        let policy = match dir {
            Some(dir) => self.with_adapter(dir)?.policy,
            None => Policy::plain(self.model.clone()),
        };
        if heads::scores(policy.model.as_ref()) {
            let at = dir.map_or_else(|| self.name.clone(), |dir| dir.display().to_string());
            return Err(Error::input(at, "scores labels in place of tokens: it writes no text")
                .hint("`luthier score` asks for its labels"));
        }
        Ok(policy)
    }

    /// The model's head of labels, or that of the adapter in `dir`: who is asked, and what its labels are
    /// called.
    pub fn judge(&self, dir: Option<&Path>) -> Result<(Policy, Vec<String>)> {
        let bound = dir.map(|dir| self.with_adapter(dir)).transpose()?;
        let of_adapter = bound.as_ref().and_then(|bound| bound.form.head.as_ref());
        let names = match of_adapter {
            Some(head) => head.labels.names(),
            None => self.label_names(),
        };
        let policy = bound.map_or_else(|| Policy::plain(self.model.clone()), |bound| bound.policy);
        if heads::scores(policy.model.as_ref()) {
            return Ok((policy, names));
        }
        let at = dir.map_or_else(|| self.name.clone(), |dir| dir.display().to_string());
        Err(Error::input(at, "has no head of labels: it writes text")
            .hint("training with [train.params.head] makes one; `luthier eval` scores texts"))
    }

    /// What the labels of the model's own head are called, as transformers names them.
    fn label_names(&self) -> Vec<String> {
        let named = self.config.raw.get("id2label");
        let name = |i: usize| {
            let name = named.and_then(|all| all.get(i.to_string())).and_then(Value::as_str);
            name.map_or_else(|| format!("LABEL_{i}"), str::to_string)
        };
        (0..self.config.labels.unwrap_or_default()).map(name).collect()
    }

    /// How the weights are held, in words.
    pub fn held(&self) -> &'static str {
        match self.holding {
            Holding { quantize: Some(To::Nf4 { double_quant: true }), .. } => "nf4, double",
            Holding { quantize: Some(To::Nf4 { double_quant: false }), .. } => "nf4",
            Holding { stored: true, .. } => "as their file has them",
            Holding { precision, .. } => precision::name(precision),
        }
    }

    /// Says so where the adapter in `dir` was trained beside weights quantised otherwise than these:
    /// the hash, which is the file's, does not tell.
    fn compare_quantization(&self, dir: &Path) {
        let Ok(text) = std::fs::read_to_string(dir.join(RECIPE)) else { return };
        // An adapter of another program may have a file of this name.
        let Ok(recipe) = Recipe::parse(&text, RECIPE) else { return };
        let Models { quantize, double_quant, .. } = recipe.models;
        let theirs = (quantize == Quantize::Nf4).then_some(To::Nf4 { double_quant });
        if theirs != self.holding.quantize {
            let of = |to: Option<To>| to.map_or("the file's own weights", |_| "weights in nf4");
            let (then, now) = (of(theirs), of(self.holding.quantize));
            tracing::warn!("{}: was trained beside {then}, is used beside {now}", dir.display());
        }
    }

    /// A weight by its Hugging Face name as the file has it, whatever the model's precision.
    pub fn exact(&self, name: &str) -> Result<Vec<f32>> {
        self.source.load_f32(name)
    }

    /// The same, if the file has a weight of that name.
    pub fn exact_if(&self, name: &str) -> Result<Option<Vec<f32>>> {
        self.source.has(name).then(|| self.exact(name)).transpose()
    }
}
