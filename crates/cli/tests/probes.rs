//! Probes of two models: graft, sharpness, diversity, tuco.

mod support;

use std::{fs, path::Path};

use luthier_core::StateDict;
use serde_json::{Value, json};
use support::{adapter, pico, run};

fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let base = pico(&dir.path().join("m"), 1);
    adapter(&base, &dir.path().join("a"));
    // A model whose blocks are the adapter's, as a folder of its own.
    let fold = "fold --model m --adapter a --out tuned";
    assert_eq!(run(dir.path(), fold).code, 0);
    let rows = ["one?", "two?", "three?", "and four?"]
        .iter()
        .zip(1..)
        .map(|(prompt, n)| json!({"prompt": prompt, "completion": n.to_string()}).to_string());
    fs::write(dir.path().join("qa.jsonl"), rows.collect::<Vec<_>>().join("\n")).unwrap();
    let questions = (0..6).map(|i| {
        json!({"prompt": format!("{i}?"), "choices": ["a", "b", "c"], "label": i % 3}).to_string()
    });
    fs::write(dir.path().join("choice.jsonl"), questions.collect::<Vec<_>>().join("\n")).unwrap();
    dir
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {value}"))
}

fn nll(dir: &Path, model: &str) -> f64 {
    let line = format!("eval {model} --data qa.jsonl --metric nll --precision f32 --json");
    number(&run(dir, &line).json(), "nll")
}

#[test]
fn a_graft_is_a_mask_that_a_merge_takes() {
    let dir = workplace();
    let dir = dir.path();
    let line = "probe graft -a a --data qa.jsonl --sparsity-level 0.05 --learning-rate 1e5";
    let found = run(dir, &format!("{line} --steps 3 --out mask.safetensors --json")).json();
    // The likelihoods are those of the models, the folded one's the same as the adapter's.
    assert!((number(&found, "base") - (-nll(dir, "-m m")).exp()).abs() < 1e-5);
    assert!((number(&found, "tuned") - (-nll(dir, "-m m -a a")).exp()).abs() < 1e-5);
    assert!((1..=3).contains(&found["step"].as_u64().unwrap()));
    let merge = "merge_method: graft\nbase_model: m\nmodels: [{model: tuned, mask: mask.safetensors}]\n\
        out_dtype: float32\n";
    fs::write(dir.join("m.yml"), merge).unwrap();
    assert_eq!(run(dir, "merge m.yml --out grafted").code, 0);
    assert!((number(&found, "graft") - (-nll(dir, "-m grafted")).exp()).abs() < 1e-5);
    let mask = StateDict::load(&dir.join("mask.safetensors")).unwrap();
    let (mut ones, mut all) = (0.0, 0.0);
    for (name, bits) in mask.iter() {
        assert!(name.contains("layers"), "{name}");
        let bits: Vec<f32> = bits.flatten_all().unwrap().to_vec1().unwrap();
        assert!(bits.iter().all(|bit| [0.0, 1.0].contains(bit)), "{name}");
        ones += f64::from(bits.iter().sum::<f32>());
        all += bits.len() as f64;
    }
    assert!((number(&found, "share") - ones / all).abs() < 1e-9);
    // Without steps it is the largest changes, of one layer here.
    let one = "probe graft -m tuned --base m --data qa.jsonl --sparsity-level 0.05 --steps 0";
    let ran = run(dir, &format!("{one} --filter layers.1.mlp --out one.safetensors"));
    assert_eq!(ran.text(), "one.safetensors\n");
    let one = StateDict::load(&dir.join("one.safetensors")).unwrap();
    assert_eq!(one.iter().count(), 3);

    run(dir, &format!("{line} --out mask.safetensors")).refused(&["mask.safetensors", "already"]);
    run(dir, &format!("{line} --filter layer.9 --out x")).refused(&["--filter", "layer.9"]);
    run(dir, "probe graft -m tuned --data qa.jsonl --out x").refused(&["--base"]);
}

