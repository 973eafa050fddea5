//! `luthier merge`: several models become one.

use std::path::PathBuf;

use luthier_core::Result;
use luthier_recipe::merge::{Options, merge};

use crate::{
    out,
    verb::{bar, pull::bring},
};

/// Arguments of `luthier merge`.
#[derive(clap::Args)]
pub struct Args {
    /// mergekit's YAML, or a TOML file with the same keys
    config: PathBuf,
    /// Output folder
    #[arg(long)]
    out: PathBuf,
    /// Seed of random masks
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Megabytes after which another weight file begins
    #[arg(long, value_name = "MB", default_value_t = 5000)]
    shard_mb: u64,
    /// Put the hashes of all weights into the manifest
    #[arg(long)]
    hash: bool,
    /// Print one JSON value
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: Args) -> Result<()> {
    let command: Vec<String> = std::env::args().skip(1).collect();
    let command = format!("luthier {}", command.join(" "));
    let options = Options {
        seed: args.seed,
        shard_bytes: args.shard_mb.saturating_mul(1_000_000),
        hash: args.hash,
        command: &command,
    };
    let bar = bar::pieces("merging", 100);
    let progress = |done: u64, total: u64| {
        bar.set_position(done * 100 / total.max(1));
    };
    let merged = merge(&args.config, &args.out, &options, &bring, &progress);
    bar.finish_and_clear();
    let merged = merged?;
    if args.json {
        return out::json(&merged);
    }
    merged.notes.iter().for_each(|note| out::say(&format!("note: {note}")));
    if let Some(found) = &merged.found {
        let (tried, score) = (found.tried, found.score);
        out::say(&format!("the best of {tried} merges: {}, score {score:.5}", found.settings));
    }
    out::say(&format!(
        "{}: {} layers, {:.1} million parameters in {}",
        merged.method,
        merged.layers,
        merged.parameters as f64 / 1e6,
        merged.dtype
    ));
    out::data(&format!("{}\n", merged.model.display()))
}
