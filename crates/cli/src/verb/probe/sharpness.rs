//! `luthier probe sharpness`: how sharp the loss is around a model, and which layers tuning led astray.

use std::path::PathBuf;

use luthier_core::{Result, StateDict};
use luthier_probe::{
    Sharpness,
    sharpness::{Case, Layer, stragglers, swaps},
};
use luthier_recipe::{landscape::Landscape, merge::weights};
use serde_json::json;

use super::pair::{model, table, writable};
use crate::{
    out,
    verb::{
        columns::{Side, aligned},
        pull::bring,
    },
};

/// Arguments of `luthier probe sharpness`.
#[derive(clap::Args)]
pub struct Args {
    /// Built-in name, hub id, model folder or GGUF file [default with --adapter: the adapter's base]
    #[arg(long, short, value_name = "MODEL")]
    model: Option<String>,
    /// Folder of an adapter
    #[arg(long, short, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// What it was tuned from: each layer is swapped between the two [default with --adapter: the same
    /// model without the adapter]
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Rows whose likelihood is the loss
    #[arg(long, short, value_name = "FILE")]
    data: PathBuf,
    /// Only the first N rows
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// How far weights move, as a share of each
    #[arg(long, value_name = "R", default_value_t = Sharpness::default().rho)]
    rho: f64,
    /// Weights move by --rho itself, whatever their size
    #[arg(long)]
    absolute: bool,
    /// The mean of random moves in the place of the worst one
    #[arg(long)]
    average: bool,
    /// Steps towards the worst move
    #[arg(long, value_name = "N", default_value_t = Sharpness::default().n_steps)]
    n_steps: u64,
    /// Moves that are averaged
    #[arg(long, value_name = "N", default_value_t = Sharpness::default().n_draws)]
    n_draws: u64,
    /// Measure every layer by itself, too
    #[arg(long)]
    by_layer: bool,
    /// The share of layers that are named as stragglers
    #[arg(long, value_name = "S", default_value_t = 0.1)]
    stragglers: f64,
    /// Seed of random moves
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON value: {"loss", "sharpness", "layers": [{"layer", "sharpness", "forward",
    /// "backward", "moved", "straggler"}]}
    #[arg(long)]
    json: bool,
}

/// Blocks, and every tensor outside of them.
fn layers(state: &StateDict) -> Vec<String> {
    let mut all: Vec<(usize, String)> = Vec::new();
    for (name, _) in state.iter() {
        let block = name.split_once("layers.").and_then(|(_, rest)| rest.split_once('.'));
        let layer = match block.and_then(|(i, _)| i.parse().ok()) {
            Some(i) => (i, format!("layers.{i}.")),
            None => (usize::MAX, name.to_string()),
        };
        if !all.contains(&layer) {
            all.push(layer);
        }
    }
    all.sort();
    all.into_iter().map(|(_, name)| name).collect()
}

/// Measures.
pub fn run(args: Args) -> Result<()> {
    let how = Sharpness {
        rho: args.rho,
        adaptive: !args.absolute,
        kind: if args.average { Case::Average } else { Case::Worst },
        n_steps: args.n_steps,
        n_draws: args.n_draws,
        seed: args.seed,
    };
    let data = table(&args.data, args.limit)?;
    let name = model(&args.model, &args.adapter)?;
    let tuned = weights(&name, args.adapter.as_deref(), &bring)?;
    let base = args.base.clone().or_else(|| args.adapter.as_ref().map(|_| name.clone()));
    let room = writable(base.as_deref().unwrap_or(&name))?;
    let on = Landscape::of(&room, &data)?;
    room.set(&tuned)?;
    let loss = on.loss()?;
    let whole = on.sharpness(&how, &tuned, &|_| true)?;
    let names = layers(&tuned);
    let mut sharp = Vec::new();
    for layer in names.iter().filter(|_| args.by_layer) {
        sharp.push(on.sharpness(&how, &tuned, &|name| name.contains(layer.as_str()))?);
    }
    let mut swapped = Vec::new();
    if let Some(base) = &base {
        let of = |layer: &String| -> Layer<'_> {
            let part = layer.clone();
            (layer.clone(), Box::new(move |name: &str| name.contains(&part)))
        };
        let all: Vec<Layer<'_>> = names.iter().map(of).collect();
        let score = |state: &StateDict| {
            room.set(state)?;
            Ok(-on.loss()?)
        };
        swapped = swaps(&weights(base, None, &bring)?, &tuned, &all, &score)?;
    }
    let worst = stragglers(&swapped, args.stragglers);
    let rows = names.iter().enumerate().map(|(i, layer)| {
        let mut row = json!({"layer": layer.trim_end_matches('.')});
        if let Some(sharpness) = sharp.get(i) {
            row["sharpness"] = json!(sharpness);
        }
        if let Some(swap) = swapped.get(i) {
            row["forward"] = json!(swap.forward);
            row["backward"] = json!(swap.backward);
            row["moved"] = json!(swap.moved);
            row["straggler"] = json!(worst.contains(&i));
        }
        row
    });
    let rows: Vec<serde_json::Value> = match args.by_layer || base.is_some() {
        true => rows.collect(),
        false => Vec::new(),
    };
    if args.json {
        return out::json(&json!({"loss": loss, "sharpness": whole, "layers": rows}));
    }
    out::data(&format!("loss {loss:.4}  sharpness {whole:.6}\n"))?;
    if rows.is_empty() {
        return Ok(());
    }
    let heads = ["SHARPNESS", "FORWARD", "BACKWARD", "MOVED", "LAYER"];
    let mut lines = vec![heads.map(str::to_string).to_vec()];
    for row in &rows {
        let number = |key: &str| row[key].as_f64().map_or("-".to_string(), |x| format!("{x:.6}"));
        let mut line = ["sharpness", "forward", "backward", "moved"].map(number).to_vec();
        let mark = if row["straggler"] == true { "  straggler" } else { "" };
        line.push(format!("{}{mark}", row["layer"].as_str().unwrap_or_default()));
        lines.push(line);
    }
    let sides = [Side::Right, Side::Right, Side::Right, Side::Right, Side::Left];
    out::data(&aligned(&sides, &lines))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn layers_are_blocks_in_their_order_and_what_is_outside() {
        let mut state = StateDict::default();
        for name in
            ["model.norm.weight", "model.layers.10.a", "model.layers.1.b", "model.layers.1.a"]
        {
            state.insert(name, Tensor::new(&[1f32], &Device::Cpu).unwrap());
        }
        assert_eq!(layers(&state), ["layers.1.", "layers.10.", "model.norm.weight"]);
    }
}