#[test]
fn sharpness_is_of_the_whole_and_of_layers_and_swaps_find_what_costs_the_base() {
    let dir = workplace();
    let dir = dir.path();
    let line = "probe sharpness -m tuned --data qa.jsonl --n-steps 4";
    let alone = run(dir, &format!("{line} --json")).json();
    assert!((number(&alone, "loss") - nll(dir, "-m tuned")).abs() < 1e-4);
    assert!(number(&alone, "sharpness") > 0.0 && alone["layers"] == json!([]));
    let larger = number(&run(dir, &format!("{line} --rho 0.1 --json")).json(), "sharpness");
    assert!(larger > number(&alone, "sharpness"));
    let both = run(dir, &format!("{line} --base m --by-layer --stragglers 0.2 --json")).json();
    assert_eq!(both["sharpness"], alone["sharpness"]);
    let layers = both["layers"].as_array().unwrap();
    let names: Vec<&str> = layers.iter().map(|row| row["layer"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "layers.0",
            "layers.1",
            "lm_head.weight",
            "model.embed_tokens.weight",
            "model.norm.weight"
        ]
    );
    for row in layers {
        assert!(number(row, "sharpness") <= number(&alone, "sharpness") + 1e-9, "{row}");
        // The adapter is in the blocks.
        let moved = row["layer"].as_str().unwrap().starts_with("layers");
        assert_eq!(number(row, "moved") > 0.0, moved);
        assert_eq!(number(row, "forward") != 0.0, moved);
    }
    let worst = layers.iter().min_by(|a, b| number(a, "forward").total_cmp(&number(b, "forward")));
    assert_eq!(worst.unwrap()["straggler"], true);
    assert_eq!(layers.iter().filter(|row| row["straggler"] == true).count(), 1);
    // The adapter by itself is the folded model.
    let adapted = run(dir, "probe sharpness -a a --data qa.jsonl --n-steps 4 --json").json();
    assert!((number(&adapted, "sharpness") - number(&alone, "sharpness")).abs() < 1e-4);
    let text = run(dir, &format!("{line} --base m --average --n-draws 2"));
    assert!(
        text.text().starts_with("loss ") && text.text().contains("straggler"),
        "{}",
        text.stdout
    );
    run(dir, &format!("{line} --rho=-1")).refused(&["rho"]);
}

#[test]
fn diversity_counts_who_is_right_where() {
    let dir = workplace();
    let dir = dir.path();
    pico(&dir.join("other"), 5);
    let line = "probe diversity -m m --other other --data choice.jsonl";
    let found = run(dir, &format!("{line} --json")).json();
    let accuracy = |model: &str| {
        let line =
            format!("eval -m {model} --data choice.jsonl --metric choice --precision f32 --json");
        number(&run(dir, &line).json(), "value")
    };
    fs::write(
        dir.join("m.yml"),
        "merge_method: linear\nmodels: [{model: m}, {model: other}]\nparameters: {weight: 1}\n\
            out_dtype: float32\n",
    )
    .unwrap();
    assert_eq!(run(dir, "merge m.yml --out mean").code, 0);
    let want = ["m", "other", "mean"].map(accuracy);
    assert_eq!(found["accuracy"], json!(want));
    let cells = found["cells"].as_object().unwrap();
    assert!((cells.values().filter_map(Value::as_f64).sum::<f64>() - 1.0).abs() < 1e-9);
    assert_eq!(
        number(&found, "net"),
        number(&found["cells"], "FFT") - number(&found["cells"], "TTF")
    );
    assert!((0..3).all(|i| number(&found["calibration"][i], "confidence") > 1.0 / 3.0));
    let named = run(dir, &format!("{line} --average mean --json")).json();
    assert_eq!(named["cells"], found["cells"]);
    let adapted =
        run(dir, "probe diversity -m m+a --other tuned --data choice.jsonl --json").json();
    // The same model twice: all three agree.
    assert_eq!(number(&adapted, "net"), 0.0);
    assert_eq!(number(&adapted["cells"], "FFF") + number(&adapted["cells"], "TTT"), 1.0);
    assert!(run(dir, line).text().contains("net "));
    let likelihoods = line.replace("choice.jsonl", "qa.jsonl --metric nll");
    run(dir, &likelihoods).refused(&["--metric", "0 or 1"]);
}

#[test]
fn tuco_is_the_share_of_tuning_in_a_pass() {
    let dir = workplace();
    let dir = dir.path();
    let line = "probe tuco --data qa.jsonl --precision f32";
    let found = run(dir, &format!("{line} -a a --json")).json();
    let prompts = found["prompts"].as_array().unwrap();
    assert_eq!((found["n"].as_u64(), prompts.len()), (Some(4), 4));
    assert!(prompts.iter().all(|row| (0.0..1.0).contains(&number(row, "tuco"))));
    let mean = prompts.iter().map(|row| number(row, "tuco")).sum::<f64>() / 4.0;
    assert!((number(&found, "tuco") - mean).abs() < 1e-12 && mean > 0.01);
    let folded = run(dir, &format!("{line} -m tuned --base m --json")).json();
    assert!((number(&folded, "tuco") - mean).abs() < 1e-4);
    let none = run(dir, &format!("{line} -m m --base m --json")).json();
    assert_eq!((number(&none, "tuco"), number(&none, "output_co")), (0.0, 0.0));
    assert!(run(dir, &format!("{line} -a a")).text().contains("qa.jsonl:1"));
    run(dir, &format!("{line} -m m")).refused(&["--base"]);
}
