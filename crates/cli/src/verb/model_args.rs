//! Which model: the two flags that every verb with a model shares.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use luthier_core::{Error, Policy, Result};
use luthier_params::{is_adapter, own, peft};
use luthier_recipe::{Opened, Precision, open_for};

use crate::verb::pull::bring;

/// A model, perhaps with an adapter.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// Built-in name, hub id, model folder or GGUF file [default with --adapter: the adapter's base]
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<String>,
    /// Folder of a PEFT adapter
    #[arg(long, short, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Arithmetic of matrix products: bf16 is faster where the processor has it (auto), f32 exact
    #[arg(
        long, value_name = "P", default_value = "auto", value_parser =
        PossibleValuesParser::new(Precision::NAMES).try_map(|name| name.parse::<Precision>())
    )]
    pub precision: Precision,
}

/// A model that is ready to run.
pub struct Loaded {
    /// Weights, sizes and tokenizer.
    pub opened: Opened,
    /// The model with the adapter, if there is one.
    pub policy: Policy,
}

impl ModelArgs {
    /// The model's name: as given, or as the adapter recorded it.
    pub fn name(&self) -> Result<String> {
        match (&self.model, &self.adapter) {
            (Some(model), _) => Ok(model.clone()),
            (None, Some(adapter)) => base_of(adapter),
            (None, None) => Err(Error::input("--model", "missing: which model?")
                .hint("--model smollm2-135m-instruct, a model folder, or a GGUF file")),
        }
    }

    /// Loads the model and binds the adapter.
    pub fn load(&self) -> Result<Loaded> {
        self.load_for(usize::MAX)
    }

    /// [`ModelArgs::load`] for decoding at most `rows` texts at a time.
    pub fn load_for(&self, rows: usize) -> Result<Loaded> {
        if let Some(adapter) = &self.adapter {
            check_adapter(adapter)?;
        }
        let name = self.name()?;
        bring(&name)?;
        let opened = open_for(&name, self.precision, rows)?;
        let policy = opened.policy(self.adapter.as_deref())?;
        Ok(Loaded { opened, policy })
    }
}

/// Refuses a folder that is no adapter, before a model is loaded for it.
pub fn check_adapter(dir: &Path) -> Result<()> {
    if is_adapter(dir) {
        return Ok(());
    }
    let at = dir.display().to_string();
    if !dir.exists() {
        return Err(Error::input(at, "there is no such adapter folder"));
    }
    let what = format!("is no adapter: it holds no {} or {}", peft::CONFIG, own::CONFIG);
    let error = Error::input(at, what);
    Err(if dir.join("config.json").is_file() {
        error.hint("this is a whole model; give it as --model")
    } else {
        error.hint("an adapter folder is what `luthier train` or PEFT's save_pretrained wrote")
    })
}

/// The base that an adapter names.
fn base_of(adapter: &Path) -> Result<String> {
    check_adapter(adapter)?;
    let (file, name) = luthier_params::base_of(adapter)?;
    name.ok_or_else(|| {
        Error::input(file.display().to_string(), "names no base model")
            .hint("say which model it belongs to with --model")
    })
}
