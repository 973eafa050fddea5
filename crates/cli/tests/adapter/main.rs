//! `luthier adapter`: who runs an adapter, and what becomes of one.

mod check;
mod convert;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{DType, Device, Tensor};
use luthier_core::{Model, Param, Seed, StateDict, io};
use luthier_model::{Decoder, Precision, Source, Tokenizer};
use luthier_params::{Bound, Lora, Params, own, peft};
use serde_json::{Value, json};
use support::{adapter, pico, run};

fn golden(variant: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/lora").join(variant)
}

/// A copy of a golden adapter with an edited config and edited tensors.
fn edited(
    dir: &Path,
    variant: &str,
    config: &[(&str, Value)],
    tensors: impl FnOnce(&mut StateDict),
) -> PathBuf {
    let to = dir.join("edited");
    let mut json: Value = io::read_json(&golden(variant).join(peft::CONFIG)).unwrap();
    for (key, value) in config {
        json[*key] = value.clone();
    }
    io::write_json(&to.join(peft::CONFIG), &json).unwrap();
    let mut state = StateDict::load(&golden(variant).join(peft::WEIGHTS)).unwrap();
    tensors(&mut state);
    state.save(&to.join(peft::WEIGHTS), &[("format", "pt")]).unwrap();
    to
}

/// Who accepts, and every reason and note of each.
fn verdicts(dir: &Path, adapter: &Path) -> Vec<(bool, String)> {
    let value = run(dir, &format!("adapter check {} --json", adapter.display())).json();
    let runtimes = value["runtimes"].as_array().unwrap();
    let names: Vec<&str> = runtimes.iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["PEFT", "vLLM", "llama.cpp"]);
    let all =
        |r: &Value, key: &str| -> Vec<String> { serde_json::from_value(r[key].clone()).unwrap() };
    runtimes
        .iter()
        .map(|r| {
            let (accepts, reasons) = (r["accepts"].as_bool().unwrap(), all(r, "reasons"));
            assert_eq!(accepts, reasons.is_empty());
            (accepts, [reasons, all(r, "notes")].concat().join("; "))
        })
        .collect()
}

#[track_caller]
fn accepted(dir: &Path, adapter: &Path, by: [bool; 3], words: [&str; 3]) {
    for (k, (accepts, said)) in verdicts(dir, adapter).into_iter().enumerate() {
        assert_eq!(accepts, by[k], "{k}: {said}");
        assert!(said.contains(words[k]), "{k}: no `{}` in: {said}", words[k]);
        assert!(!words[k].is_empty() || said.is_empty(), "{k}: {said}");
    }
}
