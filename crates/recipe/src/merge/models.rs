//! The models that go in: found, opened, and compared before anything is read of them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use luthier_core::{Error, Result};
use luthier_model::{ModelConfig, Source, names::tensors};
use luthier_weights::{Config, Model};

use super::tuned::Tuned;

/// All models of a merge.
pub(super) struct Models {
    all: Vec<Opened>,
}

/// One of them.
pub(super) struct Opened {
    /// As the file names it.
    pub model: Model,
    /// Where it is; of a base with an adapter, where the base is.
    pub path: PathBuf,
    /// Its weights, without an adapter.
    pub source: Arc<Source>,
    /// What an adapter makes of them.
    pub tuned: Option<Tuned>,
    /// Where the adapter is.
    pub adapter: Option<PathBuf>,
}

impl Opened {
    pub(super) fn open(
        model: &Model,
        file: &str,
        known: &[Opened],
        find: &dyn Fn(&str) -> Result<PathBuf>,
    ) -> Result<Opened> {
        let (path, adapter) = places(model, file, find)?;
        // Adapters of one base share it.
        let same = known.iter().find(|opened| opened.path == path);
        let source = match same {
            Some(opened) => opened.source.clone(),
            None => Arc::new(Source::open(&path)?),
        };
        let tuned = adapter.as_ref().map(|dir| Tuned::open(&source, dir)).transpose()?;
        Ok(Opened { model: model.clone(), path, source, tuned, adapter })
    }

    /// What the model is made of.
    pub(super) fn config(&self) -> &ModelConfig {
        self.tuned.as_ref().map_or(self.source.config(), |tuned| &tuned.config)
    }

    /// Sizes of a tensor.
    pub(super) fn shape(&self, tensor: &str) -> Result<Vec<usize>> {
        if self.source.has(tensor) || self.tuned.is_none() {
            return Ok(self.source.shape(tensor)?.to_vec());
        }
        let all = tensors(self.config());
        let found = all.into_iter().find(|(name, _)| name == tensor).map(|(_, shape)| shape);
        found.ok_or_else(|| Error::input(self.model.to_string(), format!("has no tensor {tensor}")))
    }

    /// How a tensor is stored; one that an adapter brings, as the weights are.
    pub(super) fn stored(&self, tensor: &str) -> Result<&str> {
        match self.source.has(tensor) || self.tuned.is_none() {
            true => self.source.dtype_name(tensor),
            false => self.source.dtype_name("model.embed_tokens.weight"),
        }
    }

    /// The tensor that is read for `tensor`: a tied head is the table of embeddings.
    pub(super) fn stands_for<'t>(&self, tensor: &'t str) -> &'t str {
        let tied = tensor == "lm_head.weight" && self.config().tied;
        if tied { "model.embed_tokens.weight" } else { tensor }
    }
}

impl Models {
    /// Opens every model that `config` names; all must be of one kind and of the same sizes.
    pub(super) fn open(config: &Config, find: &dyn Fn(&str) -> Result<PathBuf>) -> Result<Models> {
        let mut all = Vec::new();
        for model in config.models() {
            all.push(Opened::open(model, &config.file, &all, find)?);
        }
        let models = Models { all };
        models.check()?;
        Ok(models)
    }

    /// Where a model stands in the list.
    pub(super) fn index(&self, model: &Model) -> usize {
        let found = self.all.iter().position(|opened| opened.model == *model);
        found.expect("every model of the file was opened")
    }

    /// A model by its place.
    pub(super) fn at(&self, index: usize) -> &Opened {
        &self.all[index]
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Opened> {
        self.all.iter()
    }

    /// The model whose configuration and tokenizer the output has: the base, or the first.
    pub(super) fn donor(&self, config: &Config) -> &Opened {
        config.base.as_ref().map_or(&self.all[0], |base| self.at(self.index(base)))
    }

    fn check(&self) -> Result<()> {
        let Some((first, rest)) = self.all.split_first() else { return Ok(()) };
        for other in rest {
            let (a, b) = (first.config(), other.config());
            if a.arch != b.arch {
                let (want, got) = (a.arch.model_type(), b.arch.model_type());
                return Err(differ(first, other, "architecture", &want, &got));
            }
            for ((what, want), (_, got)) in sizes(a).into_iter().zip(sizes(b)) {
                if want != got {
                    return Err(differ(first, other, what, &want, &got));
                }
            }
        }
        Ok(())
    }

    /// Settings of the forward pass that differ, though all tensors fit together.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for other in self.all.iter().skip(1) {
            let (a, b) = (self.all[0].config(), other.config());
            for (what, same) in [
                ("rotary positions", a.rope == b.rope),
                ("the epsilon of norms", a.rms_eps == b.rms_eps),
                ("the sliding window", a.sliding_window == b.sliding_window),
            ] {
                if !same {
                    notes.push(format!(
                        "{what} of {} and {} differ",
                        self.all[0].model, other.model
                    ));
                }
            }
        }
        notes
    }
}

/// What must agree, besides the number of layers and the vocabulary.
fn sizes(config: &ModelConfig) -> [(&'static str, usize); 9] {
    let flag = usize::from;
    [
        ("hidden_size", config.hidden),
        ("num_attention_heads", config.heads),
        ("num_key_value_heads", config.kv_heads),
        ("head_dim", config.head_dim),
        ("intermediate_size", config.ffn),
        ("biases of q, k and v", flag(config.qkv_bias)),
        ("bias of the attention output", flag(config.o_bias)),
        ("mlp_bias", flag(config.mlp_bias)),
        ("norms of q and k", flag(config.qk_norm)),
    ]
}

fn differ(
    first: &Opened,
    other: &Opened,
    what: &str,
    want: &dyn std::fmt::Display,
    got: &dyn std::fmt::Display,
) -> Error {
    let what = format!("{what}: expected {want} as in {}, got {got}", first.model);
    Error::input(other.model.to_string(), what).hint("models of one kind and size can be merged")
}

/// Where a model and its adapter are. A name may be that of an adapter alone, which knows its base.
fn places(
    model: &Model,
    file: &str,
    find: &dyn Fn(&str) -> Result<PathBuf>,
) -> Result<(PathBuf, Option<PathBuf>)> {
    let path = locate(&model.name, file, find)?;
    if let Some(adapter) = &model.adapter {
        return Ok((path, Some(locate(adapter, file, find)?)));
    }
    if path.join("config.json").is_file() || !luthier_params::is_adapter(&path) {
        return Ok((path, None));
    }
    match luthier_params::base_of(&path)? {
        (_, Some(base)) => Ok((locate(&base, file, find)?, Some(path))),
        (about, None) => {
            let what = "the adapter does not say which model it belongs to";
            Err(Error::input(about.display().to_string(), what)
                .hint(format!("name it as BASE+{}", model.name)))
        }
    }
}

/// A path as given, or beside the file that names it, or whatever `find` brings.
pub(super) fn locate(
    name: &str,
    file: &str,
    find: &dyn Fn(&str) -> Result<PathBuf>,
) -> Result<PathBuf> {
    let beside = Path::new(file).parent().map(|dir| dir.join(name));
    let given = Path::new(name);
    if luthier_params::is_adapter(given) {
        return Ok(given.to_path_buf());
    }
    if !given.exists()
        && let Some(beside) = beside.filter(|path| path.exists())
    {
        return Ok(beside);
    }
    find(name)
}
