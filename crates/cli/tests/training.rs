//! The writing verbs on a model of a few thousand weights: train, resume, fold, plan, run.

#[path = "training/copilot.rs"]
mod copilot;
#[path = "training/preference.rs"]
mod preference;
#[path = "training/recipes.rs"]
mod recipes;
mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use luthier_core::io::sha256_file;
use support::{adapter, pico, run};

/// A folder with a model and sums to learn.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    pico(&dir.path().join("model"), 1);
    let row = |i: usize| {
        let (prompt, reference) = (format!("{i} and {i}"), format!("add {i} to itself"));
        format!(
            "{{\"prompt\": \"{prompt}\", \"completion\": \"makes {}\", \"reference\": \"{reference}\", \"rationale\": \"twice {i}\"}}\n",
            2 * i
        )
    };
    fs::write(dir.path().join("train.jsonl"), (0..24).map(row).collect::<String>()).unwrap();
    fs::write(dir.path().join("test.jsonl"), (30..36).map(row).collect::<String>()).unwrap();
    dir
}

const TRAIN: &str = "train --model model --data train.jsonl batch_tokens=100 lora.r=2 dropout=0.1 \
                     save_steps=1 epochs=3";

fn manifest(dir: &Path, out: &str) -> serde_json::Value {
    let text = fs::read_to_string(dir.join(out).join("manifest.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn weights(dir: &Path, out: &str) -> String {
    sha256_file(&dir.join(out).join("adapter_model.safetensors")).unwrap()
}

#[test]
fn training_gives_the_same_bytes_at_any_number_of_threads() {
    let work = workplace();
    let dir = work.path();
    let outcome = run(dir, &format!("{TRAIN} --out one --json")).json();
    assert!(outcome["steps"].as_u64().unwrap() > 8 && outcome["train_loss"].as_f64().is_some());
    for threads in ["1", "3"] {
        let line = format!("{TRAIN} --out t{threads}");
        let done = Command::new(env!("CARGO_BIN_EXE_luthier"))
            .args(line.split_whitespace())
            .env("RAYON_NUM_THREADS", threads)
            .current_dir(dir)
            .output()
            .unwrap();
        assert!(done.status.success());
        assert_eq!(weights(dir, &format!("t{threads}")), weights(dir, "one"), "{threads} threads");
    }
    for file in ["recipe.toml", "manifest.json", "metrics.jsonl", "adapter_config.json"] {
        assert!(dir.join("one").join(file).is_file(), "{file}");
    }
    run(dir, &format!("{TRAIN} --out one")).refused(&["already holds a run", "--resume"]);
}

#[test]
fn killed_at_three_points_and_resumed_it_is_the_uninterrupted_run() {
    let work = workplace();
    let dir = work.path();
    run(dir, &format!("{TRAIN} --out whole")).text();
    for at in [1, 4, 8] {
        let out = format!("killed{at}");
        let mut child = Command::new(env!("CARGO_BIN_EXE_luthier"))
            .args(format!("{TRAIN} --out {out}").split_whitespace())
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let reached = dir.join(&out).join(format!("checkpoint-{at}"));
        while !reached.exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // SIGKILL: nothing gets to clean up.
        child.kill().unwrap();
        child.wait().unwrap();
        if !dir.join(&out).join("adapter_model.safetensors").exists() {
            run(dir, &format!("{TRAIN} --out {out} --resume")).text();
        }
        assert_eq!(weights(dir, &out), weights(dir, "whole"), "killed after checkpoint {at}");
    }
    run(dir, &format!("{TRAIN} --out killed1 --resume seed=7")).refused(&["another recipe"]);
    run(dir, &format!("{TRAIN} --out nothing --resume")).refused(&["no run to resume"]);
}

#[test]
fn steps_are_counted_in_rows_and_follow_the_file() {
    let work = workplace();
    let dir = work.path();
    let line = "train --model model --data train.jsonl batch_size=5 shuffle=false epochs=2";
    let outcome = run(dir, &format!("{line} --out rows --json")).json();
    // 24 rows in steps of five are five steps an epoch.
    assert_eq!(outcome["steps"], 10);
    let tokens = |dir: &Path, out: &str| -> Vec<u64> {
        let text = fs::read_to_string(dir.join(out).join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        let steps = lines.filter(|line| line["loss"].is_number());
        steps.map(|line| line["tokens"].as_u64().unwrap()).collect()
    };
    let shown = run(dir, "show --model model --data train.jsonl -n 24 --json").json();
    let rows = shown["rows"].as_array().unwrap();
    let lengths: Vec<u64> =
        rows.iter().map(|row| row["ids"].as_array().unwrap().len() as u64 - 1).collect();
    let mut sum = 0;
    let want: Vec<u64> = [lengths.chunks(5), lengths.chunks(5)]
        .into_iter()
        .flatten()
        .map(|step| {
            sum += step.iter().sum::<u64>();
            sum
        })
        .collect();
    assert_eq!(tokens(dir, "rows"), want);
    // Resumed in the middle of the second epoch it is the same run.
    let line = format!("{line} save_steps=1");
    run(dir, &format!("{line} --out whole")).text();
    run(dir, &format!("{line} --out again")).text();
    for step in 8..=10 {
        fs::remove_dir_all(dir.join(format!("again/checkpoint-{step}"))).unwrap();
    }
    fs::remove_file(dir.join("again/adapter_model.safetensors")).unwrap();
    run(dir, &format!("{line} --out again --resume")).text();
    assert_eq!(weights(dir, "again"), weights(dir, "whole"));
    assert_eq!(tokens(dir, "again"), want);
    // The plan counts the same steps, and the report's facts say rows.
    let plan = "plan --model model --data train.jsonl";
    assert_eq!(run(dir, &format!("{plan} batch_size=5 epochs=2 --json")).json()["steps"], 10);
    for (words, keys) in [
        ("batch_size=4 batch_tokens=100", ["train.batch_size", "train.batch_tokens"]),
        ("shuffle=false group_by_length=true", ["train.shuffle", "train.group_by_length"]),
    ] {
        run(dir, &format!("{plan} {words}")).refused(&keys);
    }
}

#[test]
fn precision_is_recorded_and_belongs_to_the_run() {
    let work = workplace();
    let dir = work.path();
    let line = "train --model model --data train.jsonl batch_tokens=200 max_steps=2 save_steps=1";
    for precision in ["f32", "bf16"] {
        run(dir, &format!("{line} --out {precision} precision={precision}")).text();
        assert_eq!(manifest(dir, precision)["precision"], precision);
        let plan = "plan --model model --data train.jsonl --json";
        let plan = run(dir, &format!("{plan} precision={precision}")).json();
        assert_eq!(plan["precision"], precision);
    }
    assert_ne!(weights(dir, "f32"), weights(dir, "bf16"));
    run(dir, &format!("{line} --out auto")).text();
    let real = manifest(dir, "auto")["precision"].as_str().unwrap().to_string();
    assert_eq!(weights(dir, "auto"), weights(dir, &real));
    let refused = |words: &str, parts: &[&str]| {
        run(dir, &format!("{line} --out {words}")).refused(parts);
    };
    refused("x precision=fp16", &["fp16", "bf16"]);
    // A run in other arithmetic is another run.
    refused("f32 --resume precision=bf16", &["another recipe"]);
}

/// Tensors of a safetensors file by name, as bytes.
fn tensors(file: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(file).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
    let at = |end: &serde_json::Value| 8 + size + end.as_u64().unwrap() as usize;
    let named = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    named
        .map(|(name, t)| {
            let ends = &t["data_offsets"];
            (name.clone(), bytes[at(&ends[0])..at(&ends[1])].to_vec())
        })
        .collect()
}

#[test]
fn products_in_bf16_round_no_weight_that_is_written() {
    let work = workplace();
    let dir = work.path();
    let base = tensors(&dir.join("model/model.safetensors"));
    let line = "train --model model --data train.jsonl max_steps=2 precision=bf16";
    // Everything learns, at a rate of 0; then one matrix, which alone may change.
    run(dir, &format!("{line} --out still train.params.full={{}} learning_rate=0")).text();
    assert!(tensors(&dir.join("still/model.safetensors")) == base);
    let one = "train.params.full={at=\"layers.0.mlp.down\"}";
    run(dir, &format!("{line} --out one {one} schedule.constant={{}}")).text();
    let written = tensors(&dir.join("one/model.safetensors"));
    let changed: Vec<&String> =
        written.iter().filter(|(name, bytes)| *bytes != &base[*name]).map(|(n, _)| n).collect();
    assert_eq!(changed, ["model.layers.0.mlp.down_proj.weight"]);
}

#[test]
fn folded_is_hooked() {
    let work = workplace();
    let dir = work.path();
    adapter(&dir.join("model"), &dir.join("tuned"));
    // Folding is exact, and so is the comparison of texts.
    let folded = run(dir, "fold --model model --adapter tuned --out merged --json").json();
    let difference = folded["max_logit_difference"].as_f64().unwrap();
    assert!(difference < 1e-4 * folded["max_logit"].as_f64().unwrap(), "{folded}");
    let say = |args: &str| {
        run(dir, &format!("generate {args} --precision f32 --prompt hello")).text().to_string()
    };
    assert_eq!(say("--model merged"), say("--model model --adapter tuned"));
    assert_ne!(say("--model merged"), say("--model model"));
    run(dir, "fold --model model --adapter tuned --out merged").refused(&["not empty"]);
    pico(&dir.join("other"), 2);
    run(dir, "fold --model other --adapter tuned --out x").refused(&["tuned", "hint"]);
    assert!(!dir.join("x").exists());
}

#[test]
fn full_fine_tuning_writes_a_model_that_loads() {
    let work = workplace();
    let dir = work.path();
    fs::write(dir.join("full.toml"), "[models]\npolicy = \"model\"\n[data]\ntrain = \"train.jsonl\"\n[train]\nmax_steps = 3\n[train.params.full]\n[train.update.adamw]\nlearning_rate = 1e-3\n").unwrap();
    run(dir, "train full.toml --out tuned").text();
    let nll = |model: &str| {
        run(dir, &format!("eval --model {model} --data train.jsonl --metric nll --json")).json()
            ["value"]
            .as_f64()
            .unwrap()
    };
    assert!(nll("tuned") < nll("model"));
}

#[test]
fn bad_input_gets_one_sentence_and_leaves_nothing() {
    let work = workplace();
    let dir = work.path();
    let refused = |line: &str, words: &[&str]| {
        run(dir, &format!("train --out out {line}")).refused(words);
        assert!(!dir.join("out").exists(), "{line}: something was written");
    };
    let given = "--model model --data train.jsonl";
    refused(&format!("{given} lerning_rate=1"), &["lerning_rate", "did you mean learning_rate"]);
    refused(&format!("{given} at=layers.*.atn.q"), &["layers.*.atn.q", "layers.0.attn.q"]);
    refused(&format!("{given} lora.r=500"), &["500"]);
    refused(&format!("{given} epochs=-1"), &["train.epochs", "positive"]);
    refused("--model model --data absent.jsonl", &["absent.jsonl"]);
    refused("--model nowhere --data train.jsonl", &["nowhere"]);
    refused(&format!("{given} max_length=9"), &["train.jsonl:"]);
    let file = |name: &str, text: &str| fs::write(dir.join(name), text).unwrap();
    file("empty.jsonl", "");
    refused("--model model --data empty.jsonl", &["empty.jsonl"]);
    file("broken.jsonl", "{\"text\": \"fine\"}\n{\"text\": \n");
    refused("--model model --data broken.jsonl", &["broken.jsonl:2"]);
    file("mixed.jsonl", "{\"text\": \"fine\"}\n{\"question\": \"?\"}\n");
    refused("--model model --data mixed.jsonl", &["mixed.jsonl:2"]);
    file("alone.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n");
    refused(
        "--model model --data alone.jsonl train.loss.align={}",
        &["alone.jsonl:1", "no column reference", "train.loss.align"],
    );
    let beyond = "train.loss.align={lambda_kl=2.0}";
    refused(&format!("{given} {beyond}"), &["lambda_kl", "from 0 to 1"]);
    file("pair.jsonl", "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n");
    refused("--model model --data pair.jsonl", &["pair.jsonl:1", "preference"]);
    file(
        "silent.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\", \"train\": false}]}\n",
    );
    refused("--model model --data silent.jsonl", &["silent.jsonl:1"]);
    file("bad.toml", "[train]\nepoch = 1\n");
    refused("bad.toml", &["bad.toml", "line 2", "epochs"]);

    let weights = dir.join("model/model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    refused(given, &["model.safetensors"]);
    fs::write(&weights, [0xffu8; 64]).unwrap();
    refused(given, &["model.safetensors"]);
    fs::write(&weights, &whole).unwrap();
    let template = dir.join("model/chat_template.jinja");
    fs::write(&template, "{{ summon(messages) }}").unwrap();
    refused(given, &["summon"]);
}

#[test]
fn a_loss_that_is_no_number_names_step_and_site() {
    let work = workplace();
    let dir = work.path();
    let ran = run(
        dir,
        "train --model model --data train.jsonl --out out learning_rate=1e30 batch_tokens=100 max_grad_norm=0 schedule.constant={}",
    );
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("step 2") && ran.stderr.contains("hint: lower"), "{}", ran.stderr);
    assert!(!dir.join("out/adapter_model.safetensors").exists());
}
