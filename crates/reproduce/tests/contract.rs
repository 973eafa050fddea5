//! The contract of a check's outcome, with a check that takes no time, and the file it is kept in.

use luthier_core::Result;
use luthier_recipe::methods::MERGES;
use luthier_reproduce::{Inequality, Lab, Limit, Measured, PAPERS, Paper, results};
use serde_json::Value;

/// Arm b is one above arm a.
fn quick(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        measured.add("a", "points", seed as f64);
        measured.add("b", "points", seed as f64 + 1.0);
    }
    let (a, b) = (measured.values("a", "points")?, measured.values("b", "points")?);
    let better = Inequality::paired("points, b − a", b, a, Limit::AtLeast(1.0));
    let much_better = Inequality::paired("points, b − a", b, a, Limit::AtLeast(2.0));
    measured.claim(better);
    measured.claim(much_better.aside());
    Ok(measured)
}

const QUICK: Paper = Paper {
    number: 98,
    title: "nothing",
    claim: "b is better than a",
    recipes: &["recipes/full/sft.toml"],
    seeds: 3,
    run: quick,
};

fn report(seeds: usize) -> luthier_reproduce::Report {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::at(dir.path().into(), seeds, false, &|_| ()).unwrap();
    QUICK.run(&lab).unwrap()
}

#[test]
fn the_outcome_has_the_keys_of_the_contract_and_no_others() {
    let text = serde_json::to_string(&report(3)).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["paper", "claim", "measured", "holds", "seeds", "seconds"]);
    assert!(
        text.starts_with(r#"{"paper":98,"claim":"b is better than a","measured":{"arms":{"a":{"#)
    );
    assert_eq!((&value["holds"], &value["seeds"]), (&Value::Bool(true), &Value::from(3)));
    assert!(value["seconds"].as_f64().unwrap() >= 0.0);
    let b = &value["measured"]["arms"]["b"]["points"];
    assert_eq!((b["mean"].as_f64(), b["standard_error"].as_f64()), (Some(3.0), Some(0.5774)));
    let aside = &value["measured"]["inequalities"][1];
    assert_eq!((&aside["holds"], &aside["essential"]), (&Value::Bool(false), &Value::Bool(false)));
}

#[test]
fn one_seed_has_no_error() {
    let value = serde_json::to_value(report(1)).unwrap();
    assert!(value["measured"]["arms"]["a"]["points"]["standard_error"].is_null());
    assert!(Lab::at("x".into(), 0, false, &|_| ()).is_err());
}

#[test]
fn a_record_takes_the_place_of_the_earlier_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.json");
    let missing = results::record(&path, &QUICK, &report(2)).unwrap_err();
    assert!(missing.to_string().contains("--record=FILE"), "{missing}");
    std::fs::write(&path, r#"[{"paper": 99}, {"paper": 98, "seeds": 1}, {"paper": 7}]"#).unwrap();
    results::record(&path, &QUICK, &report(2)).unwrap();
    let all: Vec<Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let numbers: Vec<u64> = all.iter().map(|e| e["paper"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [7, 98, 99]);
    assert_eq!((&all[1]["seeds"], &all[1]["title"]), (&Value::from(2), &Value::from("nothing")));
}

#[test]
fn papers_are_known_by_number_and_run_published_recipes() {
    let mut numbers: Vec<u32> = PAPERS.iter().map(|p| p.number).collect();
    let listed = numbers.clone();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(listed, numbers);
    for paper in PAPERS {
        assert!(!paper.claim.is_empty() && paper.seeds >= 3, "{}", paper.number);
        // A merge's file has no settings of a training.
        let merges = |path: &&&str| MERGES.iter().any(|(known, _)| known == *path);
        for path in paper.recipes.iter().filter(|path| !merges(path)) {
            luthier_reproduce::recipe(path, &[]).unwrap_or_else(|e| panic!("{path}: {e}"));
        }
    }
    let error = Paper::find(99).err().unwrap();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().starts_with("paper 99: there is no check for it"), "{error}");
}

/// The committed file is what `--record` would write: of known papers, by number.
#[test]
fn the_recorded_results_are_of_papers_that_have_a_check() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/results.json");
    let all: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let numbers: Vec<u32> =
        all.iter().map(|e| u32::try_from(e["paper"].as_u64().unwrap()).unwrap()).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    for (number, entry) in numbers.iter().zip(&all) {
        let paper = Paper::find(*number).unwrap();
        assert_eq!(entry["claim"], paper.claim, "paper {number}: run the check again");
    }
}
