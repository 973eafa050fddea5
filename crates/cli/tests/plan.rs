//! What `luthier plan` says of groups of variables and of rounds, what a run then does, and what the
//! Fisher probe gives it.

mod support;

use std::{fs, path::Path};

use luthier_core::StateDict;
use support::{pico, run};

fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    pico(&dir.path().join("model"), 1);
    for (file, rows) in [("first.jsonl", 0..6), ("second.jsonl", 6..10)] {
        let row =
            |i| format!("{{\"prompt\": \"{i} and {i}\", \"completion\": \"makes {}\"}}\n", 2 * i);
        fs::write(dir.path().join(file), rows.map(row).collect::<String>()).unwrap();
    }
    dir
}

#[test]
fn every_group_is_told_with_its_form_share_and_rates() {
    let work = workplace();
    let dir = work.path();
    let recipe = "[models]\npolicy = \"model\"\n[data]\ntrain = \"first.jsonl\"\n[train]\n\
        [train.params.lora]\nr = 2\nat = [\"layers.*.attn.q\"]\n[train.params.tokens]\ntoken_indices = [3, 4]\n\
        [train.update]\nloraplus_lr_ratio = 16.0\n[train.update.adamw]\nlearning_rate = 1e-4\n";
    fs::write(dir.join("r.toml"), recipe).unwrap();
    let plan = run(dir, "plan r.toml --json").json();
    let groups = plan["params"].as_array().unwrap();
    let of =
        |name: &str| groups.iter().find(|g| g["name"] == name).unwrap_or_else(|| panic!("{plan}"));
    let a = of("layers.*.attn.q.lora_A");
    let b = of("layers.*.attn.q.lora_B");
    assert_eq!((&a["form"], &a["variables"]), (&"lora".into(), &2.into()));
    assert_eq!(a["learning_rate"], serde_json::json!([1e-4, 1e-4]));
    let rate = b["learning_rate"][0].as_f64().unwrap();
    assert!((rate - 1.6e-3).abs() < 1e-12, "{b}");
    let other = groups.iter().find(|g| g["form"] == "tokens").unwrap();
    assert_eq!(other["variables"], 1);
    let parameters = plan["model"]["parameters"].as_f64().unwrap();
    let mut sum = 0;
    for group in groups {
        let count = group["count"].as_u64().unwrap();
        assert!((group["share"].as_f64().unwrap() - count as f64 / parameters).abs() < 1e-12);
        sum += count;
    }
    assert_eq!(plan["trainable"], sum);
    let tree = run(dir, "plan r.toml");
    let line = tree.text().lines().find(|line| line.contains("lora_B")).unwrap();
    assert!(line.contains("lora ") && line.contains("×2") && line.ends_with("1.6e-3"), "{line}");
}

#[test]
fn sequential_files_are_rounds_in_their_order() {
    let work = workplace();
    let dir = work.path();
    let recipe = "[models]\npolicy = \"model\"\n[data]\ntrain = [\"second.jsonl\", \"first.jsonl\"]\n\
        sequential = true\n[train]\nepochs = 1\nbatch_size = 2\n[train.params.half]\n\
        [train.update.adamw]\nlearning_rate = 1e-3\n";
    fs::write(dir.join("r.toml"), recipe).unwrap();
    // 4 and 6 rows by two, never a step with rows of both.
    assert_eq!(run(dir, "plan r.toml --json").json()["steps"], 5);
    assert_eq!(run(dir, "train r.toml --out both --json").json()["steps"], 5);
    let text = fs::read_to_string(dir.join("both/metrics.jsonl")).unwrap();
    let rate = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["learning_rate"].as_f64().filter(|_| line["loss"].is_number())
    };
    let rates: Vec<f64> = text.lines().filter_map(rate).collect();
    // The schedule of the second round begins anew.
    assert_eq!(rates.len(), 5);
    assert!(rates[1] < rates[0] && rates[2] == rates[0] && rates[4] < rates[3], "{rates:?}");
    // The first round alone is a run on the first file.
    let one = recipe.replace("[\"second.jsonl\", \"first.jsonl\"]", "\"second.jsonl\"");
    fs::write(dir.join("one.toml"), &one).unwrap();
    run(dir, "train one.toml --out one").refused(&["data.sequential", "second.jsonl"]);
    let lottery = recipe.replace("[train.params.half]", "[train.params.sparse.lottery]");
    fs::write(dir.join("lottery.toml"), lottery).unwrap();
    run(dir, "train lottery.toml --out l").refused(&["data.sequential", "continue_from"]);
}

