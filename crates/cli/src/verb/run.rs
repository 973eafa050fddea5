//! `luthier run`: every stage of a recipe.

use std::{
    io::IsTerminal,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use indicatif::{ProgressBar, ProgressStyle};
use luthier_core::Result;
use luthier_recipe::{
    Recipe,
    plan::duration,
    run::{Measured, Summary, perplexity},
    training::Circumstances,
};
use serde_json::{Value, json};

use crate::{
    out,
    verb::{interrupt, train::command},
};

/// Arguments of `luthier run`.
#[derive(clap::Args)]
pub struct Args {
    /// Recipe file
    recipe: PathBuf,
    /// Output folder; a run that is already there goes on where it stopped
    #[arg(long)]
    out: PathBuf,
    /// Settings of the recipe
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Print one JSON value with the outcome
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: Args) -> Result<()> {
    stages(Recipe::load(&args.recipe, &args.overrides)?, &args.out, args.json)
}

/// Runs all stages and prints what came out.
pub fn stages(recipe: Recipe, dir: &std::path::Path, as_json: bool) -> Result<()> {
    let how = Circumstances {
        resume: false,
        progress: true,
        stop: interrupt::flag()?,
        command: command(),
    };
    let bar: Mutex<Option<ProgressBar>> = Mutex::new(None);
    let say = |done: usize, total: usize| {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{bar:16.yellow/dim} {pos}/{len} answers");
            ProgressBar::new(total as u64)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        shown.set_position(done as u64);
        if done == total {
            shown.finish_and_clear();
            *bar = None;
        }
    };
    let summary = luthier_recipe::run::run(recipe, dir, &how, &say)?;
    match as_json {
        true => out::json(&contract(&summary)),
        false => out::data(&table(&summary)),
    }
}

/// One measurement under the metric's own name. A JSON match counts only when the whole answer is
/// right, which is what `exact_match` says.
fn measured(m: Option<&Measured>) -> Value {
    let mut value = json!({});
    if let Some(task) = m.and_then(|m| m.task.as_ref()) {
        let name = task.score.metric.replace("json_match", "exact_match");
        value[name] = json!(task.score.value);
        value["n"] = json!(task.score.n);
        value["ci95"] = json!(task.score.ci95);
    }
    if let Some(report) = perplexity(m) {
        value["perplexity"] = json!(report.perplexity);
        value["perplexity_ci95"] = json!(report.ci95);
    }
    value
}

fn contract(summary: &Summary) -> Value {
    json!({
        "before": measured(summary.before.as_ref()),
        "after": measured(summary.after.as_ref()),
        "comparison": summary.task,
        "train": summary.train,
        "report": summary.report,
        "adapter": summary.adapter,
    })
}

fn table(summary: &Summary) -> String {
    let mut out = format!("\n{:<26}{:>22}{:>22}\n", "", "before", "after");
    let (before, after) = (summary.before.as_ref(), summary.after.as_ref());
    let percent = |v: f64, ci: [f64; 2]| {
        format!("{:.1} % [{:.1}, {:.1}]", 100.0 * v, 100.0 * ci[0], 100.0 * ci[1])
    };
    let plain = |v: f64, ci: [f64; 2]| format!("{v:.2} [{:.2}, {:.2}]", ci[0], ci[1]);
    let task = |m: Option<&Measured>| m.and_then(|m| m.task.as_ref()).map(|t| t.score.clone());
    if let (Some(b), Some(a)) = (task(before), task(after)) {
        let share = b.metric != "nll";
        let show = |s: &luthier_probe::Score| match share {
            true => percent(s.value, s.ci95),
            false => plain(s.value, s.ci95),
        };
        let name = format!(
            "{} (n = {})",
            b.metric.replace("json_match", "exact match").replace('_', " "),
            b.n
        );
        out += &format!("{name:<26}{:>22}{:>22}\n", show(&b), show(&a));
    }
    if let (Some(b), Some(a)) = (perplexity(before), perplexity(after)) {
        let (b, a) = (plain(b.perplexity, b.ci95), plain(a.perplexity, a.ci95));
        out += &format!("{:<26}{b:>22}{a:>22}\n", "perplexity, general text");
    }
    out += "\n";
    if let Some(train) = &summary.train {
        out += &format!(
            "trained {} steps in {} ({:.0} tokens/s)\n",
            train.steps,
            duration(train.seconds),
            train.tokens_per_second
        );
    }
    out +=
        &format!("adapter {}\nreport  {}\n", summary.adapter.display(), summary.report.display());
    out
}
