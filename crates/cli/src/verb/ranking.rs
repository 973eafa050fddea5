//! `luthier probe ranking`: does a model know answers when it sees them?

use std::path::PathBuf;

use luthier_core::{Error, Result, Seed};
use luthier_data::ReadOptions;
use luthier_recipe::evaluate::{pairs, ranking};

use crate::{
    out,
    verb::{bar, model_args::ModelArgs},
};

/// Arguments of `luthier probe ranking`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Questions with their answers: a file, folder or glob of any known layout
    #[arg(long, short, value_name = "DATA")]
    data: PathBuf,
    /// Answers to other questions that each true answer is compared with
    #[arg(long, value_name = "N", default_value_t = 5)]
    n_negatives: usize,
    /// Only the first N questions
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The same seed compares with the same answers
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Print one JSON value: {"metric", "value", "n", "ci95", …}
    #[arg(long)]
    json: bool,
}

/// Ranks.
pub fn run(args: Args) -> Result<()> {
    for (flag, n) in [("--n-negatives", Some(args.n_negatives)), ("--limit", args.limit)] {
        if n == Some(0) {
            return Err(Error::input(flag, "expected at least 1, got 0"));
        }
    }
    let mut table = luthier_data::read(&args.data, &ReadOptions::default())?;
    table.examples.truncate(args.limit.unwrap_or(usize::MAX));
    let loaded = args.model.load()?;
    let pairs = pairs(&table, &loaded.opened.tokenizer)?;
    let progress = bar::pieces("ranking", pairs.len());
    let on_done = &mut |done: usize, total: usize| {
        progress.set_length(total as u64);
        progress.set_position(done as u64);
    };
    let score = ranking(&loaded.policy, &pairs, args.n_negatives, Seed(args.seed), on_done);
    progress.finish_and_clear();
    let score = score?;
    if args.json {
        return out::json(&score);
    }
    out::data(&format!(
        "ranking  {:.4}  95 % interval [{:.4}, {:.4}]  n = {}\n",
        score.value, score.ci95[0], score.ci95[1], score.n
    ))?;
    out::say("the share of comparisons that the true answer wins; 0.5 is chance");
    Ok(())
}
