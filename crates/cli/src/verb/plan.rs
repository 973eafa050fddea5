//! `luthier plan`: what a run would do.

use luthier_core::Result;
use luthier_recipe::training::Stage;

use crate::{out, verb::train::Source};

/// Arguments of `luthier plan`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Print the plan as one JSON value
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: Args) -> Result<()> {
    let plan = luthier_recipe::plan::plan(&Stage::new(args.source.recipe()?)?)?;
    match args.json {
        true => out::json(&plan),
        false => out::data(&plan.tree()?),
    }
}
