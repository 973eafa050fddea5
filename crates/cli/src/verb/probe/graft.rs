//! `luthier probe graft`: the smallest region that carries a tuning.

use std::path::PathBuf;

use luthier_core::{Error, Result, Seed};
use luthier_probe::Graft;
use luthier_recipe::landscape::Landscape;
use serde_json::json;

use super::pair::{Both, Pair, table};
use crate::out;

/// Arguments of `luthier probe graft`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pair: Pair,
    /// Rows of the task, by whose gradients the region is sought
    #[arg(long, short, value_name = "FILE")]
    data: PathBuf,
    /// Rows by whose likelihood it is judged [default: those of --data]
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    /// Only the first N rows of each
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Tensors that may be in, by a part of their names
    #[arg(long, value_name = "TEXT", default_value = "layers")]
    filter: String,
    /// The share of numbers to begin with, those that tuning moved most
    #[arg(long, value_name = "S", default_value_t = Graft::default().sparsity_level)]
    sparsity_level: f64,
    /// How far a number is from being taken in or left out
    #[arg(long, value_name = "B", default_value_t = Graft::default().sigmoid_bias)]
    sigmoid_bias: f64,
    /// Of plain gradient descent
    #[arg(long, value_name = "R", default_value_t = Graft::default().learning_rate)]
    learning_rate: f64,
    /// Steps, each over all rows; 0 keeps the share to begin with
    #[arg(long, value_name = "N", default_value_t = Graft::default().steps)]
    steps: u64,
    /// Stop when the region holds a larger share than this
    #[arg(long, value_name = "S")]
    most: Option<f64>,
    /// Seed of the soft mask's beginning
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File to write: the mask, for merge_method: graft
    #[arg(long)]
    out: PathBuf,
    /// Print one JSON value: {"out", "share", "step", "base", "tuned", "graft"}; the last three are the
    /// mean likelihood of a token
    #[arg(long)]
    json: bool,
}

/// Seeks the region.
pub fn run(args: Args) -> Result<()> {
    if args.out.exists() {
        return Err(Error::input(args.out.display().to_string(), "is there already")
            .hint("name another --out, or remove it"));
    }
    let how = Graft {
        sparsity_level: args.sparsity_level,
        sigmoid_bias: args.sigmoid_bias,
        learning_rate: args.learning_rate,
        steps: args.steps,
        every: 1,
        most: args.most,
    };
    let data = table(&args.data, args.limit)?;
    let eval = args.eval.as_ref().map(|path| table(path, args.limit)).transpose()?;
    let Both { base, tuned, weights } = args.pair.load()?;
    let candidates = |name: &str| name.contains(&args.filter);
    if !base.iter().any(|(name, _)| candidates(name)) {
        let what = format!("no tensor of the model has `{}` in its name", args.filter);
        return Err(Error::input("--filter", what).hint("layers, mlp, self_attn, layers.3."));
    }
    let task = Landscape::of(&weights, &data)?;
    let held = Landscape::of(&weights, eval.as_ref().unwrap_or(&data))?;
    let (before, after) = (held.likelihood(&base)?, held.likelihood(&tuned)?);
    let (mask, share, score, step) = match how.steps {
        0 => {
            let share = how.sparsity_level;
            let mask = luthier_probe::graft::largest(&base, &tuned, share, &candidates)?;
            let score = held.likelihood(&luthier_probe::graft::apply(&base, &tuned, &mask)?)?;
            let share = luthier_probe::graft::share(&mask)?;
            (mask, share, score, 0)
        }
        _ => {
            let seed = Seed(args.seed).split("graft");
            let region = task.graft(&how, (&base, &tuned), &candidates, &held, seed)?;
            (region.mask, region.share, region.score, region.step)
        }
    };
    let about = [("kind", "mask".to_string()), ("share", share.to_string())];
    mask.save(&args.out, &about.each_ref().map(|(key, value)| (*key, value.as_str())))?;
    if args.json {
        return out::json(&json!({
            "out": args.out, "share": share, "step": step, "base": before, "tuned": after,
            "graft": score,
        }));
    }
    out::say(&format!(
        "{:.4} % of the numbers; a token's likelihood is {before:.4} with none of them, {score:.4} with \
         these, {after:.4} with all",
        share * 100.0
    ));
    out::data(&format!("{}\n", args.out.display()))
}
