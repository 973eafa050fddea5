//! `luthier merge`: the same numbers as mergekit, whole folders, and refusals before anything is read.

mod adapters;
mod beyond;
mod refused;
mod regmean;
mod search;
mod several;
#[path = "../support/mod.rs"]
mod support;
#[path = "../../../model/tests/tiny/mod.rs"]
mod tiny;
mod vocabularies;

use std::{
    fs,
    path::{Path, PathBuf},
};

use luthier_core::StateDict;
use luthier_model::{
    ModelConfig, Source, Tokenizer,
    names::tensors,
    save::{Save, SaveDtype, save_hf},
};
use serde_json::{Value, json};
use support::{luthier, pico};

pub(crate) fn golden() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/merges");
    folder.canonicalize().unwrap()
}

pub(crate) fn numbers(tensors: &StateDict, name: &str) -> Vec<f32> {
    let tensor = tensors.get(name).unwrap_or_else(|| panic!("no {name}"));
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_shared_method_has_mergekits_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let expected = StateDict::load(&golden().join("expected.safetensors")).unwrap();
    let mut files: Vec<PathBuf> = fs::read_dir(golden())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "yml"))
        .collect();
    files.sort();
    assert!(files.len() > 30, "{}", files.len());
    for file in files {
        let case = file.file_stem().unwrap().to_str().unwrap();
        let out = dir.path().join(case);
        let args = ["merge", file.to_str().unwrap(), "--out", case, "--json"];
        let ran = luthier(dir.path(), &args, "");
        assert_eq!(ran.code, 0, "{case}: {}", ran.stderr);
        let merged = StateDict::load(&out.join("model.safetensors")).unwrap();
        let prefix = format!("{case}/");
        let mut compared = 0;
        for (name, _) in expected.iter().filter(|(name, _)| name.starts_with(&prefix)) {
            let (got, want) = (numbers(&merged, &name[prefix.len()..]), numbers(&expected, name));
            assert_eq!(got.len(), want.len(), "{name}");
            // A unit of the last place where both are rounded to 8 bits.
            let tolerance = |y: f32| if case.ends_with("bf16") { y.abs() / 125.0 } else { 1e-5 };
            for (i, (x, y)) in got.iter().zip(&want).enumerate() {
                assert!((x - y).abs() <= tolerance(*y), "{name}: number {i}: {x}, expected {y}");
            }
            compared += got.len();
        }
        assert!(compared > 1000, "{case}: {compared}");
    }
}

/// A merge of the models `a` and `b` in `dir`.
pub(crate) fn merge(dir: &Path, text: &str, out: &str) -> support::Ran {
    fs::write(dir.join("m.yml"), text).unwrap();
    luthier(dir, &["merge", "m.yml", "--out", out, "--json"], "")
}

pub(crate) const MEAN: &str =
    "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n";

#[test]
fn a_merged_folder_is_a_whole_model() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (pico(&dir.path().join("a"), 1), pico(&dir.path().join("b"), 2));
    let report = merge(dir.path(), &format!("{MEAN}# a remark\n"), "out").json();
    assert_eq!((&report["method"], &report["layers"]), (&json!("linear"), &json!(2)));
    let out = dir.path().join("out");
    for file in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "README.md",
        "mergekit_config.yml",
        "manifest.json",
        "model.safetensors",
    ] {
        assert!(out.join(file).is_file(), "{file}");
    }
    let text = fs::read_to_string(out.join("mergekit_config.yml")).unwrap();
    assert!(text.ends_with("# a remark\n"), "{text}");
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(
        card.starts_with("---\n") && card.contains("- mergekit\n") && card.contains("weight: 1")
    );
    let of = |folder: &Path| Source::open(folder).unwrap();
    let (a, b, merged) = (of(&a), of(&b), of(&out));
    for name in a.tensor_names() {
        let pair = a.load_f32(name).unwrap().into_iter().zip(b.load_f32(name).unwrap());
        for (got, (x, y)) in merged.load_f32(name).unwrap().into_iter().zip(pair) {
            assert!((got - (x + y) / 2.0).abs() < 1e-6, "{name}");
        }
    }
    // Nothing hidden is left beside it.
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().all(|n| !n.to_string_lossy().starts_with('.')), "{names:?}");
    let said = luthier(
        dir.path(),
        &["generate", "--model", "out", "--prompt", "a", "--max-new-tokens", "2"],
        "",
    );
    assert_eq!(said.code, 0, "{}", said.stderr);
}

