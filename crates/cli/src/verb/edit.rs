//! `luthier edit`: facts in a model, changed by an editor that was trained for it.

use std::path::{Path, PathBuf};

use luthier_core::{Error, Result};
use luthier_model::save::SaveDtype;
use luthier_recipe::{
    Opened, Precision,
    edit::{Editor, Facts, Mend, Training, edit, rows},
    export,
};
use serde_json::json;

use crate::{
    out,
    verb::{bar, pull::bring},
};

/// Arguments of `luthier edit`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Train an editor for a model
    Train(Train),
    /// Change what a model says, and write it
    Apply(Apply),
}

/// Arguments of `luthier edit train`.
#[derive(clap::Args)]
struct Train {
    /// Built-in name, hub id, model folder or GGUF file
    #[arg(long, short, value_name = "MODEL")]
    model: String,
    /// Facts: prompts with the answers to give, and a column `rephrase` with the prompt in other words
    #[arg(long, value_name = "FILE")]
    facts: PathBuf,
    /// Texts whose answers shall stay as they are
    #[arg(long, value_name = "FILE")]
    locality: PathBuf,
    /// How many edits to learn from
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    episodes: usize,
    /// Facts of one edit
    #[arg(long, value_name = "N", default_value_t = 1)]
    n_edits: usize,
    /// Texts beside an edit that shall stay
    #[arg(long, value_name = "N", default_value_t = 1)]
    n_locality: usize,
    /// Matrices to edit, as a glob over sites [default: the MLPs of the last three blocks]
    #[arg(long, value_name = "GLOB")]
    at: Option<String>,
    /// Rank of the editor's networks, at most
    #[arg(long, value_name = "R", default_value_t = Mend::default().rank)]
    rank: usize,
    /// Step size that edits begin with
    #[arg(long, value_name = "A", default_value_t = Mend::default().edit_lr)]
    edit_lr: f64,
    /// Learning rate of the networks
    #[arg(long, value_name = "R", default_value_t = Mend::default().lr)]
    lr: f64,
    /// Learning rate of the step sizes
    #[arg(long, value_name = "R", default_value_t = Mend::default().lr_lr)]
    lr_lr: f64,
    /// Weight of what shall be said, against what shall stay
    #[arg(long, value_name = "C", default_value_t = Mend::default().cedit)]
    cedit: f64,
    /// Seed of the networks' first numbers and of what is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder of the editor to write
    #[arg(long)]
    out: PathBuf,
    /// Print one JSON value: {"out", "episodes", "skipped", "rephrased", "drift"}, the last two as means
    /// over the last tenth of the episodes
    #[arg(long)]
    json: bool,
}

/// Arguments of `luthier edit apply`.
#[derive(clap::Args)]
struct Apply {
    /// The model that the editor was trained for
    #[arg(long, short, value_name = "MODEL")]
    model: String,
    /// Folder of the editor
    #[arg(long, value_name = "DIR")]
    editor: PathBuf,
    /// Facts: prompts with the answers to give
    #[arg(long, value_name = "FILE")]
    facts: PathBuf,
    /// Make one edit after the other; by default all facts are one edit
    #[arg(long)]
    in_a_row: bool,
    /// Folder of the edited model to write
    #[arg(long)]
    out: PathBuf,
    /// Print one JSON value: {"out", "facts", "before", "after"}, losses of what shall be said
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: Args) -> Result<()> {
    match args.action {
        Action::Train(args) => args.run(),
        Action::Apply(args) => args.run(),
    }
}

/// Weights that will be written must not be rounded.
fn open(name: &str, out: &Path) -> Result<Opened> {
    if out.exists() && out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::input(out.display().to_string(), "the output folder is not empty")
            .hint("name a new folder"));
    }
    bring(name)?;
    luthier_recipe::open(name, Precision::F32)
}

fn read(file: &Path) -> Result<luthier_core::Table> {
    luthier_data::read(file, &luthier_data::ReadOptions::default())
}

impl Train {
    fn run(self) -> Result<()> {
        let (at, rank, edit_lr) = (self.at.clone(), self.rank, self.edit_lr);
        let (lr, lr_lr, cedit, seed) = (self.lr, self.lr_lr, self.cedit, self.seed);
        let mend = Mend { at, rank, edit_lr, lr, lr_lr, cedit, seed, ..Mend::default() };
        mend.check()?;
        let (facts, locality) = (read(&self.facts)?, read(&self.locality)?);
        let opened = open(&self.model, &self.out)?;
        let facts = Facts::new(&facts, &locality, &opened.tokenizer)?;
        let policy = opened.policy(None)?;
        let editor = Editor::new(policy.model.as_ref(), &mend)?;
        let (episodes, n_edits, n_locality) = (self.episodes, self.n_edits, self.n_locality);
        let how = Training { episodes, n_edits, n_locality, seed };
        let bar = bar::pieces("episodes", episodes);
        let (mut skipped, mut rephrased, mut drift) = (0, Vec::new(), Vec::new());
        let editor = facts.train(&policy, editor, &how, &mut |number, judged| {
            bar.inc(1);
            skipped += usize::from(!judged.counts);
            if judged.counts && number >= episodes - episodes.div_ceil(10) {
                rephrased.push(judged.rephrased);
                drift.push(judged.drift);
            }
        })?;
        bar.finish_and_clear();
        editor.save(&self.out, &opened.sha256)?;
        let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
        let (rephrased, drift) = (mean(&rephrased), mean(&drift));
        if self.json {
            return out::json(&json!({
                "out": self.out, "episodes": episodes, "skipped": skipped,
                "rephrased": rephrased, "drift": drift,
            }));
        }
        if skipped > 0 {
            out::say(&format!(
                "{skipped} episodes had gradients that are not finite, and were skipped"
            ));
        }
        out::say(&format!(
            "last tenth of the episodes: loss in other words {rephrased:.4}, drift elsewhere {drift:.5}"
        ));
        out::data(&format!("{}\n", self.out.display()))
    }
}

impl Apply {
    fn run(self) -> Result<()> {
        let facts = read(&self.facts)?;
        let opened = open(&self.model, &self.out)?;
        let mut policy = opened.policy(None)?;
        let editor = Editor::load(&self.editor, policy.model.as_ref(), &opened.sha256)?;
        let rows = rows(&facts, &opened.tokenizer)?;
        let parts: Vec<&[luthier_core::Row]> = match self.in_a_row {
            true => rows.chunks(1).collect(),
            false => vec![&rows[..]],
        };
        let (mut before, mut tokens) = (0.0, 0);
        for part in parts {
            let (loss, edited) = edit(&policy, &editor, part)?;
            let trained: usize = part.iter().map(|row| row.trained()).sum();
            before += loss * trained as f64;
            tokens += trained;
            policy = edited;
        }
        let before = before / tokens as f64;
        let batch = luthier_core::Batch::from_rows(&rows);
        let found = luthier_probe::metric::nll(&policy, [batch])?;
        let (sum, weight) = found.iter().fold((0.0, 0.0), |(s, w), r| (s + r.sum, w + r.weight));
        let after = sum / weight;
        export::merged(&policy, &opened, SaveDtype::F32, &self.out)?;
        if self.json {
            let value = json!({
                "out": self.out, "facts": rows.len(), "before": before, "after": after,
            });
            return out::json(&value);
        }
        out::say(&format!("{} facts: loss {before:.4} before, {after:.4} after", rows.len()));
        out::data(&format!("{}\n", self.out.display()))
    }
}
