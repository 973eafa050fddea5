//! `luthier pull`: a model onto this machine.

use std::path::PathBuf;

use luthier_core::Result;
use luthier_model::{Source, names::tensors, pull};
use serde_json::json;

use crate::{out, verb::bar};

/// Arguments of `luthier pull`.
#[derive(clap::Args)]
pub struct Args {
    /// Built-in name (smollm2-135m-instruct), hub id (org/name or org/name:file.gguf), or local path
    name: String,
    /// Print one JSON value: {"name", "path", "sha256", "parameters"}
    #[arg(long)]
    json: bool,
}

/// Brings a model and says where it is.
pub fn run(args: Args) -> Result<()> {
    let path = bring(&args.name)?;
    let source = Source::open(&path)?;
    let sizes = tensors(source.config());
    let parameters: usize = sizes.iter().map(|(_, dims)| dims.iter().product::<usize>()).sum();
    if args.json {
        return out::json(&json!({
            "name": args.name, "path": path, "sha256": source.sha256()?, "parameters": parameters,
        }));
    }
    let (config, million) = (source.config(), parameters as f64 / 1e6);
    out::say(&format!(
        "{}: {}, {} layers, {million:.1} million parameters",
        args.name,
        config.arch.model_type(),
        config.layers
    ));
    out::data(&format!("{}\n", path.display()))
}

/// The local path of a model, with a progress bar while it is brought.
pub fn bring(name: &str) -> Result<PathBuf> {
    let shown = std::cell::OnceCell::new();
    let progress = |what: &str, done: u64, total: Option<u64>| {
        let bar = shown.get_or_init(|| bar::bytes(what));
        bar.set_message(what.to_string());
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(done);
    };
    let path = pull::resolve(name, &progress);
    if let Some(bar) = shown.get() {
        bar.finish_and_clear();
    }
    path
}
