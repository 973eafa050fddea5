//! `luthier probe`: one measurement.

use std::path::PathBuf;

use luthier_core::{Error, Result};
use luthier_recipe::{fisher::fisher, training::Stage};
use serde_json::json;

use crate::{
    out,
    verb::{bar, train::Source},
};

/// Arguments of `luthier probe`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// How much the likelihood of data hangs on each variable of a recipe, for train.update.ewc
    Fisher(Fisher),
}

/// Arguments of `luthier probe fisher`.
#[derive(clap::Args)]
struct Fisher {
    #[command(flatten)]
    source: Source,
    /// How many training rows are read, drawn with the recipe's seed
    #[arg(long, default_value_t = 1000, value_name = "N")]
    rows: usize,
    /// File to write, in safetensors
    #[arg(long)]
    out: PathBuf,
    /// Print one JSON value: {"out", "variables", "rows"}
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: Args) -> Result<()> {
    let What::Fisher(args) = args.what;
    let mut recipe = args.source.recipe()?;
    if args.out.exists() {
        return Err(Error::input(args.out.display().to_string(), "is there already")
            .hint("name another --out, or remove it"));
    }
    if let Some(train) = &mut recipe.train {
        // The file that it names is the one to be written.
        train.update.ewc = None;
    }
    let stage = Stage::new(recipe)?;
    let bar = bar::pieces("rows", args.rows.min(stage.train.rows.len()));
    let (values, rows) = fisher(&stage, args.rows, &|done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let base = stage.opened.sha256.as_str();
    values.save(
        &args.out,
        &[("kind", "fisher"), ("base_sha256", base), ("rows", &rows.to_string())],
    )?;
    match args.json {
        true => out::json(&json!({"out": args.out, "variables": values.len(), "rows": rows})),
        false => {
            out::say(&format!("{} variables over {rows} rows", values.len()));
            out::data(&format!("{}\n", args.out.display()))
        }
    }
}
