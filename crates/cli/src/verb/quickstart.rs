//! `luthier quickstart`: the whole job on bundled data.

use std::path::PathBuf;

use luthier_core::Result;
use luthier_recipe::quickstart;

use crate::verb::run::stages;

/// Arguments of `luthier quickstart`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder to work in
    #[arg(default_value = quickstart::DIR)]
    dir: PathBuf,
    /// Settings of the recipe, as in epochs=1
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Print one JSON value with the outcome
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: Args) -> Result<()> {
    stages(quickstart::recipe(&args.dir, &args.overrides)?, &args.dir, args.json)
}