#[test]
fn shards_random_masks_and_threads_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for (name, seed) in [("a", 1), ("b", 2)] {
        pico(&dir.path().join(name), seed);
    }
    let text = "merge_method: dare_ties\nbase_model: a\nmodels: [{model: b}]\n\
        parameters: {weight: 1, density: 0.5}\nout_dtype: bfloat16\n";
    fs::write(dir.path().join("m.yml"), text).unwrap();
    let run = |out: &str, more: &[&str]| {
        let args = [&["merge", "m.yml", "--out", out], more].concat();
        assert_eq!(luthier(dir.path(), &args, "").code, 0);
        dir.path().join(out)
    };
    let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    let (one, same) = (run("one", &[]), run("same", &["--hash"]));
    assert_eq!(weights(&one), weights(&same));
    assert_ne!(weights(&one), weights(&run("other", &["--seed", "1"])));
    let manifest = |folder: &Path| -> Value {
        serde_json::from_str(&fs::read_to_string(folder.join("manifest.json")).unwrap()).unwrap()
    };
    assert!(manifest(&one)["inputs"][0].get("sha256").is_none());
    assert_eq!(manifest(&same)["inputs"][1]["sha256"].as_str().unwrap().len(), 64);
    let (one, parts) = (Source::open(&one).unwrap(), run("parts", &["--shard-mb", "0"]));
    assert!(parts.join("model.safetensors.index.json").is_file());
    let parts = Source::open(&parts).unwrap();
    for name in one.tensor_names() {
        assert_eq!(one.dtype_name(name).unwrap(), "BF16");
        assert_eq!(one.load_f32(name).unwrap(), parts.load_f32(name).unwrap(), "{name}");
    }
}

/// A model like [`pico`] with other sizes.
pub(crate) fn sized(dir: &Path, over: Value) -> PathBuf {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 259,
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512, "eos_token_id": 257, "tie_word_embeddings": false,
    });
    config.as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
    let config = ModelConfig::from_hf(&config, "config.json").unwrap();
    let list = tensors(&config);
    let load = |name: &str| {
        let (_, shape) = list.iter().find(|(n, _)| n == name).unwrap();
        let n: usize = shape.iter().product();
        Ok((0..n).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect())
    };
    save_hf(dir, &config, &list, load, &Save { dtype: SaveDtype::F16, ..Save::default() }).unwrap();
    Tokenizer::bytes().save(dir).unwrap();
    dir.to_path_buf()
}

#[test]
fn a_tied_and_an_untied_head_make_one_that_is_its_own() {
    let dir = tempfile::tempdir().unwrap();
    pico(&dir.path().join("a"), 1);
    sized(&dir.path().join("b"), json!({"tie_word_embeddings": true}));
    let text = "merge_method: linear\nmodels: [{model: b}, {model: a}]\nparameters: {weight: 1}\n";
    assert_eq!(merge(dir.path(), text, "out").code, 0);
    let of = |name: &str| Source::open(&dir.path().join(name)).unwrap();
    let (a, b, out) = (of("a"), of("b"), of("out"));
    assert!(!out.config().tied);
    let head = out.load_f32("lm_head.weight").unwrap();
    let (x, y) =
        (a.load_f32("lm_head.weight").unwrap(), b.load_f32("model.embed_tokens.weight").unwrap());
    assert!((head[70] - (x[70] + y[70]) / 2.0).abs() < 1e-6);
}

#[test]
fn toml_has_the_same_keys() {
    let dir = tempfile::tempdir().unwrap();
    for (name, seed) in [("a", 1), ("b", 2)] {
        pico(&dir.path().join(name), seed);
    }
    assert_eq!(merge(dir.path(), MEAN, "yaml").code, 0);
    let text = "merge_method = \"linear\"\n[[models]]\nmodel = \"a\"\n[[models]]\nmodel = \"b\"\n\
        [parameters]\nweight = 1\n";
    fs::write(dir.path().join("m.toml"), text).unwrap();
    let ran = luthier(dir.path(), &["merge", "m.toml", "--out", "toml"], "");
    assert_eq!(ran.text(), "toml\n");
    let weights = |name: &str| fs::read(dir.path().join(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("yaml"), weights("toml"));
}
