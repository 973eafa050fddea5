//! Distillation from the command line: a teacher that speaks beforehand, one that is asked, answers of
//! the student, a teacher with other tokens; and how sure models are.

#[path = "teaching/gguf.rs"]
mod gguf;
mod support;

use std::{fs, path::Path};

use luthier_core::io::sha256_file;
use luthier_model::{Tokenizer, tokenizer::GgufVocab};
use serde_json::Value;
use support::{adapter, pico, run};

/// A folder with a model, an adapter that has made another of it, and sums.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let base = pico(&dir.path().join("model"), 1);
    adapter(&base, &dir.path().join("tuned"));
    let row = |i: usize| {
        let choices = format!("[\"makes {}\", \"makes {}\"]", 2 * i, 2 * i + 1);
        format!(
            "{{\"prompt\": \"{i} and {i}\", \"completion\": \"makes {}\", \"choices\": {choices}}}\n",
            2 * i
        )
    };
    fs::write(dir.path().join("train.jsonl"), (0..24).map(row).collect::<String>()).unwrap();
    fs::write(dir.path().join("test.jsonl"), (30..36).map(row).collect::<String>()).unwrap();
    dir
}

/// The logged steps of a run.
fn steps(dir: &Path, out: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.join(out).join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["loss"].is_number()).collect()
}

fn recipe(dir: &Path, name: &str, models: &str, distil: &str) {
    let text = format!(
        "[models]\npolicy = \"model\"\nprecision = \"f32\"\n{models}\n[data]\ntrain = \"train.jsonl\"\n\
         [train]\nbatch_size = 6\nepochs = 4\nsave_steps = 1\n[train.params.lora]\nr = 4\nalpha = 8\n\
         [train.loss.distil]\n{distil}\n[train.update.adamw]\nlearning_rate = 1e-2\n"
    );
    fs::write(dir.join(name), text).unwrap();
}

#[test]
fn all_that_a_teacher_says_beforehand_is_what_it_says_when_asked() {
    let work = workplace();
    let dir = work.path();
    let line = "teach --model model --adapter tuned --precision f32 --data train.jsonl";
    let told = run(dir, &format!("{line} --top-k 259 --out all.safetensors --json")).json();
    assert_eq!((&told["rows"], &told["across"]), (&Value::from(24), &Value::from(false)));
    assert!((told["mass"].as_f64().unwrap() - 1.0).abs() < 1e-4, "{told}");
    recipe(dir, "asked.toml", "teacher = \"tuned\"", "");
    recipe(dir, "stored.toml", "", "cache = \"all.safetensors\"");
    run(dir, "train asked.toml --out asked").text();
    run(dir, "train stored.toml --out stored").text();
    let (asked, stored) = (steps(dir, "asked"), steps(dir, "stored"));
    assert_eq!(asked.len(), 16);
    for (a, b) in asked.iter().zip(&stored) {
        let [a, b] = [a, b].map(|line| line["loss"].as_f64().unwrap());
        assert!((a - b).abs() < 2e-3 * a, "{a} {b}");
    }
    let [first, last] = [0, 15].map(|at| asked[at]["divergence"].as_f64().unwrap());
    assert!(last < 0.5 * first, "{first} {last}");
    assert!(asked[15]["agreement"].as_f64().unwrap() > asked[0]["agreement"].as_f64().unwrap());
}

#[test]
fn five_tokens_are_learned_from_and_wrong_pairings_are_refused() {
    let work = workplace();
    let dir = work.path();
    recipe(
        dir,
        "first.toml",
        "teacher = \"tuned\"",
        "cache = \"five.safetensors\"\ncalib = \"temp_prob\"",
    );
    run(dir, "teach --recipe first.toml --top-k 5 --out five.safetensors").text();
    run(dir, "train first.toml --out first").text();
    let all = steps(dir, "first");
    let [first, last] = [0, 15].map(|at| all[at]["divergence"].as_f64().unwrap());
    assert!(last < first, "{first} {last}");
    run(dir, "train first.toml --out other train=test.jsonl").refused(&[
        "five.safetensors",
        "nothing on",
        "test.jsonl:1",
    ]);
    fs::remove_file(dir.join("five.safetensors")).unwrap();
    run(dir, "train first.toml --out gone").refused(&["five.safetensors"]);
    run(dir, "train first.toml --out x calib=none tail=true student_norm=linear")
        .refused(&["train.loss.distil.tail"]);
    recipe(dir, "nobody.toml", "", "");
    run(dir, "train nobody.toml --out x").refused(&["models.teacher", "missing"]);
    assert!(!dir.join("x").exists());
}