#[test]
fn fisher_values_are_a_mean_over_rows_and_hold_weights_back() {
    let work = workplace();
    let dir = work.path();
    let recipe = "[models]\npolicy = \"model\"\n[data]\ntrain = \"first.jsonl\"\n[train]\n\
        max_steps = 4\nbatch_size = 4\n[train.params.full]\n[train.update.adamw]\n\
        learning_rate = 1e-3\nweight_decay = 0.0\n";
    let ewc = format!("{recipe}[train.update.ewc]\nlambda = 1e9\nfisher = \"both.safetensors\"\n");
    fs::write(dir.join("plain.toml"), recipe).unwrap();
    fs::write(dir.join("ewc.toml"), ewc).unwrap();
    let rows = fs::read_to_string(dir.join("first.jsonl")).unwrap();
    let rows: Vec<&str> = rows.lines().take(2).collect();
    for (name, text) in
        [("a", rows[0].to_string()), ("b", rows[1].into()), ("both", rows.join("\n"))]
    {
        fs::write(dir.join(format!("{name}.jsonl")), text + "\n").unwrap();
        let line =
            format!("probe fisher ewc.toml --data {name}.jsonl --out {name}.safetensors --json");
        let done = run(dir, &line).json();
        assert_eq!(done["rows"], if name == "both" { 2 } else { 1 });
    }
    let load = |name: &str| StateDict::load(&dir.join(format!("{name}.safetensors"))).unwrap();
    let (a, b, both) = (load("a"), load("b"), load("both"));
    assert_eq!((a.len(), b.len()), (both.len(), both.len()));
    let mut largest = 0f32;
    for (name, mean) in both.iter() {
        let numbers = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (x, y) = (numbers(a.get(name).unwrap()), numbers(b.get(name).unwrap()));
        for ((x, y), mean) in x.iter().zip(&y).zip(numbers(mean)) {
            assert!((mean - 0.5 * (x + y)).abs() <= 1e-6 * mean, "{name}: {x} {y} {mean}");
            largest = largest.max(mean);
        }
    }
    assert!(largest > 0.0);
    run(dir, "probe fisher ewc.toml --data a.jsonl --out a.safetensors")
        .refused(&["a.safetensors"]);
    for (recipe, out) in [("plain.toml", "free"), ("ewc.toml", "held")] {
        run(dir, &format!("train {recipe} --out {out}")).text();
    }
    let moved = |out: &str| {
        let load =
            |folder: &str| StateDict::load(&dir.join(folder).join("model.safetensors")).unwrap();
        let (base, tuned) = (load("model"), load(out));
        let square = |(name, base): (&str, &candle_core::Tensor)| {
            let change = (tuned.get(name).unwrap() - base).unwrap();
            change.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
        };
        base.iter().map(square).sum::<f32>()
    };
    let (free, held) = (moved("free"), moved("held"));
    assert!(held < free, "{held} {free}");
}

/// The bytes of all tensors of a model's folder in f32.
fn bytes_of(dir: &Path, model: &str) -> u64 {
    let state = StateDict::load(&dir.join(model).join("model.safetensors")).unwrap();
    state.iter().map(|(_, tensor)| 4 * tensor.elem_count() as u64).sum()
}

#[test]
fn the_estimate_counts_every_model_that_is_held_and_the_logits_that_exist() {
    let work = workplace();
    let dir = work.path();
    pico(&dir.join("other"), 2);
    let row = |i: usize| {
        let answer = "c".repeat(90);
        format!("{{\"prompt\": \"a{i}\", \"reference\": \"b\", \"completion\": \"{answer}\"}}\n")
    };
    fs::write(dir.join("long.jsonl"), (0..8).map(row).collect::<String>()).unwrap();
    let pair = "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\n";
    fs::write(dir.join("pairs.jsonl"), pair.repeat(4)).unwrap();
    let memory = |data: &str, more: &str| {
        let line = format!("plan --model model --data {data}.jsonl precision=f32 {more} --json");
        run(dir, &line).json()["memory"].clone()
    };
    let of = |memory: &serde_json::Value, key: &str| memory[key].as_u64().unwrap();
    let whole = bytes_of(dir, "model");
    let weights = |data: &str, more: &str| of(&memory(data, more), "weights");
    let (full, lora) = ("train.params.full={}", "train.params.lora={r=2}");
    // All weights learn and none rests, unless the model is compared with itself as it was.
    assert_eq!(weights("long", full), 0);
    assert_eq!(weights("long", &format!("{full} train.loss.penalty.kl=0.1")), whole);
    assert_eq!(weights("long", &format!("{full} train.loss.penalty.entropy=0.1")), 0);
    // What the policy said of pairs is a number for each: no second model.
    assert_eq!(weights("pairs", &format!("{full} train.loss.dpo={{}}")), 0);
    // Without its hooks the model beside an adapter is the base.
    assert_eq!(weights("long", lora), whole);
    assert_eq!(weights("long", &format!("{lora} train.loss.penalty.kl=0.1")), whole);
    let distil = "train.loss.distil={} models.teacher=other";
    assert_eq!(weights("long", &format!("{lora} {distil}")), whole + bytes_of(dir, "other"));
    assert_eq!(weights("long", &format!("{full} {distil}")), bytes_of(dir, "other"));
    // Logits of 64 tokens over 259: two tables of each distribution.
    let table = 2 * 64 * 259 * 4;
    let plain = of(&memory("long", lora), "activations");
    let more = |loss: &str| of(&memory("long", &format!("{lora} {loss}")), "activations") - plain;
    assert_eq!(more("train.loss.nll={label_smoothing=0.1}"), table);
    assert_eq!(more("train.loss.penalty.entropy=0.1"), table);
    assert_eq!(more("train.loss.penalty.kl=0.1"), 2 * table);
    assert_eq!(more(distil), 2 * table);
    let align = |share: &str| {
        let loss = format!("{lora} train.loss.align={{lambda_kl={share}}}");
        of(&memory("long", &loss), "activations")
    };
    assert_eq!(align("0.8") - align("0.0"), 2 * table);
}
