//! Training on better and worse answers, as a user runs it.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::{run, support::pico};

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// The file that a recipe of preferences or of a head reads.
pub fn data(recipe: &str) -> &'static str {
    let name = recipe.rsplit('/').next().unwrap();
    match name {
        "kto.toml" | "bco.toml" => "unpaired.jsonl",
        "deconfound.toml" | "rwr.toml" => "outcomes.jsonl",
        "classify.toml" | "regress.toml" => "labels.jsonl",
        _ => "pairs.jsonl",
    }
}

/// The files beside pairs.jsonl.
pub fn files(dir: &Path) {
    let write = |name: &str, row: &dyn Fn(usize) -> Value| {
        let rows: Vec<Value> = (0..12).map(row).collect();
        fs::write(dir.join(name), lines(&rows)).unwrap();
    };
    let said = ["yes", "no", "maybe so", "never yes"];
    write(
        "unpaired.jsonl",
        &|i| json!({"prompt": format!("case {i}"), "completion": said[i % 4], "label": i % 3 != 0}),
    );
    write("outcomes.jsonl", &|i| {
        json!({
            "prompt": "say it", "completion": format!("{} {i}", said[i % 4]),
            "outcome": i % 4 + i * i % 7, "hour": i * i % 7, "reward": (i % 4) as f64 / 2.0,
        })
    });
    write("labels.jsonl", &|i| json!({"text": format!("case {i}"), "label": i % 2}));
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

#[test]
fn every_layout_of_answers_is_refused_by_its_line_where_it_says_nothing() {
    let work = workplace();
    let dir = work.path();
    let said = |role: &str, text: &str| json!({"role": role, "content": text});
    let chat =
        |prompt: &str, answer: &str| json!([said("user", prompt), said("assistant", answer)]);
    let answer = |text: &str| json!([said("assistant", text)]);
    let long = "a ".repeat(60);
    // Paired answers: with a prompt or without, as texts or as conversations.
    let pair = |layout: &str, prompt: &str, a: &str, b: &str| match layout {
        "texts" => json!({"prompt": prompt, "chosen": a, "rejected": b}),
        "texts without a prompt" => {
            json!({"chosen": format!("{prompt} {a}"), "rejected": format!("{prompt} {b}")})
        }
        "turns" => {
            let prompt = json!([said("user", prompt)]);
            json!({"prompt": prompt, "chosen": answer(a), "rejected": answer(b)})
        }
        _ => json!({"chosen": chat(prompt, a), "rejected": chat(prompt, b)}),
    };
    let refused = |good: Value, bad: Value, more: &str, words: &[&str]| {
        fs::write(dir.join("bad.jsonl"), lines(&[good, bad])).unwrap();
        let line = format!("train --model model --data bad.jsonl --out out {more}");
        run(dir, &line).refused(&[&["bad.jsonl:2"], words].concat());
        assert!(!dir.join("out").exists(), "{more}");
    };
    let head = "train.params.head.labels=1 train.loss.reward={}";
    let cut = "max_length=64 data.overlength=truncate";
    for loss in ["train.loss.dpo={}", "train.loss.cpo={}", "train.loss.orpo={}", head] {
        for layout in ["texts", "texts without a prompt", "turns", "conversations"] {
            let good = || pair(layout, "a", "yes", "no");
            refused(good(), pair(layout, "a", "same", "same"), loss, &[]);
            let mut tie = pair(layout, "a", "yes", "no");
            (tie["score_chosen"], tie["score_rejected"]) = (json!(3.0), json!(3.0));
            refused(good(), tie, loss, &["a tie"]);
            let words = ["left", "max_length"];
            let gone = pair(layout, &long, "yes", "no");
            refused(good(), gone, &format!("{loss} {cut}"), &words);
            // Equal as far as they are read is equal.
            let late = |end: &str| format!("{}{end}", "b".repeat(80));
            let alike = pair(layout, "a", &late("c"), &late("d"));
            refused(good(), alike, &format!("{loss} {cut}"), &["same tokens"]);
        }
        let torn = json!({"prompt": "a", "chosen": "yes"});
        refused(pair("texts", "a", "yes", "no"), torn, loss, &["rejected"]);
    }
    // Single answers: as texts or as conversations.
    let single = |turns: bool, prompt: &str, label: Value| match turns {
        false => json!({"prompt": prompt, "completion": "yes", "label": label}),
        true => {
            let prompt = json!([said("user", prompt)]);
            json!({"prompt": prompt, "completion": answer("yes"), "label": label})
        }
    };
    for loss in ["train.loss.kto={group=2}", "train.loss.bco={group=2}"] {
        for turns in [false, true] {
            let good = || single(turns, "a", true.into());
            let words = ["left", "max_length"];
            let gone = single(turns, &long, false.into());
            refused(good(), gone, &format!("{loss} {cut}"), &words);
            for label in [json!("good"), json!(2), Value::Null] {
                refused(good(), single(turns, "a", label), loss, &["column label"]);
            }
        }
    }
    // Rewards that are no numbers, and labels that a head does not know.
    let rewarded = |reward: Value| json!({"prompt": "a", "completion": "yes", "reward": reward});
    for step in ["weigh={column=\"reward\"}", "rank={column=\"reward\"}"] {
        let loss = if step.starts_with("rank") { "train.loss.dpo={}" } else { "" };
        let more = format!("data.steps=[{{{step}}}] {loss}");
        for reward in [json!("much"), Value::Null] {
            refused(rewarded(1.0.into()), rewarded(reward), &more, &["column reward"]);
        }
    }
    let labelled = |label: Value| json!({"text": "a film", "label": label});
    let classes = "train.params.head.labels=3 train.loss.classify={}";
    for label in [json!(3), json!(-1), json!(0.5)] {
        refused(labelled(2.into()), labelled(label), classes, &["column label", "from 0 to 2"]);
    }
    let chance = "train.params.head.labels=1 train.loss.reward={loss_type=\"bce\"}";
    refused(labelled(1.into()), labelled(json!(1.5)), chance, &["column label", "from 0 to 1"]);
}

#[test]
fn answers_are_wanted_or_not() {
    let work = workplace();
    let dir = work.path();
    let rows: Vec<Value> = (0..12)
        .map(|i| {
            let (completion, label) = if i % 2 == 0 { ("yes", true) } else { ("no, never", false) };
            json!({"prompt": format!("case {i}"), "completion": completion, "label": label})
        })
        .collect();
    fs::write(dir.join("unpaired.jsonl"), lines(&rows)).unwrap();
    let train = "train --model model --data unpaired.jsonl batch_size=2 learning_rate=2e-3";
    for (loss, begins) in [
        ("train.loss.kto={group=4}", 0.5),
        ("train.loss.kto={loss_type=\"apo_zero_unpaired\"}", 0.5),
        ("train.loss.bco={group=4,beta=0.5}", std::f64::consts::LN_2),
    ] {
        run(dir, &format!("{train} --out out epochs=8 {loss}")).text();
        let steps = metrics(&dir.join("out"));
        let of = |line: &Value, name: &str| line[name].as_f64().unwrap_or(f64::NAN);
        let (first, last) = (&steps[0], steps.last().unwrap());
        // Nothing has moved away from the reference yet.
        assert!((of(first, "loss") - begins).abs() < 1e-4, "{loss}: {first}");
        assert!(of(last, "loss") < of(first, "loss"), "{loss}: {first} {last}");
        // The last step may hold wanted rows alone.
        let rejected = last["rewards/rejected"].as_f64().unwrap_or(0.0);
        assert!(of(last, "rewards/chosen") > rejected, "{loss}: {last}");
        fs::remove_dir_all(dir.join("out")).unwrap();
    }
    let mut bad = rows[0].clone();
    bad["label"] = json!("good");
    fs::write(dir.join("bad.jsonl"), lines(&[rows[1].clone(), bad])).unwrap();
    run(dir, "train --model model --data bad.jsonl --out out train.loss.kto={}").refused(&[
        "bad.jsonl:2",
        "column label",
        "true or false",
    ]);
}

#[test]
fn a_head_learns_beside_lora_or_the_whole_model() {
    let work = workplace();
    let dir = work.path();
    let rows: Vec<Value> = (0..12)
        .map(|i| {
            let (text, label) = if i % 2 == 0 { ("good good", "yes") } else { ("bad bad", "no") };
            json!({"text": text, "label": label})
        })
        .collect();
    fs::write(dir.join("labels.jsonl"), lines(&rows)).unwrap();
    let train = "train --model model --data labels.jsonl batch_size=6 learning_rate=1e-2 epochs=10";
    let names = "train.params.head.labels=[\"no\",\"yes\"] train.loss.classify={}";
    for form in ["train.params.lora={r=4}", "train.params.full={}", ""] {
        let line = format!("{train} --out out {names} {form} save_steps=10");
        run(dir, &line).text();
        let steps = metrics(&dir.join("out"));
        let of = |line: &Value, name: &str| line[name].as_f64().unwrap_or(f64::NAN);
        let (first, last) = (&steps[0], steps.last().unwrap());
        assert!((of(first, "loss") - std::f64::consts::LN_2).abs() < 0.3, "{form}: {first}");
        assert!(of(last, "loss") < 0.5 * of(first, "loss"), "{form}: {last}");
        assert_eq!(of(last, "accuracy"), 1.0, "{form}: {last}");
        if form.contains("lora") {
            let text = fs::read_to_string(dir.join("out/adapter_config.json")).unwrap();
            let config: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(config["task_type"], "SEQ_CLS");
            assert_eq!(config["modules_to_save"], json!(["score"]));
        }
        if form.contains("full") {
            let text = fs::read_to_string(dir.join("out/config.json")).unwrap();
            let config: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
            assert_eq!(config["id2label"], json!({"0": "no", "1": "yes"}));
        }
        fs::remove_dir_all(dir.join("out")).unwrap();
    }
    let wrong = "train --model model --data labels.jsonl --out out";
    run(dir, &format!("{wrong} train.loss.classify={{}}")).refused(&["train.loss", "a head"]);
    run(dir, &format!("{wrong} train.params.head.labels=2"))
        .refused(&["train.loss", "scores labels"]);
    run(
        dir,
        &format!("{wrong} train.loss.classify={{}} train.params.head.labels=[\"no\",\"yeah\"]"),
    )
    .refused(&["labels.jsonl:1", "none of the known labels"]);
}
