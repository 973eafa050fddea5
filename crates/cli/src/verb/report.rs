//! `luthier report`: the page of a finished run, written again from its facts.

use std::path::PathBuf;

use luthier_core::Result;
use luthier_recipe::report;

use crate::out;

/// Arguments of `luthier report`.
#[derive(clap::Args)]
pub struct Args {
    /// Run directory
    dir: PathBuf,
    /// Print the report's facts as one JSON value
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: Args) -> Result<()> {
    let facts = report::read(&args.dir)?;
    if args.json {
        return out::json(&facts);
    }
    let path = report::write(&args.dir, &facts)?;
    out::data(&format!("{}\n", path.display()))
}
