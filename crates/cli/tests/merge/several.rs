//! Several merges in one file: they take one another, and leave one folder.

use std::fs;

use crate::{merge, support::pico};

const SEVERAL: &str = "\
merge_method: slerp
base_model: mean
models: [{model: mean}, {model: scaled}]
parameters: {t: 0.3}
out_dtype: float32
---
name: scaled
merge_method: task_arithmetic
base_model: a
models: [{model: mean, parameters: {weight: 0.5}}]
out_dtype: float32
---
name: mean
merge_method: linear
models: [{model: a}, {model: b}]
parameters: {weight: 1}
out_dtype: float32
";

#[test]
fn documents_take_one_another_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    for (name, seed) in [("a", 1), ("b", 2)] {
        pico(&at.join(name), seed);
    }
    let report = merge(at, SEVERAL, "out").json();
    assert_eq!((&report["method"], &report["model"]), (&"slerp".into(), &"out".into()));
    assert_eq!(fs::read_to_string(at.join("out/mergekit_config.yml")).unwrap(), SEVERAL);
    // Nothing but the result is left.
    let names = fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name != "home").collect();
    names.sort();
    assert_eq!(names, ["a", "b", "m.yml", "out"]);
    // By hand, one after the other.
    let mut parts: Vec<&str> = SEVERAL.split("---\n").collect();
    parts.rotate_left(2);
    parts.swap(1, 2);
    for (name, text) in ["mean", "scaled", "alone"].into_iter().zip(parts) {
        let text: String =
            text.lines().filter(|l| !l.starts_with("name:")).flat_map(|l| [l, "\n"]).collect();
        let ran = merge(at, &text, name);
        assert_eq!(ran.code, 0, "{name}: {}", ran.stderr);
    }
    let weights = |name: &str| fs::read(at.join(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("out"), weights("alone"));
    // The names are folders now, which could be meant.
    merge(at, SEVERAL, "twice").refused(&["m.yml", "scaled", "a folder that is there"]);
}

#[test]
fn what_goes_wrong_in_one_of_them_names_it_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    pico(&at.join("a"), 1);
    let text = SEVERAL.replace("{model: b}", "{model: ./nowhere}");
    let ran = merge(at, &text, "out");
    assert!(ran.code != 0 && ran.stderr.contains("mean: "), "{}", ran.stderr);
    let names = fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.contains("out")));
    merge(at, &SEVERAL.replace("{model: b}", "{model: scaled}"), "out")
        .refused(&["mean takes scaled takes mean"]);
}
