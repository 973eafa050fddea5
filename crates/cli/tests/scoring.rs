//! What a head of labels says of rows, as a user asks it; and which properties of rows a reward follows.

mod support;

use std::{fs, path::Path};

use serde_json::{Value, json};
use support::{Ran, luthier, pico, run};

fn lines(rows: impl Iterator<Item = Value>) -> String {
    rows.map(|row| format!("{row}\n")).collect()
}

fn workplace() -> tempfile::TempDir {
    let work = tempfile::tempdir().unwrap();
    let dir = work.path();
    pico(&dir.join("model"), 1);
    let word = |i: usize| ["good", "bad", "so so", "rather good, I think"][i % 4];
    let write = |name: &str, row: &dyn Fn(usize) -> Value| {
        fs::write(dir.join(format!("{name}.jsonl")), lines((0..12).map(row))).unwrap();
        fs::write(dir.join(format!("{name}-test.jsonl")), lines((12..19).map(row))).unwrap();
    };
    write(
        "named",
        &|i| json!({"text": format!("{} {i}", word(i)), "label": if i % 3 == 1 { "yes" } else { "no" }}),
    );
    write(
        "numbers",
        &|i| json!({"prompt": format!("case {i}"), "completion": word(i), "label": i as f64 / 5.0}),
    );
    write(
        "pairs",
        &|i| json!({"prompt": format!("case {i}"), "chosen": word(i), "rejected": word(i + 1)}),
    );
    work
}

/// What the last evaluation of a run said.
fn evaluated(dir: &Path, out: &str) -> Value {
    let text = fs::read_to_string(dir.join(out).join("metrics.jsonl")).unwrap();
    let mut all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.rfind(|line| line["eval_loss"].is_number()).unwrap()
}

