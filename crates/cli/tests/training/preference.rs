//! Training on better and worse answers, as a user runs it.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{run, support::pico};

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// A model, and pairs of which the better answer is always the same word.
fn workplace() -> tempfile::TempDir {
    let work = tempfile::tempdir().unwrap();
    pico(&work.path().join("model"), 1);
    let row =
        |i: usize| json!({"prompt": format!("case {i}"), "chosen": "yes", "rejected": "no, never"});
    let rows: Vec<Value> = (0..12).map(row).collect();
    fs::write(work.path().join("pairs.jsonl"), lines(&rows)).unwrap();
    work
}

/// Every step's numbers.
fn metrics(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|line| line.get("loss").is_some()).collect()
}

const TRAIN: &str = "train --model model --data pairs.jsonl batch_size=4 learning_rate=2e-3";

#[test]
fn the_better_answer_gains_on_the_worse_one() {
    let work = workplace();
    let dir = work.path();
    for (loss, begins) in [
        ("train.loss.dpo={}", Some(std::f64::consts::LN_2)),
        ("train.loss.dpo={loss_type=\"ipo\",beta=0.5}", Some(1.0)),
        ("train.loss.cpo={loss_type=\"simpo\",cpo_alpha=0.0,beta=2.0}", None),
        ("train.loss.orpo={}", None),
    ] {
        let out = dir.join("out");
        run(dir, &format!("{TRAIN} --out out epochs=4 {loss}")).text();
        let steps = metrics(&out);
        let (first, last) = (&steps[0], steps.last().unwrap());
        let of = |line: &Value, name: &str| {
            line[name].as_f64().unwrap_or_else(|| panic!("{name} is not in {line}"))
        };
        if let Some(begins) = begins {
            // Nothing has moved away from the reference yet.
            assert!((of(first, "loss") - begins).abs() < 1e-4, "{loss}: {first}");
            assert!(of(first, "rewards/margins").abs() < 1e-4, "{loss}: {first}");
        }
        assert!(of(last, "loss") < of(first, "loss"), "{loss}: {first} {last}");
        assert!(of(last, "rewards/margins") > of(first, "rewards/margins"), "{loss}: {last}");
        assert_eq!(of(last, "rewards/accuracies"), 1.0, "{loss}: {last}");
        assert!(of(last, "logps/chosen") < 0.0);
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn a_resumed_run_has_the_reference_of_the_first() {
    let work = workplace();
    let dir = work.path();
    for form in ["", "train.params.full={}"] {
        let line = format!("{TRAIN} epochs=2 save_steps=2 train.loss.dpo={{}} {form}");
        run(dir, &format!("{line} --out whole")).text();
        run(dir, &format!("{line} --out cut")).text();
        for later in ["checkpoint-4", "checkpoint-6"] {
            let _ = fs::remove_dir_all(dir.join("cut").join(later));
        }
        run(dir, &format!("{line} --out cut --resume")).text();
        let losses = |out: &str| -> Vec<Value> {
            metrics(&dir.join(out)).iter().map(|line| line["loss"].clone()).collect()
        };
        assert_eq!(losses("whole"), losses("cut"), "{form}");
        for out in ["whole", "cut"] {
            fs::remove_dir_all(dir.join(out)).unwrap();
        }
    }
}

#[test]
fn pairs_that_say_nothing_are_refused_by_their_line() {
    let work = workplace();
    let dir = work.path();
    let refused = |row: Value, more: &str, words: &[&str]| {
        let good = json!({"prompt": "a", "chosen": "b", "rejected": "c"});
        fs::write(dir.join("bad.jsonl"), lines(&[good, row])).unwrap();
        let line = format!("train --model model --data bad.jsonl --out out {more}");
        run(dir, &line).refused(&[&["bad.jsonl:2"], words].concat());
        assert!(!dir.join("out").exists());
    };
    let dpo = "train.loss.dpo={}";
    let pair = |chosen: &str, rejected: &str| json!({"prompt": "a", "chosen": chosen, "rejected": rejected});
    refused(pair("b", "b"), dpo, &["the same answer"]);
    let mut tie = pair("b", "c");
    (tie["score_chosen"], tie["score_rejected"]) = (json!(3.0), json!(3.0));
    refused(tie, dpo, &["a tie"]);
    let long = json!({"prompt": "a ".repeat(60), "chosen": "b", "rejected": "c"});
    refused(
        long,
        &format!("{dpo} max_length=64 data.overlength=truncate"),
        &["no trained token left", "max_length"],
    );
    // Rows without a worse answer.
    fs::write(dir.join("one.jsonl"), "{\"prompt\": \"a\", \"completion\": \"b\"}\n").unwrap();
    run(dir, &format!("train --model model --data one.jsonl --out out {dpo}"))
        .refused(&["one.jsonl:1", "chosen and rejected"]);
}
