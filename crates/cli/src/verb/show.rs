//! `luthier show`: rows as the model will see them, with the weight of every token.

use std::{io::IsTerminal, path::PathBuf};

use luthier_core::{Error, Result, Row, Seed};
use luthier_data::{Chain, CutTable, Overlength, transform::overlength};
use luthier_model::{
    Source, Tokenizer,
    render::Rendered,
    show::{Counts, coloured},
};
use luthier_recipe::{Recipe, prepare, schema::Paths};
use serde_json::{Value, json};

use crate::{out, verb::pull::bring};

/// Arguments of `luthier show`.
#[derive(clap::Args)]
pub struct Args {
    /// A recipe, and settings that replace its own (key=value)
    #[arg(value_name = "RECIPE | key=value")]
    recipe: Vec<String>,
    /// Data file, folder or glob [default: the recipe's data.train]
    #[arg(long, short, value_name = "DATA")]
    data: Option<String>,
    /// Model whose chat template and tokens are used [default: the recipe's]
    #[arg(long, short, value_name = "MODEL")]
    model: Option<String>,
    /// How many rows to print
    #[arg(short, value_name = "N", default_value_t = 3)]
    n: usize,
    /// Print one JSON value: {"layout", "counts", "cut", "rows", …}
    #[arg(long)]
    json: bool,
}

/// Shows.
pub fn run(args: Args) -> Result<()> {
    let recipe = args.resolve()?;
    let data = &recipe.data;
    let train = data.train.as_ref().ok_or_else(|| {
        Error::input("data.train", "missing: which rows?").hint("name a recipe, or --data FILE")
    })?;
    if recipe.models.policy.is_empty() {
        return Err(Error::input("models.policy", "missing: whose tokens and chat template?")
            .hint("name a recipe, or --model MODEL"));
    }
    let whole = prepare::table(train, data)?;
    // The same randomness as in training, so that these are the rows that training sees.
    let training = recipe.train.clone().unwrap_or_default();
    let seed = Seed(training.seed).split("data");
    let (table, notes) = Chain(data.steps.clone()).apply_noting(whole, seed)?;
    let path = bring(&recipe.models.policy)?;
    let (source, tokenizer) = (Source::open(&path)?, Tokenizer::open(&path)?);
    let unit = training.loss.objective()?.unit();
    let rendered = prepare::render(&table, data, &tokenizer, unit)?;
    let vocab = source.config().vocab;
    for row in &rendered {
        luthier_core::Batch::from_rows([&row.row]).check_vocab(vocab)?;
    }
    let cut = cut(&rendered, data.overlength, data.max_length, &tokenizer)?;
    let counts = Counts::of(&rendered);
    let shown: Vec<&Rendered> = rendered.iter().take(args.n).collect();
    let origin = |row: &Rendered| table.examples[row.row.example].origin.to_string();
    if args.json {
        let rows: Vec<Value> = shown.iter().map(|r| row_json(r, &origin(r), &tokenizer)).collect();
        return out::json(&json!({
            "source": table.name, "layout": table.layout, "sha256": table.sha256,
            "examples": table.examples.len(), "steps": notes, "counts": counts, "cut": cut,
            "rows": rows,
        }));
    }
    out::say(&format!("{}: {} examples, {}", table.name, table.examples.len(), table.layout));
    for note in &notes {
        out::say(&format!("step {}: {} rows to {}", note.step, note.rows_in, note.rows_out));
    }
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    for row in shown {
        let (tokens, trained) = (row.tokens.len(), row.row.trained());
        let text = coloured(row, &tokenizer, colour);
        let text = text.trim_end_matches('\n');
        out::data(&format!("── {}: {tokens} tokens, {trained} trained\n{text}\n\n", origin(row)))?;
    }
    out::data(&counts.to_string())?;
    if cut.over_length > 0 {
        out::data(&format!("\n{cut}\n"))?;
        if data.overlength == Overlength::Error {
            out::say(
                "training refuses these rows: raise data.max_length or choose data.overlength",
            );
        }
    }
    Ok(())
}

impl Args {
    /// The recipe, or an empty one, with what the flags say.
    fn resolve(&self) -> Result<Recipe> {
        let (paths, settings): (Vec<&String>, Vec<&String>) =
            self.recipe.iter().partition(|given| !given.contains('='));
        let settings: Vec<String> = settings.into_iter().cloned().collect();
        let mut recipe = match paths.as_slice() {
            [] => Recipe::default().with(&settings)?,
            [path] => Recipe::load(&PathBuf::from(path), &settings)?,
            [_, second, ..] => {
                return Err(Error::input(second.as_str(), "expected one recipe, got several")
                    .hint("settings are written key=value; rows to print are -n N"));
            }
        };
        if let Some(data) = &self.data {
            recipe.data.train = Some(Paths::One(data.clone()));
        }
        if let Some(model) = &self.model {
            recipe.models.policy = model.clone();
        }
        Ok(recipe)
    }
}

/// What the over-length policy will do; where it will refuse, how much is too long.
fn cut(
    rendered: &[Rendered],
    policy: Overlength,
    max_length: usize,
    tokenizer: &Tokenizer,
) -> Result<CutTable> {
    if policy == Overlength::Error {
        let lengths = rendered.iter().map(|r| r.tokens.len());
        return Ok(CutTable {
            policy,
            max_length,
            longest: lengths.clone().max().unwrap_or(0),
            rows: rendered.len(),
            rows_out: rendered.len(),
            over_length: lengths.clone().filter(|tokens| *tokens > max_length).count(),
            tokens: lengths.sum(),
            ..CutTable::default()
        });
    }
    let rows: Vec<Row> = rendered.iter().map(|r| r.row.clone()).collect();
    let eos = |id: u32| tokenizer.eos_ids().contains(&id);
    let (_, cut) = overlength::apply(policy, max_length, rows, eos, |i| format!("example {i}"))?;
    Ok(cut)
}

fn row_json(row: &Rendered, origin: &str, tokenizer: &Tokenizer) -> Value {
    let spelt: Vec<String> =
        row.tokens.iter().map(|id| tokenizer.token(*id).unwrap_or_default()).collect();
    json!({
        "origin": origin, "text": row.text, "ids": row.tokens, "tokens": spelt,
        "weights": row.weights, "trained": row.row.trained(),
    })
}
