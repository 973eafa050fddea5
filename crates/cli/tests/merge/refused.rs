//! What cannot be merged: each mistake is named, and nothing is left behind.

use std::fs;

use serde_json::json;

use crate::{
    MEAN, merge, sized,
    support::{adapter, luthier, pico},
};

#[test]
fn what_cannot_be_merged_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    pico(&at.join("a"), 1);
    pico(&at.join("b"), 2);
    sized(&at.join("wide"), json!({"intermediate_size": 48}));
    sized(&at.join("deep"), json!({"num_hidden_layers": 3}));
    sized(&at.join("qwen"), json!({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}));
    let two = |other: &str| MEAN.replace("model: b", &format!("model: {other}"));
    merge(at, &two("wide"), "out").refused(&["wide", "intermediate_size", "64", "48"]);
    merge(at, &two("deep"), "out").refused(&["deep", "expected 2 layers as in a, got 3"]);
    merge(at, &two("qwen"), "out").refused(&["qwen", "architecture", "llama"]);
    merge(at, &two("nowhere"), "out").refused(&["nowhere"]);
    merge(at, &two("a"), "out").refused(&["listed twice"]);
    let plain = "models: [{model: a}, {model: b}]\n";
    let refuse =
        |text: &str, words: &[&str]| merge(at, &format!("{text}{plain}"), "out").refused(words);
    refuse("merge_method: tiez\n", &["m.yml: merge_method", "ties"]);
    refuse("merge_method: ties\n", &["works from a base"]);
    refuse("merge_method: ties\nbase_model: a\n", &["weight of b", "is missing"]);
    refuse("merge_method: slerp\nbase_model: a\n", &["m.yml: t", "is missing"]);
    refuse(
        "merge_method: ties\nbase_model: a\nparameters: {weight: 1, density: 1.2}\n",
        &["density of b", "expected 0 to 1, got 1.2"],
    );
    refuse("merge_method: linear\nparameters: {weigth: 1}\n", &["`weigth`", "weight"]);
    refuse("merge_method: model_stock\nbase_model: a\n", &["at least 3 models, got 2"]);
    let slices =
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [1, 4]}]}]\n";
    merge(at, slices, "out").refused(&["a has layers 0 to 2", "1 to 4"]);
    assert!(!at.join("out").exists());
    fs::create_dir(at.join("full")).unwrap();
    fs::write(at.join("full/x"), "").unwrap();
    merge(at, "not even read", "full").refused(&["full", "not empty"]);
    let names: Vec<_> = fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| !n.to_string_lossy().starts_with('.')), "{names:?}");
}

#[test]
fn an_adapter_or_a_file_of_another_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let a = pico(&at.join("a"), 1);
    pico(&at.join("b"), 2);
    adapter(&a, &at.join("tuned"));
    let two = |other: &str| MEAN.replace("model: b", &format!("model: {other}"));
    // The adapter knows the weights that it was trained beside.
    merge(at, &two("b+tuned"), "out").refused(&["tuned", "another base model"]);
    merge(at, &two("b+a"), "out").refused(&["a", "holds no adapter"]);
    merge(at, &two("b+nowhere"), "out").refused(&["nowhere"]);
    fs::write(at.join("x.safetensors"), "not at all").unwrap();
    let fisher = |file: &str| {
        format!("merge_method: fisher\nmodels: [{{model: a, fisher: {file}}}, {{model: b}}]\n")
    };
    merge(at, &fisher("x.safetensors"), "out").refused(&["x.safetensors", "safetensors file"]);
    let missing = merge(at, &fisher("nowhere.safetensors"), "out");
    assert!(missing.code != 0 && missing.stderr.contains("nowhere.safetensors"));
    let mask = "merge_method: fisher\nmodels: [{model: a, mask: x}, {model: b}]\n";
    merge(at, mask, "out").refused(&["models[0]", "`mask`"]);
    assert!(!at.join("out").exists());
}

#[test]
fn a_tensor_that_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    pico(&at.join("a"), 1);
    let b = pico(&at.join("b"), 2);
    let file = b.join("model.safetensors");
    let mut weights = luthier_core::StateDict::load(&file).unwrap();
    weights.remove("model.layers.1.mlp.up_proj.weight").unwrap();
    weights.save(&file, &[("format", "pt")]).unwrap();
    merge(at, MEAN, "out").refused(&["b", "model.layers.1.mlp.up_proj.weight is missing"]);
    let ran = luthier(at, &["merge", "nowhere.yml", "--out", "out"], "");
    assert!(ran.code != 0 && ran.stderr.contains("nowhere.yml"), "{}", ran.stderr);
}
