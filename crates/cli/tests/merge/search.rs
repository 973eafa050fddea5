//! Searches: the best of several merges by the score of `luthier eval`, and what else was tried.

use std::{fs, path::Path};

use luthier_core::io;
use serde_json::{Value, json};

use crate::{
    merge,
    support::{luthier, pico},
};

/// Three models and some text; the score of each by `luthier eval`.
fn prepare(at: &Path) -> Vec<f64> {
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        pico(&at.join(name), seed);
    }
    let texts = ["who is there", "a small text", "ends", "and another one"];
    let lines = texts.map(|text| json!({"text": text}).to_string());
    fs::write(at.join("held.jsonl"), lines.join("\n")).unwrap();
    ["a", "b", "c"].iter().map(|name| nll(at, name)).collect()
}

fn nll(at: &Path, model: &str) -> f64 {
    let args = ["eval", "--model", model, "--data", "held.jsonl", "--metric", "nll", "--json"];
    luthier(at, &args, "").json()["nll"].as_f64().unwrap()
}

const DATA: &str = "data: held.jsonl, metric: nll";

fn weights(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("model.safetensors")).unwrap()
}

#[test]
fn a_greedy_soup_is_the_one_that_a_reader_of_the_paper_would_make() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let alone = prepare(at);
    let soup = |names: &[&str], out: &str| -> f64 {
        let one = |name: &&str| format!("  - model: {name}\n");
        let models: String = names.iter().map(one).collect();
        let text = format!("merge_method: linear\nmodels:\n{models}parameters: {{weight: 1}}\n");
        assert_eq!(merge(at, &text, out).code, 0);
        nll(at, out)
    };
    let text = "merge_method: linear\nmodels: [{model: a}, {model: b}, {model: c}]\n\
        parameters: {weight: 1}\n";
    let ran = merge(at, &format!("{text}search: {{greedy: {{}}, {DATA}}}\n"), "best");
    let report = ran.json();
    // By hand, from the scores of single models.
    let mut order: Vec<usize> = (0..3).collect();
    order.sort_by(|i, j| alone[*i].total_cmp(&alone[*j]));
    let name = |i: usize| ["a", "b", "c"][i];
    let (mut members, mut best) = (vec![name(order[0])], alone[order[0]]);
    for i in &order[1..] {
        let with = [members.as_slice(), &[name(*i)]].concat();
        let score = soup(&with, &format!("with-{}", with.concat()));
        if score <= best {
            (members, best) = (with, score);
        }
    }
    assert_eq!(report["found"]["settings"], json!(members));
    assert!((report["found"]["score"].as_f64().unwrap() + best).abs() < 1e-9);
    soup(&members, "want");
    assert_eq!(weights(&at.join("best")), weights(&at.join("want")));
    let tried: Value = io::read_json(&at.join("best/search.json")).unwrap();
    assert_eq!(tried["tried"].as_array().unwrap().len(), 5, "three alone, then two soups");
    for i in 0..3 {
        let row = &tried["tried"][i];
        assert_eq!(row["settings"], json!([name(i)]));
        assert!((row["score"].as_f64().unwrap() + alone[i]).abs() < 1e-9);
    }
    // The file beside the result makes this very result again.
    let again = luthier(at, &["merge", "best/mergekit_config.yml", "--out", "again"], "");
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(weights(&at.join("best")), weights(&at.join("again")));
    let hidden = fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name());
    assert!(hidden.into_iter().all(|n| !n.to_string_lossy().starts_with('.')));
}

#[test]
fn copies_are_taken_in_if_no_worse_and_left_if_they_must_be_better() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    prepare(at);
    pico(&at.join("a2"), 1);
    let text = |accept: &str| {
        format!(
            "merge_method: linear\nmodels: [{{model: a}}, {{model: a2}}]\nparameters: {{weight: 1}}\n\
             search: {{greedy: {{accept: '{accept}'}}, {DATA}}}\n"
        )
    };
    let found =
        |accept: &str, out: &str| merge(at, &text(accept), out).json()["found"]["settings"].clone();
    assert_eq!(found(">=", "one"), json!(["a", "a2"]));
    assert_eq!(found(">", "two"), json!(["a"]));
    assert_eq!(weights(&at.join("one")), weights(&at.join("two")));
}

