//! `luthier adapter`: adapter folders, checked and converted.

use std::path::PathBuf;

use luthier_core::{Error, Result};
use luthier_recipe::{
    Opened, Precision,
    adapter::{self, Checked, Converted, Extract},
};

use crate::{
    out,
    verb::{
        columns::{Side, aligned},
        model_args::{ModelArgs, check_adapter},
        pull::bring,
    },
};

/// Arguments of `luthier adapter`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Say which of PEFT, vLLM and llama.cpp will run an adapter, and why not
    Check(Check),
    /// Make a plain LoRA: of a smaller rank, of any adapter that folds, or of two models
    Convert(Convert),
}

/// Arguments of `luthier adapter check`.
#[derive(clap::Args)]
struct Check {
    /// Adapter folder
    #[arg(value_name = "DIR")]
    adapter: PathBuf,
    /// Print one JSON value: {"adapter", "kind", "base", "modules", "ranks", "runtimes"}
    #[arg(long)]
    json: bool,
}

/// Arguments of `luthier adapter convert`.
#[derive(clap::Args)]
struct Convert {
    /// Adapter folder
    #[arg(value_name = "DIR", required_unless_present = "extract", conflicts_with = "extract")]
    adapter: Option<PathBuf>,
    /// Its base model [default: the one the adapter names]
    #[arg(long, short, value_name = "MODEL", conflicts_with = "extract")]
    model: Option<String>,
    /// Two models: the base, and what tuning made of it
    #[arg(long, num_args = 2, value_names = ["BASE", "TUNED"])]
    extract: Option<Vec<String>>,
    /// Rank of the new adapter, at most [default with --extract: 32]
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// Leave out parts of the difference whose singular value is not above this
    #[arg(
        long,
        value_name = "E",
        default_value_t = 0.0,
        requires = "extract",
        allow_negative_numbers = true
    )]
    sv_epsilon: f64,
    /// Output folder
    #[arg(long)]
    out: PathBuf,
    /// Print one JSON value: {"adapter", "modules", "relative_error", "left_out"}
    #[arg(long)]
    json: bool,
}

/// Ranks that an extracted LoRA has unless asked otherwise.
const EXTRACT_RANK: usize = 32;

/// Runs the verb.
pub fn run(args: Args) -> Result<()> {
    match args.action {
        Action::Check(args) => {
            check_adapter(&args.adapter)?;
            let checked = adapter::check(&args.adapter)?;
            if args.json { out::json(&checked) } else { out::data(&verdicts(&checked)) }
        }
        Action::Convert(args) => {
            let converted = args.convert()?;
            if args.json {
                return out::json(&converted);
            }
            for left in &converted.left_out {
                let (site, what, norm) = (&left.site, &left.what, left.norm);
                out::say(&format!("not represented: {site}: {what} (norm {norm:.4})"));
            }
            out::data(&errors(&converted))?;
            out::say(&format!("written: {}", converted.adapter.display()));
            Ok(())
        }
    }
}

impl Convert {
    fn convert(&self) -> Result<Converted> {
        if let Some([base, tuned]) = self.extract.as_deref() {
            let rank = self.rank.unwrap_or(EXTRACT_RANK);
            let how = Extract { rank, sv_epsilon: self.sv_epsilon };
            return adapter::extract(&open(base)?, &open(tuned)?, how, &self.out);
        }
        let Some(dir) = &self.adapter else {
            return Err(Error::input("DIR", "missing: which adapter?"));
        };
        check_adapter(dir)?;
        let (model, adapter) = (self.model.clone(), Some(dir.clone()));
        let name = ModelArgs { model, adapter, precision: Precision::F32 }.name()?;
        adapter::convert(&open(&name)?, dir, self.rank, &self.out)
    }
}

/// Weights that are subtracted must not be rounded.
fn open(name: &str) -> Result<Opened> {
    bring(name)?;
    luthier_recipe::open(name, Precision::F32)
}

fn verdicts(checked: &Checked) -> String {
    let mut about = vec![vec!["type".to_string(), checked.kind.clone()]];
    if let Some(base) = &checked.base {
        about.push(vec!["base".into(), base.clone()]);
    }
    if let Some([least, most]) = checked.ranks {
        let ranks = if least == most { most.to_string() } else { format!("{least} to {most}") };
        about.push(vec!["LoRA".into(), format!("{} modules, rank {ranks}", checked.modules)]);
    }
    let mut rows = Vec::new();
    for runtime in &checked.runtimes {
        let mut name = runtime.name.to_string();
        let mut verdict = if runtime.accepts { "yes" } else { "no" }.to_string();
        let notes = runtime.notes.iter().map(|note| format!("note: {note}"));
        let mut lines: Vec<String> = runtime.reasons.iter().cloned().chain(notes).collect();
        if lines.is_empty() {
            lines.push(String::new());
        }
        for line in lines {
            rows.push(vec![std::mem::take(&mut name), std::mem::take(&mut verdict), line]);
        }
    }
    format!("{}\n{}", aligned(&[Side::Left; 2], &about), aligned(&[Side::Left; 3], &rows))
}

fn errors(converted: &Converted) -> String {
    let cells = |cells: [String; 3]| cells.to_vec();
    let mut rows = vec![cells(["SITE".into(), "RANK".into(), "RELATIVE ERROR".into()])];
    for module in &converted.modules {
        let rank = match module.rank_before {
            Some(before) if before != module.rank => format!("{before} → {}", module.rank),
            _ => module.rank.to_string(),
        };
        rows.push(cells([module.site.clone(), rank, format!("{:.3e}", module.relative_error)]));
    }
    let total = format!("{:.3e}", converted.relative_error);
    rows.push(cells(["total".into(), String::new(), total]));
    aligned(&[Side::Left, Side::Right, Side::Right], &rows)
}
