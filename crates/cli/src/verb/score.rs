//! `luthier score`: what a head of labels says of rows, one JSON object per line.

use std::path::PathBuf;

use luthier_core::{Error, Example, Form, Result, Table, Turn};
use luthier_data::ReadOptions;
use luthier_recipe::{
    evaluate::{Judged, judged},
    open,
};
use serde_json::{Map, Value, json};

use crate::{
    out,
    verb::{
        bar,
        model_args::{ModelArgs, check_adapter},
        pull::bring,
    },
};

/// Arguments of `luthier score`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Rows: a file, folder or glob of any known layout; better and worse answers are both scored
    #[arg(
        long,
        short,
        value_name = "DATA",
        required_unless_present = "text",
        conflicts_with = "text"
    )]
    data: Option<PathBuf>,
    /// A text to score as it is; may be repeated
    #[arg(long, short, value_name = "TEXT")]
    text: Vec<String>,
    /// Only the first N rows
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Longest row in tokens; a longer one is refused [default: the model's context]
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
}

/// Scores.
pub fn run(args: Args) -> Result<()> {
    let table = args.table()?;
    if let Some(adapter) = &args.model.adapter {
        check_adapter(adapter)?;
    }
    let name = args.model.name()?;
    bring(&name)?;
    let opened = open(&name, args.model.precision)?;
    let (policy, names) = opened.judge(args.model.adapter.as_deref())?;
    let context = opened.config.max_positions;
    let length = args.max_length.unwrap_or(context);
    if length == 0 || length > context {
        let what = format!("expected from 1 to the model's context of {context}, got {length}");
        return Err(Error::input("--max-length", what));
    }
    let progress = bar::pieces("scoring", table.examples.len());
    let on_done = &mut |done: usize, total: usize| {
        progress.set_length(total as u64);
        progress.set_position(done as u64);
    };
    let found = judged(&policy, &names, &opened.tokenizer, &table, length, on_done);
    progress.finish_and_clear();
    let (lines, told) = written(&found?, &names, &table);
    out::data(&lines)?;
    if let Some(told) = told {
        out::say(&told);
    }
    Ok(())
}

/// A line for every example, and in words how right they are where the data knows.
fn written(found: &[Judged], names: &[String], table: &Table) -> (String, Option<String>) {
    let (mut lines, mut right, mut off, mut known) = (String::new(), 0.0, 0.0, 0usize);
    let mut comparing = false;
    for of_one in found.chunk_by(|a, b| a.example == b.example) {
        let mut line = json!({"origin": table.examples[of_one[0].example].origin.to_string()});
        match of_one {
            [chosen, rejected] => {
                let [chosen, rejected] = [chosen.scores[0], rejected.scores[0]];
                let margin = chosen - rejected;
                (line["chosen"], line["rejected"]) = (json!(chosen), json!(rejected));
                line["margin"] = json!(margin);
                (comparing, known) = (true, known + 1);
                right += f64::from(u8::from(margin > 0.0));
                off += margin;
            }
            [one, ..] if names.len() == 1 => {
                line["score"] = json!(one.scores[0]);
                if let Some(label) = one.label {
                    line["expected"] = json!(label);
                    known += 1;
                    off += (one.scores[0] - label).abs();
                }
            }
            [one, ..] => {
                let probabilities = one.probabilities().into_iter().map(Value::from);
                let by_name: Map<String, Value> =
                    names.iter().cloned().zip(probabilities).collect();
                line["label"] = json!(names[one.best()]);
                line["probabilities"] = Value::Object(by_name);
                if let Some(label) = one.label {
                    let name = names.get(label as usize).filter(|_| label.fract() == 0.0);
                    line["expected"] = name.map_or(json!(label), |name| json!(name));
                    known += 1;
                    right += f64::from(u8::from(label == one.best() as f64));
                }
            }
            [] => {}
        }
        lines += &format!("{line}\n");
    }
    let n = known as f64;
    let told = match known {
        0 => None,
        _ if comparing => {
            Some(format!("accuracy {:.4}, mean margin {:.4}; n = {known}", right / n, off / n))
        }
        _ if names.len() == 1 => Some(format!("mean absolute error {:.4}; n = {known}", off / n)),
        _ => Some(format!("accuracy {:.4}; n = {known}", right / n)),
    };
    (lines, told)
}

impl Args {
    fn table(&self) -> Result<Table> {
        if self.limit == Some(0) {
            return Err(Error::input("--limit", "expected at least 1, got 0"));
        }
        let mut table = match &self.data {
            Some(data) => luthier_data::read(data, &ReadOptions::default())?,
            None => self.texts()?,
        };
        table.examples.truncate(self.limit.unwrap_or(usize::MAX));
        match table.examples.is_empty() {
            true => Err(Error::input(&table.name, "holds no example")),
            false => Ok(table),
        }
    }

    /// As a data file of plain texts would be read.
    fn texts(&self) -> Result<Table> {
        let example = |(i, text): (usize, &String)| {
            if text.trim().is_empty() {
                return Err(Error::input("--text", "the text is empty"));
            }
            let answer = Some(Turn::new("assistant", text.clone()));
            Ok(Example { form: Form::Raw, ..Example::new("--text", i + 1, Vec::new(), answer) })
        };
        let examples = self.text.iter().enumerate().map(example).collect::<Result<Vec<_>>>()?;
        Ok(Table { name: "--text".into(), layout: "text".into(), sha256: String::new(), examples })
    }
}
