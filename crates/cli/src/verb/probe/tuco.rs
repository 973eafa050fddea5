//! `luthier probe tuco`: how much of a pass tuning contributes.

use std::path::PathBuf;

use luthier_core::Result;
use luthier_model::render::generation_prompt;
use luthier_probe::tuco::{contributions, output_contributions};
use serde_json::{Value, json};

use super::pair::table;
use crate::{
    out,
    verb::{
        columns::{Side, aligned},
        explore,
        model_args::ModelArgs,
    },
};

/// Arguments of `luthier probe tuco`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    tuned: ModelArgs,
    /// What it was tuned from [default with --adapter: the same model without the adapter]
    #[arg(long, value_name = "MODEL", required_unless_present = "adapter")]
    base: Option<String>,
    /// Prompts: a file, folder or glob of any known layout
    #[arg(long, short, value_name = "DATA")]
    data: PathBuf,
    /// Only the first N prompts
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print one JSON value: {"n", "tuco", "output_co", "prompts": [{"origin", "tuco", "beta",
    /// "output_co"}]}; the first two are means
    #[arg(long)]
    json: bool,
}

/// Measures.
pub fn run(args: Args) -> Result<()> {
    let table = table(&args.data, args.limit)?;
    let loaded = args.tuned.load()?;
    let base = explore::base(args.base.as_deref(), &loaded.opened, &args.tuned)?;
    let tokenizer = &loaded.opened.tokenizer;
    let prompts = table.examples.iter().map(|example| generation_prompt(example, tokenizer));
    let prompts: Vec<Vec<u32>> = prompts.collect::<Result<_>>()?;
    let found = contributions(&base, &loaded.policy, &prompts)?;
    let outputs = output_contributions(&base, &loaded.policy, &prompts)?;
    let n = found.len() as f64;
    let tuco = found.iter().map(|one| one.tuco()).sum::<f64>() / n;
    let output_co = outputs.iter().sum::<f64>() / n;
    let rows: Vec<Value> = (table.examples.iter().zip(&found).zip(&outputs))
        .map(|((example, one), output_co)| {
            let origin = example.origin.to_string();
            json!({"origin": origin, "tuco": one.tuco(), "beta": one.beta, "output_co": output_co})
        })
        .collect();
    if args.json {
        return out::json(
            &json!({"n": rows.len(), "tuco": tuco, "output_co": output_co, "prompts": rows}),
        );
    }
    let mut lines = vec![["TUCO", "BETA", "OUTPUTCO", "PROMPT"].map(str::to_string).to_vec()];
    for row in &rows {
        let number = |key: &str| format!("{:.4}", row[key].as_f64().unwrap_or(f64::NAN));
        let mut line = ["tuco", "beta", "output_co"].map(number).to_vec();
        line.push(row["origin"].as_str().unwrap_or_default().to_string());
        lines.push(line);
    }
    out::data(&aligned(&[Side::Right, Side::Right, Side::Right, Side::Left], &lines))?;
    out::say(&format!("mean of {}: TuCo {tuco:.4}, OutputCo {output_co:.4}", rows.len()));
    Ok(())
}
