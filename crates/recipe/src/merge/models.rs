//! The models that go in: found, opened, and compared before anything is read of them.

use std::path::{Path, PathBuf};

use luthier_core::{Error, Result};
use luthier_model::{ModelConfig, Source};
use luthier_weights::{Config, Model};

/// All models of a merge.
pub(super) struct Models {
    all: Vec<Opened>,
}

/// One of them.
pub(super) struct Opened {
    /// As the file names it.
    pub model: Model,
    /// Where it is.
    pub path: PathBuf,
    /// Its weights.
    pub source: Source,
}

impl Models {
    /// Opens every model that `config` names; all must be of one kind and of the same sizes.
    pub(super) fn open(config: &Config, find: &dyn Fn(&str) -> Result<PathBuf>) -> Result<Models> {
        let mut all = Vec::new();
        for model in config.models() {
            if let Some(adapter) = &model.adapter {
                let what = format!("model {model}: an adapter cannot go in by itself yet");
                let hint = format!(
                    "luthier fold --model {} --adapter {adapter} --out DIR, then name DIR",
                    model.name
                );
                return Err(Error::input(&config.file, what).hint(hint));
            }
            let path = locate(&model.name, &config.file, find)?;
            let source = Source::open(&path)?;
            all.push(Opened { model: model.clone(), path, source });
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
            let (a, b) = (first.source.config(), other.source.config());
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
            let (a, b) = (self.all[0].source.config(), other.source.config());
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

/// A path as given, or beside the file that names it, or whatever `find` brings.
fn locate(name: &str, file: &str, find: &dyn Fn(&str) -> Result<PathBuf>) -> Result<PathBuf> {
    let beside = Path::new(file).parent().map(|dir| dir.join(name));
    if !Path::new(name).exists()
        && let Some(beside) = beside.filter(|path| path.exists())
    {
        return Ok(beside);
    }
    find(name)
}
