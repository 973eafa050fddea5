//! `luthier probe diversity`: who is right where, of two models and their average.

use std::path::PathBuf;

use luthier_core::{Error, Policy, Result};
use luthier_model::Tokenizer;
use luthier_probe::diversity::{BINS, Cells, ece};
use luthier_recipe::{
    evaluate::{self, Evaluated},
    landscape::Weights,
    merge::weights,
};
use serde_json::{Value, json};

use super::pair::{table, writable};
use crate::{
    out,
    verb::{
        bar,
        columns::{Side, aligned},
        pull::bring,
    },
};

/// Arguments of `luthier probe diversity`.
#[derive(clap::Args)]
pub struct Args {
    /// One model: built-in name, hub id, folder or GGUF file; BASE+ADAPTER for one with an adapter
    #[arg(long, short, value_name = "MODEL")]
    model: String,
    /// The other
    #[arg(long, value_name = "MODEL")]
    other: String,
    /// Their average [default: the mean of their weights]
    #[arg(long, value_name = "MODEL")]
    average: Option<String>,
    /// Questions with their answers: a file, folder or glob of any known layout
    #[arg(long, short, value_name = "DATA")]
    data: PathBuf,
    /// What is right: a metric of `luthier eval` that says 0 or 1
    #[arg(long, value_name = "METRIC", default_value = "choice")]
    metric: String,
    /// Only the first N questions
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print one JSON value: {"n", "accuracy", "cells", "false_false_true", "true_true_false", "net",
    /// "gain", "calibration"}; cells by `TTF` for both right and their average wrong
    #[arg(long)]
    json: bool,
}

/// Confidence and calibration of a multiple choice.
fn calibration(found: &Evaluated) -> Result<Option<Value>> {
    let (mut confidences, mut hits) = (Vec::new(), Vec::new());
    for row in &found.answers {
        let Some(logps) = &row.logps else { return Ok(None) };
        let top = logps.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = logps.iter().map(|logp| (logp - top).exp()).sum();
        let picked = logps.iter().position(|logp| *logp == top);
        confidences.push((1.0 / total).min(1.0));
        // What was picked by likelihood, whatever the metric's own measure picks.
        hits.push(picked.is_some() && row.value == 1.0);
    }
    if confidences.is_empty() {
        return Ok(None);
    }
    let n = confidences.len() as f64;
    let ece = ece(&confidences, &hits, BINS)?;
    Ok(Some(json!({"confidence": confidences.iter().sum::<f64>() / n, "ece": ece})))
}

/// Measures.
pub fn run(args: Args) -> Result<()> {
    let table = table(&args.data, args.limit)?;
    let metric = evaluate::metric("--metric", &args.metric)?;
    let state = |name: &str| {
        weights(
            name.split_once('+').map_or(name, |(model, _)| model),
            name.split_once('+').map(|(_, adapter)| adapter.as_ref()),
            &bring,
        )
    };
    let (first, second) = (state(&args.model)?, state(&args.other)?);
    let base = args.model.split_once('+').map_or(args.model.as_str(), |(model, _)| model);
    let room = writable(base)?;
    let mut all = Vec::new();
    for (i, what) in ["one", "other", "average"].into_iter().enumerate() {
        match (i, &args.average) {
            (0, _) => room.set(&first)?,
            (1, _) => room.set(&second)?,
            (_, Some(name)) => room.set(&state(name)?)?,
            (_, None) => {
                for (name, one) in first.iter() {
                    let other = second.get(name);
                    let other =
                        other.ok_or_else(|| Error::input(&args.other, format!("has no {name}")))?;
                    room.put(name, &((one + other)? * 0.5)?)?;
                }
            }
        }
        all.push(evaluated(room.policy(), room.tokenizer(), &table, &metric, &room, what)?);
    }
    let verdicts = |found: &Evaluated| -> Result<Vec<bool>> {
        let odd = found.outcomes.iter().find(|value| ![0.0, 1.0].contains(*value));
        match odd {
            None => Ok(found.outcomes.iter().map(|value| *value == 1.0).collect()),
            Some(odd) => {
                let what = format!("expected outcomes of 0 or 1, {} gives {odd}", args.metric);
                Err(Error::input("--metric", what).hint("choice or exact_match"))
            }
        }
    };
    let right: Vec<Vec<bool>> = all.iter().map(verdicts).collect::<Result<_>>()?;
    let cells = Cells::of(&right[0], &right[1], &right[2])?;
    let names = ["FFF", "FFT", "FTF", "FTT", "TFF", "TFT", "TTF", "TTT"];
    let shares: serde_json::Map<String, Value> = names
        .iter()
        .zip(cells.shares)
        .map(|(name, share)| (name.to_string(), json!(share)))
        .collect();
    let accuracy =
        |right: &[bool]| right.iter().filter(|right| **right).count() as f64 / right.len() as f64;
    let accuracies: Vec<f64> = right.iter().map(|right| accuracy(right)).collect();
    let calibrations: Vec<Option<Value>> = all.iter().map(calibration).collect::<Result<_>>()?;
    if args.json {
        return out::json(&json!({
            "n": table.examples.len(), "accuracy": accuracies, "cells": shares,
            "false_false_true": cells.false_false_true(),
            "true_true_false": cells.true_true_false(), "net": cells.net(), "gain": cells.gain(),
            "calibration": calibrations,
        }));
    }
    let mut lines = vec![["", "ACCURACY", "CONFIDENCE", "ECE"].map(str::to_string).to_vec()];
    for (i, name) in [args.model.as_str(), args.other.as_str(), "average"].into_iter().enumerate() {
        let of = |key: &str| {
            let number = calibrations[i].as_ref().and_then(|value| value[key].as_f64());
            number.map_or("-".to_string(), |x| format!("{x:.4}"))
        };
        let accuracy = format!("{:.4}", accuracies[i]);
        lines.push(vec![name.to_string(), accuracy, of("confidence"), of("ece")]);
    }
    let sides = [Side::Left, Side::Right, Side::Right, Side::Right];
    out::data(&aligned(&sides, &lines))?;
    out::data(&format!(
        "both wrong and the average right {:.4}, both right and the average wrong {:.4}: net {:.4}; over \
         the better one {:+.4}; n = {}\n",
        cells.false_false_true(),
        cells.true_true_false(),
        cells.net(),
        cells.gain(),
        table.examples.len()
    ))
}

fn evaluated(
    policy: &Policy,
    tokenizer: &Tokenizer,
    table: &luthier_core::Table,
    metric: &luthier_probe::Kind,
    room: &Weights,
    what: &'static str,
) -> Result<Evaluated> {
    let bar = bar::pieces(what, table.examples.len());
    let mut told = |done: usize, _: usize| bar.set_position(done as u64);
    let found = evaluate::evaluate(policy, tokenizer, table, metric, &room.limits(), &mut told);
    bar.finish_and_clear();
    found
}