#[test]
fn answers_of_the_student_are_judged_and_a_resumed_run_draws_the_same() {
    let work = workplace();
    let dir = work.path();
    let distil = "divergence = \"js\"\nlmbda = 0.6\nmax_new_tokens = 9";
    recipe(dir, "gkd.toml", "teacher = \"tuned\"", distil);
    run(dir, "train gkd.toml --out whole").text();
    recipe(dir, "never.toml", "teacher = \"tuned\"", "divergence = \"js\"");
    run(dir, "train never.toml --out never").text();
    let read = |out: &str| -> Vec<u64> {
        let all: Vec<u64> =
            steps(dir, out).iter().map(|line| line["tokens"].as_u64().unwrap()).collect();
        std::iter::once(all[0]).chain(all.windows(2).map(|two| two[1] - two[0])).collect()
    };
    // The data's answers have eight or nine tokens with their end, the student's nine at most.
    let (own, data) = (read("whole"), read("never"));
    let same = own.iter().zip(&data).filter(|(own, data)| own == data).count();
    assert!((1..16).contains(&same), "{own:?} {data:?}");
    let weights =
        |out: &str| sha256_file(&dir.join(out).join("adapter_model.safetensors")).unwrap();
    // A run of the same length that was interrupted: its first seven checkpoints.
    run(dir, "train gkd.toml --out again").text();
    for step in 8..=16 {
        fs::remove_dir_all(dir.join("again").join(format!("checkpoint-{step}"))).unwrap();
    }
    fs::remove_file(dir.join("again/adapter_model.safetensors")).unwrap();
    run(dir, "train gkd.toml --out again --resume").text();
    assert_eq!(weights("again"), weights("whole"));
}

/// A model whose tokens are bytes but for four, which are words of several.
fn larger(dir: &Path) {
    pico(dir, 7);
    let bytes = Tokenizer::bytes();
    let mut tokens: Vec<String> = (0..259).map(|id| bytes.token(id).unwrap()).collect();
    for (id, word) in (244..248).zip(["ma", "ke", "make", "Ġa"]) {
        tokens[id] = word.to_string();
    }
    let types = [vec![1; 256], vec![3; 3]].concat();
    let merges = ["m a", "k e", "ma ke", "Ġ a"].map(String::from).to_vec();
    let chat_template = bytes.template().map(|template| template.source().to_string());
    let (file, model) = ("larger".to_string(), "gpt2".to_string());
    let eos = Some(257);
    let rest = GgufVocab { add_bos: Some(false), chat_template, eos, ..GgufVocab::default() };
    let vocab = GgufVocab { file, model, tokens, types, merges, ..rest };
    Tokenizer::from_gguf(vocab).unwrap().save(dir).unwrap();
}

#[test]
fn a_teacher_with_other_tokens_speaks_of_spans() {
    let work = workplace();
    let dir = work.path();
    larger(&dir.join("large"));
    recipe(dir, "across.toml", "teacher = \"large\"", "");
    run(dir, "train across.toml --out x").refused(&[
        "models.teacher",
        "token 244",
        "luthier teach",
    ]);
    let line = "teach --recipe across.toml --top-k 6 --out spans.safetensors --json";
    let told = run(dir, line).json();
    assert_eq!(told["across"], Value::from(true));
    // Every byte of the answers and the token that ends them lie in a span.
    assert_eq!(told["covered"], told["targets"]);
    recipe(dir, "spans.toml", "", "cache = \"spans.safetensors\"\ntail = true");
    run(dir, "train spans.toml --out spans").text();
    let all = steps(dir, "spans");
    let [first, last] = [0, 15].map(|at| all[at]["divergence"].as_f64().unwrap());
    assert!(last < 0.7 * first, "{first} {last}");
    run(dir, "teach --model large --for model --data train.jsonl --fit").refused(&["--fit"]);
}

#[test]
fn confidence_is_measured_and_a_temperature_found() {
    let work = workplace();
    let dir = work.path();
    let fitted = run(dir, "teach --model model --data test.jsonl --fit --json").json();
    assert!(fitted["fit"]["fit"]["tried"].as_array().unwrap().len() > 10, "{fitted}");
    assert!(fitted["out"].is_null());
    let shown = run(dir, "teach --model model --data test.jsonl --fit=temp_logit");
    assert!(shown.text().contains("ECE"), "{}", shown.stdout);
    let line = "eval --model model --data test.jsonl --json --metric";
    let next = run(dir, &format!("{line} calibration")).json();
    assert_eq!(next["value"], next["calibration"]["ece"]);
    assert!(next["n"].as_u64().unwrap() > 50, "{next}");
    let choice = run(dir, &format!("{line} choice --reliability bars.svg")).json();
    assert_eq!(choice["calibration"]["n"], 6);
    assert_eq!(choice["calibration"]["accuracy"], choice["acc"]);
    assert!(fs::read_to_string(dir.join("bars.svg")).unwrap().contains("<svg"));
    run(dir, &format!("{line} nll --reliability bars.svg")).refused(&["--reliability"]);
    let line = "train --model model --data train.jsonl --out out max_steps=2 eval_fraction=0.25";
    run(dir, &format!("{line} eval_ece=true")).text();
    let text = fs::read_to_string(dir.join("out/metrics.jsonl")).unwrap();
    let eval = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    let eval: Vec<Value> = eval.filter(|line| line["eval_loss"].is_number()).collect();
    assert!(eval.iter().all(|line| (0.0..=1.0).contains(&line["eval_ece"].as_f64().unwrap())));
    assert!(!eval.is_empty());
}
