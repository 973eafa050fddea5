//! The verbs for what tuning left in a model: prune, explore, edit, probe novelty.

mod support;

use std::{fs, path::Path};

use support::{adapter, pico, run};

const QA: &str = "{\"prompt\":\"one?\",\"completion\":\"1\"}\n\
    {\"prompt\":\"two?\",\"completion\":\"2\"}\n\
    {\"prompt\":\"three?\",\"completion\":\"3\"}\n";

const FACTS: &str = "{\"prompt\":\"one?\",\"completion\":\"7\",\"rephrase\":\"and one?\"}\n\
    {\"prompt\":\"two?\",\"completion\":\"8\",\"rephrase\":\"what of two?\"}\n";

fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let base = pico(&dir.path().join("m"), 1);
    adapter(&base, &dir.path().join("a"));
    fs::write(dir.path().join("qa.jsonl"), QA).unwrap();
    fs::write(dir.path().join("facts.jsonl"), FACTS).unwrap();
    dir
}

fn loss(dir: &Path, model: &str) -> f64 {
    let line = format!("eval {model} --data qa.jsonl --metric nll --precision f32 --json");
    run(dir, &line).json()["value"].as_f64().unwrap()
}

#[test]
fn prune_takes_an_adapter_back_to_its_base_by_as_much_as_asked() {
    let dir = workplace();
    let dir = dir.path();
    let prune = |ratio: &str, out: &str| {
        run(dir, &format!("prune -a a --data qa.jsonl --dense-ratio {ratio} --out {out} --json"))
    };
    let value = prune("0.25", "quarter").json();
    assert_eq!(value["rows"], 3);
    let matrices = value["matrices"].as_array().unwrap();
    // Two factors at seven maps of two blocks.
    assert_eq!(matrices.len(), 28);
    let q = matrices.iter().find(|m| m["name"] == "layers.0.attn.q.lora_A").unwrap();
    assert_eq!((q["numbers"].as_u64(), q["pruned"].as_u64()), (Some(128), Some(32)));
    prune("1", "all").json();
    let (base, tuned) = (loss(dir, "-m m"), loss(dir, "-m m -a a"));
    assert!((base - tuned).abs() > 1e-3);
    assert!((loss(dir, "-m m -a all") - base).abs() < 1e-9);
    let quarter = loss(dir, "-m m -a quarter");
    assert!((quarter - base).abs() > 1e-4 && (quarter - tuned).abs() > 1e-4);
    // Without an adapter queries, keys and values of the model itself are pruned.
    let whole = run(dir, "prune -m m --score magnitude --out pruned --json").json();
    assert_eq!(whole["matrices"].as_array().unwrap().len(), 6);
    assert!((loss(dir, "-m pruned") - base).abs() > 1e-4);

    prune("0.25", "quarter").refused(&["quarter", "not empty"]);
    run(dir, "prune -a a --out b").refused(&["--data"]);
    prune("1.5", "b").refused(&["antidote.dense_ratio", "1.5"]);
    run(dir, "prune -a a --data qa.jsonl --at layers.*.attn.w --out b")
        .refused(&["antidote.at", "nearest sites"]);
}

#[test]
fn explore_shows_texts_and_novelty_ranks_rows() {
    let dir = workplace();
    let dir = dir.path();
    let line = "explore -m m -a a --prompt on --n 3 --length 6 --seed 2 --json";
    let texts = run(dir, line).json();
    let texts = texts.as_array().unwrap();
    assert_eq!(texts.len(), 3);
    for text in texts {
        let tokens = text["tokens"].as_array().unwrap();
        assert!(tokens.len() == 6 && tokens.iter().all(|id| *id != 257));
        let (total, score) = (text["total"].as_f64().unwrap(), text["score"].as_f64().unwrap());
        assert!((total / 6.0 - score).abs() < 1e-12);
    }
    assert_eq!(run(dir, line).json().as_array().unwrap(), texts);
    let fixed = run(dir, &format!("{line} --static")).json();
    // A base that will learn holds its weights otherwise, so that totals differ in the last digits.
    assert_eq!(fixed[0]["tokens"], texts[0]["tokens"]);
    let told = run(dir, &line.replace(" --json", ""));
    assert!(told.text().starts_with("[1] "), "{}", told.stdout);

    let rows = run(dir, "probe novelty -m m -a a --data qa.jsonl --json").json();
    let scores: Vec<f64> =
        rows.as_array().unwrap().iter().map(|row| row["score"].as_f64().unwrap()).collect();
    assert!(scores.len() == 3 && scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    assert!(rows[0]["origin"].as_str().unwrap().starts_with("qa.jsonl:"));
    let same = run(dir, "probe novelty -m m --base m --data qa.jsonl --json").json();
    assert!(same.as_array().unwrap().iter().all(|row| row["score"] == 0.0));

    run(dir, "explore -m m --prompt on").refused(&["--base"]);
    run(dir, "explore -m m -a a --prompt on --alpha 2").refused(&["explore.alpha"]);
}

#[test]
fn an_editor_is_trained_and_changes_what_a_model_says() {
    let dir = workplace();
    let dir = dir.path();
    let train = "edit train -m m --facts facts.jsonl --locality qa.jsonl --episodes 300 --rank 8 \
        --lr 1e-2 --edit-lr 1e-3 --cedit 1 --out e --json";
    let value = run(dir, train).json();
    assert_eq!((value["episodes"].as_u64(), value["skipped"].as_u64()), (Some(300), Some(0)));
    assert!(value["drift"].as_f64().unwrap() >= 0.0);
    fs::write(dir.join("one.jsonl"), FACTS.lines().next().unwrap()).unwrap();
    let apply = |more: &str| run(dir, &format!("edit apply -m m --editor e --json {more}"));
    let value = apply("--facts one.jsonl --out edited").json();
    let (before, after) = (value["before"].as_f64().unwrap(), value["after"].as_f64().unwrap());
    assert!(after < before, "{before} {after}");
    // What was written is what was measured.
    let line = "eval -m edited --data one.jsonl --metric nll --precision f32 --json";
    let written = run(dir, line).json()["value"].as_f64().unwrap();
    assert!((written - after).abs() < 1e-3, "{written} {after}");
    let row = apply("--facts facts.jsonl --in-a-row --out row").json();
    assert_eq!(row["facts"], 2);
    assert!(row["after"].as_f64().unwrap().is_finite());

    pico(&dir.join("other"), 2);
    run(dir, "edit apply -m other --editor e --facts facts.jsonl --out x")
        .refused(&["editor.json", "was trained for the model"]);
    run(dir, "edit train -m m --facts qa.jsonl --locality qa.jsonl --out x")
        .refused(&["qa.jsonl:1", "rephrase"]);
}
