//! A copilot beside a policy: it changes nothing of it, goes on where it was, and is used when answering.

use std::{fs, path::Path};

use luthier_core::io::sha256_file;

use super::{run, weights, workplace};

/// A recipe with a copilot.
fn recipe(dir: &Path) {
    let text = "[models]\npolicy = \"model\"\n[data]\ntrain = \"train.jsonl\"\n[train]\nepochs = 3\n\
        batch_tokens = 100\nsave_steps = 1\n[train.params.lora]\nr = 2\ndropout = 0.1\n[train.copilot]\n\
        layers = 2\nwidth = 16\nheads = 2\nlr_ratio = 5.0\neps = 1e-8\n";
    fs::write(dir.join("copilot.toml"), text).unwrap();
}

fn copilot(dir: &Path, out: &str) -> String {
    sha256_file(&dir.join(out).join("copilot.safetensors")).unwrap()
}

fn logged(dir: &Path, out: &str, key: &str) -> Vec<f64> {
    let text = fs::read_to_string(dir.join(out).join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter_map(|line| line[key].as_f64()).collect()
}

#[test]
fn a_copilot_changes_no_byte_of_its_pilot_and_resumes_where_it_was() {
    let work = workplace();
    let dir = work.path();
    recipe(dir);
    run(dir, "train --recipe copilot.toml --out with").text();
    let plain = fs::read_to_string(dir.join("copilot.toml")).unwrap();
    let (plain, _) = plain.split_once("[train.copilot]").unwrap();
    fs::write(dir.join("plain.toml"), plain).unwrap();
    run(dir, "train --recipe plain.toml --out without").text();
    assert_eq!(weights(dir, "with"), weights(dir, "without"));
    assert_eq!(logged(dir, "with", "loss"), logged(dir, "without", "loss"));
    assert!(!dir.join("without/copilot.json").exists());

    let (own, null) = (logged(dir, "with", "copilot_loss"), logged(dir, "with", "pilot_error"));
    assert!(own.len() > 8 && (own[0] - null[0]).abs() < 1e-6, "{own:?} {null:?}");
    assert!(own.iter().all(|x| x.is_finite()) && own[own.len() - 1] < null[null.len() - 1]);

    // Killed after its third step: what lies beyond is not there.
    let steps = own.len();
    let copy = dir.join("killed");
    fs::create_dir(&copy).unwrap();
    let kept = dir.join("with/checkpoint-3");
    fs::create_dir(copy.join("checkpoint-3")).unwrap();
    for file in fs::read_dir(&kept).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), copy.join("checkpoint-3").join(file.file_name())).unwrap();
    }
    for file in ["recipe.toml", "metrics.jsonl"] {
        fs::copy(dir.join("with").join(file), copy.join(file)).unwrap();
    }
    run(dir, "train --recipe copilot.toml --out killed --resume").text();
    assert_eq!(logged(dir, "killed", "copilot_loss").len(), steps);
    assert_eq!(logged(dir, "killed", "copilot_loss"), own);
    assert_eq!(
        (weights(dir, "killed"), copilot(dir, "killed")),
        (weights(dir, "with"), copilot(dir, "with"))
    );
    assert_ne!(sha256_file(&kept.join("copilot.safetensors")).unwrap(), copilot(dir, "with"));
}

#[test]
fn answers_are_corrected_by_it_and_with_lambda_0_they_are_the_pilots() {
    let work = workplace();
    let dir = work.path();
    recipe(dir);
    run(dir, "train --recipe copilot.toml --out out").text();
    let ask = "generate --adapter out --prompt 3 --max-new-tokens 12 --json";
    let tokens = |more: &str| {
        let answers = run(dir, &format!("{ask} {more}")).json();
        answers[0]["tokens"].clone()
    };
    let pilot = tokens("");
    assert_eq!(tokens("--copilot out --lambda 0"), pilot);
    // So much of a correction overrules any pilot.
    assert_ne!(tokens("--copilot out --lambda 1000"), pilot);
    assert_eq!(tokens("--copilot out"), tokens("--copilot out --lambda 0.3"));
    // Beams fork sequences, and a checkpoint is a copilot, too.
    tokens("--copilot out --num-beams 3");
    tokens("--copilot out/checkpoint-3");
    let table = "[models]\npolicy = \"model\"\n[decode.sources.policy]\nadapter = \"out\"\n\
        [decode.sources.policy.copilot]\nfolder = \"out\"\nlambda = 0.3\n";
    fs::write(dir.join("decode.toml"), table).unwrap();
    let by_table =
        run(dir, "generate --decode decode.toml --prompt 3 --max-new-tokens 12 --json").json();
    assert_eq!(by_table[0]["tokens"], tokens("--copilot out"));
    let score = |more: &str| {
        let line =
            format!("eval --adapter out --data test.jsonl --metric exact_match --json {more}");
        run(dir, &line).json()["value"].clone()
    };
    assert_eq!(score("--copilot out --lambda 0"), score(""));
}

#[test]
fn what_no_copilot_can_do_is_refused_before_anything_is_written() {
    let work = workplace();
    let dir = work.path();
    recipe(dir);
    let ask = "generate --model model --prompt 3";
    run(dir, &format!("{ask} --copilot nowhere")).refused(&["is no copilot", "copilot.json"]);
    run(dir, &format!("{ask} --lambda 1")).refused(&["--copilot"]);
    run(dir, "train --recipe copilot.toml --out out max_steps=2").text();
    // The copilot of another vocabulary.
    let path = dir.join("out/copilot.json");
    let config = fs::read_to_string(&path).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let vocab = config["sizes"]["vocab"].as_u64().unwrap();
    config["sizes"]["vocab"] = (vocab + 1).into();
    fs::write(&path, config.to_string()).unwrap();
    run(dir, &format!("{ask} --copilot out")).refused(&["copilot", "expected"]);
    for (set, words) in [
        ("copilot.layers=1", &["train.copilot.layers", "expected at least 2"][..]),
        ("copilot.heads=3", &["train.copilot.heads"]),
        ("copilot.from=\"nowhere\"", &["train.copilot.from", "is no copilot"]),
    ] {
        run(dir, &format!("train --recipe copilot.toml --out new {set}")).refused(words);
        assert!(!dir.join("new").exists(), "{set}");
    }
}
