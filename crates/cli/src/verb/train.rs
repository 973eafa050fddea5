//! `luthier train`: the main job.

use std::path::{Path, PathBuf};

use luthier_core::{Error, Result};
use luthier_recipe::{
    Recipe,
    plan::{bytes, duration},
    schema::{Paths, absolute},
    training::{Circumstances, Stage, check_out},
};
use luthier_train::{Outcome, Train};
use serde::Serialize;

use crate::{out, verb::interrupt};

/// Arguments of `luthier train`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Output folder
    #[arg(long)]
    out: PathBuf,
    /// Go on with the run in --out, from its newest checkpoint
    #[arg(long)]
    resume: bool,
    /// Print one JSON value with the outcome
    #[arg(long)]
    json: bool,
}

/// Where a training recipe comes from: a file, or a model and data, with overrides.
#[derive(clap::Args)]
pub struct Source {
    /// Recipe file; LoRA supervised fine-tuning when left out. May also stand without the flag
    #[arg(long, short)]
    recipe: Option<PathBuf>,
    /// Model: built-in name, hub id, folder or GGUF file
    #[arg(long, short)]
    model: Option<String>,
    /// Training data: file, folder or glob
    #[arg(long, short)]
    data: Vec<String>,
    /// Evaluation data
    #[arg(long)]
    eval: Option<String>,
    /// A recipe file, and settings as in learning_rate=1e-4 or train.params.lora.r=8
    #[arg(value_name = "RECIPE | KEY=VALUE")]
    words: Vec<String>,
}

impl Source {
    /// The recipe with everything given on the command line.
    pub fn recipe(&self) -> Result<Recipe> {
        let (overrides, files): (Vec<String>, Vec<String>) =
            self.words.iter().cloned().partition(|word| word.contains('='));
        let named = self.recipe.iter().cloned().chain(files.iter().map(PathBuf::from));
        let named: Vec<PathBuf> = named.collect();
        if let [_, second, ..] = named.as_slice() {
            return Err(Error::input(second.display().to_string(), "is a second recipe")
                .hint("settings are written as key=value"));
        }
        let mut recipe = match named.first() {
            Some(path) => Recipe::load(path, &[])?,
            None => Recipe {
                about: "LoRA supervised fine-tuning".into(),
                train: Some(Train::default()),
                ..Recipe::default()
            },
        };
        if let Some(model) = &self.model {
            recipe.models.policy = model.clone();
        }
        let path = |p: &String| absolute(Path::new(p)).display().to_string();
        match self.data.as_slice() {
            [] => {}
            [one] => recipe.data.train = Some(Paths::One(path(one))),
            many => recipe.data.train = Some(Paths::Many(many.iter().map(path).collect())),
        }
        if let Some(eval) = &self.eval {
            recipe.data.eval = Some(Paths::One(path(eval)));
        }
        recipe.with(&overrides)
    }
}

/// The command line, to be written down.
pub fn command() -> String {
    let quoted = |word: String| match word.contains([' ', '"', '\'', '*', '{', '[']) {
        true => format!("'{}'", word.replace('\'', r"'\''")),
        false => word,
    };
    let words = std::env::args().skip(1).map(quoted).collect::<Vec<_>>().join(" ");
    format!("luthier {words}")
}

#[derive(Serialize)]
struct Done<'a> {
    #[serde(flatten)]
    outcome: &'a Outcome,
    out: &'a Path,
    files: &'a [PathBuf],
}

/// Runs the verb.
pub fn run(args: Args) -> Result<()> {
    let recipe = args.source.recipe()?;
    if recipe.train.is_none() {
        return Err(Error::input("train", "the recipe has no [train] table"));
    }
    check_out(&args.out, args.resume)?;
    let stage = Stage::new(recipe)?;
    let counts = stage.train.counts();
    out::say(&format!(
        "{}: {}, {} rows, {} tokens ({} trained)",
        counts.source, counts.layout, counts.rows, counts.tokens, counts.trained
    ));
    if stage.train.cut.over_length > 0 {
        out::say(&stage.train.cut.to_string());
    }
    let how = Circumstances {
        resume: args.resume,
        progress: true,
        stop: interrupt::flag()?,
        command: command(),
    };
    let trained = stage.run(&args.out, &how)?;
    let o = &trained.outcome;
    if args.json {
        return out::json(&Done { outcome: o, out: &args.out, files: &trained.files });
    }
    out::say(&format!(
        "{} steps in {}: loss {:.4}, {:.0} tokens/s{}",
        o.steps,
        duration(o.seconds),
        o.train_loss,
        o.tokens_per_second,
        o.peak_rss_bytes.map_or(String::new(), |b| format!(", {} at most", bytes(b)))
    ));
    if let Some(loss) = o.eval_loss {
        out::say(&format!("evaluation loss {loss:.4}"));
    }
    out::data(&format!("{}\n", args.out.display()))
}
