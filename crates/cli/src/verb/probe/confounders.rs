//! `luthier probe confounders`: which properties of rows a reward follows.

use std::path::PathBuf;

use luthier_core::Result;
use luthier_data::transform::deconfound::{
    Deconfound,
    associate::{Association, LENGTH},
    estimate::Estimator,
};

use super::pair::table;
use crate::{
    out,
    verb::columns::{Side, aligned},
};

/// Arguments of `luthier probe confounders`.
#[derive(clap::Args)]
pub struct Args {
    /// Rewarded answers: a file, folder or glob of any known layout
    #[arg(long, short, value_name = "DATA")]
    data: PathBuf,
    /// The column of the reward
    #[arg(long, value_name = "COLUMN", default_value = "reward")]
    outcome: String,
    /// Columns that may move it, of numbers or of categories; `length` is that of the answer in characters
    #[arg(long, value_name = "A,B", value_delimiter = ',', default_value = LENGTH)]
    confounders: Vec<String>,
    /// Columns that move those and have no other way to the reward
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    instruments: Vec<String>,
    /// How what a column adds is told from what goes along with it [default: iv where there are
    /// instruments, else partial: given the words of the answer]
    #[arg(long, value_name = "HOW")]
    estimator: Option<String>,
    /// The most frequent words that are looked at
    #[arg(long, value_name = "N", default_value_t = 512)]
    words: usize,
    /// Only the first N rows
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print one JSON value: {"rows", "told", "estimator", "properties": [{"property", "correlation",
    /// "alone", "adjusted", "adjusted_correlation", "by_text", "first_stage_f"}]}
    #[arg(long)]
    json: bool,
}

impl Args {
    /// The data step that would correct the rewards so.
    fn step(&self) -> Result<Deconfound> {
        let known = [Estimator::Iv, Estimator::Partial, Estimator::Marginal];
        let named = |name: &String| {
            let estimator = known.into_iter().find(|estimator| estimator.name() == name);
            estimator.ok_or_else(|| {
                let what = format!("`{name}` is no estimator");
                let names = known.iter().map(|estimator| estimator.name());
                luthier_core::Error::input("--estimator", what)
                    .hint(luthier_core::nearest::suggest(name, names))
            })
        };
        Ok(Deconfound {
            outcome: self.outcome.clone(),
            confounders: self.confounders.clone(),
            instruments: self.instruments.clone(),
            estimator: self.estimator.as_ref().map(named).transpose()?,
            words: self.words,
            ..Deconfound::default()
        })
    }
}

/// Measures.
pub fn run(args: Args) -> Result<()> {
    let step = args.step()?;
    let found = step.associations(&table(&args.data, args.limit)?)?;
    if args.json {
        return out::json(&found);
    }
    let heads = ["CORRELATION", "ALONE", "ADJUSTED", "ADJ. CORR.", "BY TEXT", "F", "PROPERTY"];
    let mut lines = vec![heads.map(str::to_string).to_vec()];
    lines.extend(found.properties.iter().map(|of: &Association| {
        let numbers = [of.correlation, of.alone, of.adjusted, of.adjusted_correlation, of.by_text];
        let mut line = numbers.map(|x| format!("{x:.4}")).to_vec();
        line.push(of.first_stage_f.map_or("-".to_string(), |f| format!("{f:.1}")));
        line.push(of.property.clone());
        line
    }));
    let right = Side::Right;
    out::data(&aligned(&[right, right, right, right, right, right, Side::Left], &lines))?;
    out::say(&format!(
        "together they tell {:.1} % of {} over {} rows; adjusted by {}",
        100.0 * found.told,
        args.outcome,
        found.rows,
        found.estimator.name()
    ));
    Ok(())
}
