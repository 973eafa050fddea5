//! `luthier probe`: one measurement.

mod confounders;
mod diversity;
mod graft;
mod pair;
mod sharpness;
mod tuco;

use std::path::PathBuf;

use luthier_core::{Error, Policy, Result};
use luthier_probe::novelty;
use luthier_recipe::{
    evaluate::{Limits, likelihood},
    fisher::fisher,
    gram::gram,
    training::Stage,
};
use serde_json::json;

use crate::{
    out,
    verb::{
        bar,
        columns::{Side, aligned},
        explore,
        model_args::ModelArgs,
        ranking,
        train::Source,
    },
};

/// Arguments of `luthier probe`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Which properties of rows a reward follows, such as the length of answers
    Confounders(confounders::Args),
    /// Of two models and their average, who is right where
    Diversity(diversity::Args),
    /// How much the likelihood of data hangs on each variable of a recipe, for train.update.ewc
    Fisher(Fisher),
    /// The smallest region of weights that carries a tuning, for merge_method: graft
    Graft(graft::Args),
    /// Mean inner products of what the linear maps of a recipe's model read, for merge_method: regmean
    Gram(Fisher),
    /// Which rows of a file tuning has made likelier: nats per token ahead of the base
    Novelty(Novelty),
    /// Whether a model finds true answers likelier than others, before it is tuned to answer
    Ranking(ranking::Args),
    /// How sharp the loss is around a model, layer by layer, and which layers tuning led astray
    Sharpness(sharpness::Args),
    /// How much of a pass tuning contributes, prompt by prompt
    Tuco(tuco::Args),
}

/// Arguments of `luthier probe novelty`.
#[derive(clap::Args)]
struct Novelty {
    #[command(flatten)]
    tuned: ModelArgs,
    /// What it was tuned from [default with --adapter: the same model without the adapter]
    #[arg(long, value_name = "MODEL", required_unless_present = "adapter")]
    base: Option<String>,
    /// Rows to compare
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Print one JSON value: a list of {"origin", "score", "tuned", "base"}, the largest score first
    #[arg(long)]
    json: bool,
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
    match args.what {
        What::Confounders(args) => confounders::run(args),
        What::Diversity(args) => diversity::run(args),
        What::Fisher(args) => fisher_values(args),
        What::Graft(args) => graft::run(args),
        What::Gram(args) => products(args),
        What::Novelty(args) => novel(args),
        What::Ranking(args) => ranking::run(args),
        What::Sharpness(args) => sharpness::run(args),
        What::Tuco(args) => tuco::run(args),
    }
}

fn novel(args: Novelty) -> Result<()> {
    let table = luthier_data::read(&args.data, &luthier_data::ReadOptions::default())?;
    let loaded = args.tuned.load()?;
    let base = explore::base(args.base.as_deref(), &loaded.opened, &args.tuned)?;
    let limits = Limits::default();
    let rows = |policy: &Policy| -> Result<_> {
        let tokenizer = &loaded.opened.tokenizer;
        Ok(likelihood(policy, tokenizer, &table, &limits, &mut |_, _| ())?.rows)
    };
    let mut found = novelty(&rows(&loaded.policy)?, &rows(&base)?)?;
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    let origin = |example: usize| table.examples[example].origin.to_string();
    if args.json {
        let value = |row: &luthier_probe::Novelty| {
            let luthier_probe::Novelty { example, score, tuned, base } = *row;
            json!({"origin": origin(example), "score": score, "tuned": tuned, "base": base})
        };
        return out::json(&found.iter().map(value).collect::<Vec<_>>());
    }
    let mut lines = vec![["SCORE", "TUNED", "BASE", "ROW"].map(str::to_string).to_vec()];
    for row in &found {
        let mut cells: Vec<String> =
            [row.score, row.tuned, row.base].map(|x| format!("{x:.4}")).to_vec();
        cells.push(origin(row.example));
        lines.push(cells);
    }
    out::data(&aligned(&[Side::Right, Side::Right, Side::Right, Side::Left], &lines))
}

fn products(args: Fisher) -> Result<()> {
    if args.out.exists() {
        return Err(Error::input(args.out.display().to_string(), "is there already")
            .hint("name another --out, or remove it"));
    }
    let stage = Stage::new(args.source.recipe()?)?;
    let rows = args.rows.min(stage.train.rows.len());
    let bar = bar::pieces("rows", rows);
    let (found, tokens) = gram(&stage, args.rows, &|done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let base = stage.opened.sha256.as_str();
    let about = [("kind", "gram"), ("base_sha256", base), ("tokens", &tokens.to_string())];
    found.save(&args.out, &about)?;
    match args.json {
        true => out::json(&json!({"out": args.out, "tensors": found.len(), "tokens": tokens})),
        false => {
            out::say(&format!("{} tensors over {tokens} tokens", found.len()));
            out::data(&format!("{}\n", args.out.display()))
        }
    }
}

fn fisher_values(args: Fisher) -> Result<()> {
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