fn told(ran: &Ran) -> Vec<Value> {
    ran.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn near(got: f64, want: &Value) {
    let want = number(want);
    assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{got} {want}");
}

fn mean(of: &[f64]) -> f64 {
    of.iter().sum::<f64>() / of.len() as f64
}

fn train(dir: &Path, data: &str, out: &str, more: &str) {
    let line = "train --model model batch_size=4 epochs=4 learning_rate=1e-2 precision=f32";
    let data = format!("--data {data}.jsonl --eval {data}-test.jsonl --out {out}");
    run(dir, &format!("{line} {data} {more}")).text();
}

#[test]
fn classes_are_those_that_training_evaluated() {
    let work = workplace();
    let dir = work.path();
    let loss = "train.params.head.labels=[\"no\",\"yes\"] train.loss.classify={}";
    for (form, place) in [
        ("train.params.lora={r=4}", "--adapter lora"),
        ("train.params.full={}", "--model full"),
        ("", "--adapter head"),
    ] {
        let out = place.rsplit(' ').next().unwrap();
        train(dir, "named", out, &format!("{loss} {form}"));
        let eval = evaluated(dir, out);
        let ran = run(dir, &format!("score {place} --precision f32 --data named-test.jsonl"));
        let rows = told(&ran);
        assert_eq!((rows.len(), &rows[2]["origin"]), (7, &json!("named-test.jsonl:3")));
        let chance = |row: &Value, name: &str| number(&row["probabilities"][name]);
        let (mut losses, mut right) = (Vec::new(), Vec::new());
        // Confidence in bins of a tenth: how far it is from how often it is right.
        let mut gaps = [0.0; 10];
        for row in &rows {
            let [no, yes] = ["no", "yes"].map(|name| chance(row, name));
            assert!((no + yes - 1.0).abs() < 1e-9, "{row}");
            assert_eq!(row["label"], ["no", "yes"][usize::from(yes > no)], "{row}");
            losses.push(-chance(row, row["expected"].as_str().unwrap()).ln());
            let hit = f64::from(u8::from(row["label"] == row["expected"]));
            gaps[((no.max(yes) * 10.0) as usize).min(9)] += hit - no.max(yes);
            right.push(hit);
        }
        near(mean(&losses), &eval["eval_loss"]);
        near(mean(&right), &eval["eval_accuracy"]);
        near(gaps.iter().map(|gap| gap.abs()).sum::<f64>() / 7.0, &eval["eval_ece"]);
        assert!(ran.stderr.contains(&format!("accuracy {:.4}", mean(&right))), "{}", ran.stderr);
        // A text as it is says what the same text in a file says.
        let one = luthier(
            dir,
            &[place.split(' ').collect::<Vec<_>>(), vec!["--precision", "f32"]]
                .concat()
                .into_iter()
                .fold(vec!["score", "--text", "good 12"], |mut all, word| {
                    all.push(word);
                    all
                }),
            "",
        );
        let one = told(&one);
        near(chance(&one[0], "yes"), &rows[0]["probabilities"]["yes"]);
        assert!(one[0].get("expected").is_none(), "{}", one[0]);
    }
    // Rows of which nothing is known are scored, too.
    fs::write(dir.join("bare.jsonl"), "{\"prompt\": \"good\"}\n{\"prompt\": \"bad\"}\n").unwrap();
    let bare = told(&run(dir, "score --adapter lora --data bare.jsonl"));
    assert_eq!((bare.len(), bare[1].get("expected")), (2, None));
    assert_eq!(told(&run(dir, "score --adapter lora --data bare.jsonl --limit 1")).len(), 1);
    run(dir, "score --adapter lora --data pairs-test.jsonl")
        .refused(&["pairs-test.jsonl:1", "2 labels"]);
    run(dir, "score --adapter lora --data named-test.jsonl --max-length 4")
        .refused(&["named-test.jsonl:1", "4"]);
    run(dir, "score --model model --data named-test.jsonl")
        .refused(&["model", "no head of labels"]);
    run(dir, "score --adapter lora").refused(&["--data"]);
    run(dir, "eval --adapter lora --data named-test.jsonl").refused(&["luthier score"]);
    train(dir, "named", "text", "train.params.lora={r=2}");
    run(dir, "score --adapter text --data named-test.jsonl")
        .refused(&["text", "no head of labels"]);
}

#[test]
fn numbers_and_rewards_are_those_that_training_evaluated() {
    let work = workplace();
    let dir = work.path();
    let one = "train.params.lora={r=4} train.params.head.labels=1";
    let score = |out: &str, data: &str| {
        run(dir, &format!("score --adapter {out} --precision f32 --data {data}-test.jsonl"))
    };
    train(dir, "numbers", "numbers", &format!("{one} train.loss.regress={{}}"));
    let (eval, ran) = (evaluated(dir, "numbers"), score("numbers", "numbers"));
    let off: Vec<f64> =
        told(&ran).iter().map(|row| number(&row["score"]) - number(&row["expected"])).collect();
    near(mean(&off.iter().map(|off| off * off).collect::<Vec<_>>()), &eval["eval_loss"]);
    near(mean(&off.iter().map(|off| off.abs()).collect::<Vec<_>>()), &eval["eval_mae"]);
    assert!(ran.stderr.contains("mean absolute error"), "{}", ran.stderr);
    assert!(eval.get("eval_ece").is_none(), "{eval}");

    train(dir, "pairs", "pairs", &format!("{one} train.loss.reward={{}}"));
    let (eval, ran) = (evaluated(dir, "pairs"), score("pairs", "pairs"));
    let rows = told(&ran);
    let (mut losses, mut margins, mut gaps) = (Vec::new(), Vec::new(), [0.0; 10]);
    for row in &rows {
        let margin = number(&row["margin"]);
        assert_eq!(number(&row["chosen"]) - number(&row["rejected"]), margin);
        losses.push((1.0 + (-margin).exp()).ln());
        margins.push(margin);
        let confidence = 1.0 / (1.0 + (-margin.abs()).exp());
        let hit = f64::from(u8::from(margin > 0.0));
        gaps[((confidence * 10.0) as usize).min(9)] += hit - confidence;
    }
    near(mean(&losses), &eval["eval_loss"]);
    near(mean(&margins), &eval["eval_margin"]);
    near(gaps.iter().map(|gap| gap.abs()).sum::<f64>() / 7.0, &eval["eval_ece"]);
    assert!(ran.stderr.contains("mean margin"), "{}", ran.stderr);
    // The better answer by itself has the reward that it has in its pair.
    let first = json!({"prompt": "case 12", "completion": "good"});
    fs::write(dir.join("one.jsonl"), format!("{first}\n")).unwrap();
    let alone = told(&run(dir, "score --adapter pairs --precision f32 --data one.jsonl"));
    near(number(&alone[0]["score"]), &rows[0]["chosen"]);

    let data = "--model model --data numbers.jsonl --out x";
    run(dir, &format!("train {data} {one} train.loss.regress={{}} eval_ece=true"))
        .refused(&["train.eval_ece"]);
    assert!(!dir.join("x").exists());
}

#[test]
fn evaluations_tell_calibration_accuracy_and_entropy_where_they_are_asked() {
    let work = workplace();
    let dir = work.path();
    let of = |out: &str| evaluated(dir, out);
    train(dir, "numbers", "plain", "train.params.lora={r=2}");
    assert!(of("plain").get("eval_ece").is_none());
    train(dir, "numbers", "told", "train.params.lora={r=2} eval_ece=true");
    let told = of("told");
    assert_eq!(told["eval_loss"], of("plain")["eval_loss"]);
    let value = |name: &str| number(&told[name]);
    assert!((0.0..=1.0).contains(&value("eval_ece")), "{told}");
    assert!((0.0..=1.0).contains(&value("eval_token_accuracy")), "{told}");
    assert!(value("eval_entropy") > 0.0 && value("eval_entropy") < 259f64.ln(), "{told}");
    // The penalty tells the same entropy, by way of its own.
    let penalty = "train.params.lora={r=2} eval_ece=true train.loss.penalty.entropy=1e-12";
    train(dir, "numbers", "penalty", penalty);
    near(number(&of("penalty")["eval_entropy"]), &told["eval_entropy"]);
    // Pairs tell how sure the policy is of the better answer, whether asked or not.
    for more in ["", "eval_ece=true"] {
        let out = format!("dpo{}", more.len());
        train(dir, "pairs", &out, &format!("train.loss.dpo={{}} train.params.lora={{r=2}} {more}"));
        let eval = of(&out);
        assert!(number(&eval["eval_ece"]) <= 1.0 && eval.get("eval_entropy").is_none(), "{eval}");
    }
}

#[test]
fn a_reward_is_asked_whom_it_follows() {
    let work = workplace();
    let dir = work.path();
    // Two for `right`, a tenth for each character more, and nothing for the shift, which is longer.
    let row = |i: usize| {
        let (right, night) = (i.is_multiple_of(2), i * i % 7 < 2);
        let filler = "z".repeat(3 + i * 7 % 11 + if night { 12 } else { 0 });
        let answer = format!("{} {filler}", if right { "right" } else { "wrong" });
        let reward = if right { 2.0 } else { 0.0 } + answer.len() as f64 / 10.0;
        json!({
            "prompt": "x", "completion": answer, "reward": reward, "seen": i,
            "shift": if night { "night" } else { "day" },
        })
    };
    fs::write(dir.join("log.jsonl"), lines((0..220).map(row))).unwrap();
    let line = "probe confounders --data log.jsonl --words 2";
    let found = run(dir, &format!("{line} --confounders length,shift --json")).json();
    let of = |name: &str, key: &str| {
        let all = found["properties"].as_array().unwrap();
        number(
            &all.iter().find(|p| p["property"] == name).unwrap_or_else(|| panic!("{found}"))[key],
        )
    };
    assert_eq!((&found["rows"], &found["estimator"]), (&json!(220), &json!("partial")));
    assert!((of("length", "adjusted") - 0.1).abs() < 0.01, "{found}");
    // The night goes along with more reward, and adds nothing to it.
    assert!(of("shift=night", "alone") > 0.8, "{found}");
    assert!(of("shift=night", "adjusted").abs() < 0.1, "{found}");
    assert!(of("shift=night", "adjusted_correlation").abs() < 0.2, "{found}");
    let shown = run(dir, line);
    assert!(shown.text().contains("length") && shown.stderr.contains("reward"), "{}", shown.stderr);
    run(dir, &format!("{line} --outcome clicks")).refused(&["log.jsonl:1", "column clicks"]);
    run(dir, &format!("{line} --estimator ivv")).refused(&["--estimator", "iv"]);
    run(dir, &format!("{line} --estimator iv")).refused(&["instruments"]);
    run(dir, &format!("{line} --confounders reward")).refused(&["outcome"]);
}
