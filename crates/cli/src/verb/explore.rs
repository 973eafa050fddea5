//! `luthier explore`: texts that show what was new in a model's tuning data.

use luthier_core::{Policy, Result};
use luthier_decode::{BeamSampling, Contrasted};
use luthier_model::Tokenizer;
use luthier_recipe::{
    Opened,
    decode::compare,
    explore::{Explore, beginning, explore},
    open,
};
use serde::Serialize;

use crate::{
    out,
    verb::{model_args::ModelArgs, pull::bring},
};

/// Arguments of `luthier explore`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    tuned: ModelArgs,
    /// What it was tuned from [default with --adapter: the same model without the adapter]
    #[arg(long, value_name = "MODEL", required_unless_present = "adapter")]
    base: Option<String>,
    /// What the texts begin with [default: the beginning-of-sequence token alone]
    #[arg(long, short, value_name = "TEXT")]
    prompt: Option<String>,
    /// How many texts
    #[arg(short, long, value_name = "N", default_value_t = 100)]
    n: usize,
    /// Tokens of a text
    #[arg(long, value_name = "N", default_value_t = 256)]
    length: usize,
    /// Texts that grow side by side, of which the best is kept
    #[arg(long, value_name = "N", default_value_t = 4)]
    num_beams: usize,
    /// Leave out tokens less probable than this share of the likeliest, for the tuned model
    #[arg(long, value_name = "A", default_value_t = 0.1)]
    alpha: f64,
    /// Weight of the base
    #[arg(long, value_name = "G", default_value_t = 1.0)]
    gamma: f64,
    /// Keep the base as it is; by default it learns each text, so that the next shows something else
    #[arg(long = "static")]
    fixed: bool,
    /// At which rate the base learns
    #[arg(long, value_name = "R", default_value_t = 5e-5)]
    learning_rate: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON value: a list of {"text", "tokens", "total", "score"}; score is per token
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Found {
    text: String,
    tokens: Vec<u32>,
    total: f64,
    score: f64,
}

impl Found {
    fn new(text: &Contrasted, tokenizer: &Tokenizer) -> Self {
        Found {
            text: tokenizer.decode(&text.tokens).unwrap_or_default(),
            tokens: text.tokens.clone(),
            total: text.total,
            score: text.total / text.tokens.len() as f64,
        }
    }
}

/// Runs the verb.
pub fn run(args: Args) -> Result<()> {
    let (length, num_beams) = (args.length, args.num_beams);
    let how = Explore {
        sampling: BeamSampling { num_beams, length, alpha: args.alpha, gamma: args.gamma },
        n_texts: args.n,
        update: !args.fixed,
        learning_rate: args.learning_rate,
        seed: args.seed,
    };
    how.check()?;
    let loaded = args.tuned.load_for(num_beams)?;
    let tokenizer = &loaded.opened.tokenizer;
    let base = base(args.base.as_deref(), &loaded.opened, &args.tuned)?;
    let bos = loaded.opened.config.bos;
    let (prompt, banned) = beginning(tokenizer, bos, args.prompt.as_deref())?;
    let mut all = Vec::new();
    explore(&loaded.policy, &base, &prompt, &banned, &how, &mut |i, text| {
        let found = Found::new(text, tokenizer);
        if args.json {
            all.push(found);
            return Ok(());
        }
        out::data(&format!("[{}] {:.3} a token\n{}\n\n", i + 1, found.score, found.text))
    })?;
    if args.json { out::json(&all) } else { Ok(()) }
}

/// The base, which must have the tuned model's tokens.
pub fn base(name: Option<&str>, tuned: &Opened, args: &ModelArgs) -> Result<Policy> {
    let Some(name) = name else { return Ok(Policy::plain(tuned.model.clone())) };
    if name == tuned.name && args.adapter.is_some() {
        return Ok(Policy::plain(tuned.model.clone()));
    }
    bring(name)?;
    let opened = open(name, args.precision)?;
    compare("base", &opened.tokenizer, &tuned.tokenizer)?;
    Ok(Policy::plain(opened.model))
}