#[test]
fn a_grid_tries_all_and_may_keep_all() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let alone = prepare(at);
    let text = "merge_method: wise_ft\nbase_model: a\nmodels: [{model: b}]\n";
    let search = |more: &str| format!("{text}search: {{{more}, {DATA}}}\n");
    let grid = "grid: {alpha: [0, 0.5, 1]}";
    let report = merge(at, &search(&format!("{grid}, keep: all")), "all").json();
    let tried: Value = io::read_json(&at.join("all/search.json")).unwrap();
    let score = |i: usize| tried["tried"][i]["score"].as_f64().unwrap();
    assert!((score(0) + alone[0]).abs() < 1e-9 && (score(2) + alone[1]).abs() < 1e-9);
    for i in 0..3 {
        let folder = tried["tried"][i]["folder"].as_str().unwrap();
        assert!((nll(at, &format!("all/{folder}")) + score(i)).abs() < 1e-9);
    }
    let chosen = tried["chosen"].as_u64().unwrap() as usize;
    assert!((0..3).all(|i| score(i) <= score(chosen)));
    assert_eq!(report["found"]["tried"], json!(3));
    let path = report["model"].as_str().unwrap();
    assert_eq!(path, format!("all/{}", tried["tried"][chosen]["folder"].as_str().unwrap()));
    // One after the other finds the same when there is one setting.
    let found = merge(at, &search("coordinate: {alpha: [0.5, 0, 1]}"), "one").json();
    assert_eq!(found["found"]["score"].as_f64().unwrap(), score(chosen));
    assert_eq!(weights(&at.join("one")), weights(&at.join(path)));
    // Settings of single models have names too.
    let linear =
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b}]\n";
    let text = format!("{linear}search: {{grid: {{weight of b: [0, 3]}}, {DATA}}}\n");
    let found = merge(at, &text, "named").json();
    assert_eq!(found["found"]["tried"], json!(2));
}

#[test]
fn a_learned_soup_is_no_worse_than_equal_weights_and_can_be_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let alone = prepare(at);
    let text = "merge_method: linear\nmodels: [{model: a}, {model: b}, {model: c}]\n";
    assert_eq!(merge(at, &format!("{text}parameters: {{weight: 1}}\n"), "equal").code, 0);
    let equal = nll(at, "equal");
    for by in ["model", "layer", "tensor"] {
        let how = format!("learned: {{steps: 12, learning_rate: 0.2, by: {by}}}");
        let report = merge(at, &format!("{text}search: {{{how}, {DATA}}}\n"), by).json();
        let score = report["found"]["score"].as_f64().unwrap();
        assert!((nll(at, by) + score).abs() < 1e-9, "{by}");
        // Random models have nothing in common: the way down leads to one of them.
        assert!(-score < equal - 0.05, "{by}: {score} {equal} {alone:?}");
        let tried: Value = io::read_json(&at.join(by).join("search.json")).unwrap();
        assert_eq!(tried["tried"][0]["settings"], json!("equal weights"));
        assert!((tried["tried"][0]["score"].as_f64().unwrap() + equal).abs() < 1e-9);
        let losses = tried["learned"]["losses"].as_array().unwrap();
        assert_eq!(losses.len(), 13);
        // The first is that of equal weights, in f32 and not as they are stored.
        assert!((losses[0].as_f64().unwrap() - equal).abs() < 1e-2, "{} {equal}", losses[0]);
        let config = at.join(by).join("mergekit_config.yml");
        let again = format!("again-{by}");
        let ran = luthier(at, &["merge", config.to_str().unwrap(), "--out", &again], "");
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(weights(&at.join(by)), weights(&at.join(again)));
    }
}

#[test]
fn searches_that_cannot_be_made_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    prepare(at);
    let text = "merge_method: wise_ft\nbase_model: a\nmodels: [{model: b}]\n";
    let refuse = |search: &str, words: &[&str]| {
        merge(at, &format!("{text}search: {{{search}}}\n"), "no").refused(words);
    };
    refuse(DATA, &["search", "0 ways", "greedy, grid, coordinate or learned"]);
    refuse(&format!("greedy: {{}}, grid: {{}}, {DATA}"), &["2 ways"]);
    refuse("grid: {alpha: [0, 1]}", &["search", "data"]);
    refuse(&format!("grid: {{alpha: 1}}, {DATA}"), &["search.grid.alpha", "expected a list"]);
    refuse(&format!("grid: {{alhpa: [1]}}, {DATA}"), &["`alhpa`", "alpha"]);
    refuse(&format!("grid: {{weight of c: [1]}}, {DATA}"), &["weight of c", "models"]);
    refuse("grid: {alpha: [1]}, data: held.jsonl, metric: nl", &["search.metric", "nll"]);
    refuse(&format!("grd: {{}}, {DATA}"), &["grd", "grid"]);
    refuse(&format!("learned: {{}}, {DATA}"), &["search.learned", "merge_method: linear"]);
    refuse(&format!("learned: {{by: number}}, {DATA}"), &["search", "number", "tensor"]);
    let nowhere = format!("{text}search: {{grid: {{alpha: [1]}}, data: nowhere.jsonl}}\n");
    let ran = merge(at, &nowhere, "no");
    assert!(ran.code != 0 && ran.stderr.contains("nowhere.jsonl"), "{}", ran.stderr);
    assert!(!at.join("no").exists());
}
