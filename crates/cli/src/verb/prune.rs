//! `luthier prune`: the weights that matter most on given data, set to 0.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use luthier_core::{Error, Result, Row};
use luthier_data::{Overlength, transform::overlength};
use luthier_model::{
    Tokenizer,
    render::{RenderOptions, render_table},
    save::SaveDtype,
};
use luthier_probe::Scope;
use luthier_recipe::{
    Precision,
    antidote::{Antidote, Pruned, Score},
    export,
};
use serde_json::json;

use crate::{
    out,
    verb::{
        columns::{Side, aligned},
        model_args::{ModelArgs, check_adapter},
    },
};

/// Arguments of `luthier prune`.
#[derive(clap::Args)]
pub struct Args {
    /// Built-in name, hub id, model folder or GGUF file [default with --adapter: the adapter's base]
    #[arg(long, short, value_name = "MODEL")]
    model: Option<String>,
    /// LoRA folder, whose factors are pruned; without one queries, keys and values of the model are
    #[arg(long, short, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// What the tuned model shall lose: a data file of prompts with the answers it must not give
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Share of every row that becomes 0
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    dense_ratio: f64,
    /// What weights are judged by: wanda is size times inputs on the data, grad size times the slope of
    /// the answers' likelihood; magnitude and random are controls without data
    #[arg(
        long, value_name = "S", default_value = "wanda", value_parser =
        PossibleValuesParser::new(["wanda", "grad", "magnitude", "random"]).map(|name| match name.as_str() {
            "grad" => Score::Grad,
            "magnitude" => Score::Magnitude,
            "random" => Score::Random,
            _ => Score::Wanda,
        })
    )]
    score: Score,
    /// Within what the largest scores are looked for
    #[arg(
        long, value_name = "P", default_value = "row", value_parser =
        PossibleValuesParser::new(["row", "tensor"]).map(|name| match name.as_str() {
            "tensor" => Scope::Tensor,
            _ => Scope::Row,
        })
    )]
    per: Scope,
    /// Sites to prune, as a glob [default: all of the adapter, or layers.*.attn.{q,k,v}]
    #[arg(long, value_name = "GLOB")]
    at: Option<String>,
    /// Seed of --score random
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Longer rows are read in pieces of this many tokens
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_length: usize,
    /// Output folder
    #[arg(long)]
    out: PathBuf,
    /// Print one JSON value: {"out", "rows", "matrices": [{"name", "numbers", "pruned"}]}
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: Args) -> Result<()> {
    let how = Antidote {
        dense_ratio: args.dense_ratio,
        score: args.score,
        per: args.per,
        at: args.at.clone(),
        seed: args.seed,
    };
    how.check()?;
    if how.score.reads() && args.data.is_none() {
        return Err(Error::input("--data", "missing: what shall the tuned model lose?").hint(
            "a data file of prompts with the answers it must not give, or --score magnitude",
        ));
    }
    refuse_full(&args.out)?;
    // Weights that will be written must not be rounded.
    let precision = Precision::F32;
    let given = ModelArgs { model: args.model.clone(), adapter: args.adapter.clone(), precision };
    let name = given.name()?;
    if let Some(dir) = &args.adapter {
        check_adapter(dir)?;
    }
    let loaded = ModelArgs { model: Some(name), adapter: None, precision }.load()?;
    let rows = match &args.data {
        Some(file) => rows(file, &loaded.opened.tokenizer, args.max_length)?,
        None => Vec::new(),
    };
    let matrices = match &args.adapter {
        Some(dir) => {
            let bound = loaded.opened.with_adapter(dir)?;
            let matrices = how.adapter(&bound, &rows)?;
            export::trained(&bound, &loaded.opened, &args.out)?;
            matrices
        }
        None => {
            let (policy, matrices) = how.model(&loaded.policy, &rows)?;
            export::merged(&policy, &loaded.opened, SaveDtype::F32, &args.out)?;
            matrices
        }
    };
    if args.json {
        let value = json!({"out": args.out, "rows": rows.len(), "matrices": matrices});
        return out::json(&value);
    }
    out::say(&table(&matrices));
    out::data(&format!("{}\n", args.out.display()))
}

fn refuse_full(dir: &Path) -> Result<()> {
    if dir.exists() && dir.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::input(dir.display().to_string(), "the output folder is not empty")
            .hint("name a new folder"));
    }
    Ok(())
}

/// Prompts and answers as the model reads them in training.
fn rows(file: &Path, tokenizer: &Tokenizer, max_length: usize) -> Result<Vec<Row>> {
    let table = luthier_data::read(file, &luthier_data::ReadOptions::default())?;
    let rendered = render_table(&table, tokenizer, &RenderOptions::default())?;
    let rows = rendered.into_iter().map(|rendered| rendered.row).collect();
    let origin = |example: usize| table.examples[example].origin.to_string();
    let eos = |id: u32| tokenizer.eos_ids().contains(&id);
    let (rows, _) = overlength::apply(Overlength::Split, max_length, rows, eos, origin)?;
    Ok(rows)
}

fn table(matrices: &[Pruned]) -> String {
    let cells = |cells: [String; 3]| cells.to_vec();
    let mut rows = vec![cells(["MATRIX".into(), "NUMBERS".into(), "PRUNED".into()])];
    for Pruned { name, numbers, pruned } in matrices {
        rows.push(cells([name.clone(), numbers.to_string(), pruned.to_string()]));
    }
    aligned(&[Side::Left, Side::Right, Side::Right], &rows).trim_end().to_string()
}
