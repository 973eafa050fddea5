//! Calibration against torchmetrics, netcal and scikit-learn (`tests/golden/make_distil.py`).

use luthier_probe::calibration::{Calibration, Isotonic};
use luthier_testkit::golden;
use serde_json::Value;

fn recorded() -> (Value, Vec<(f64, bool)>) {
    let text = std::fs::read_to_string(golden::golden("calibration.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let list = |key: &str| golden[key].as_array().unwrap().clone();
    let answers = list("confidences").into_iter().zip(list("right"));
    let answers = answers.map(|(c, r)| (c.as_f64().unwrap(), r.as_i64() == Some(1))).collect();
    (golden, answers)
}

#[test]
fn errors_are_those_of_the_peers() {
    let (golden, answers) = recorded();
    let near = |got: f64, want: &Value, what: &str| {
        let want = want.as_f64().unwrap();
        assert!((got - want).abs() < 1e-6, "{what}: {got} {want}");
    };
    for bins in [5, 10, 15] {
        let found = Calibration::in_bins(&answers, bins).unwrap();
        near(found.ece, &golden["width"][bins.to_string()][0], "width");
        near(found.mce, &golden["width"][bins.to_string()][1], "largest");
        near(found.brier, &golden["brier"], "brier");
    }
    for bins in [5, 10] {
        let found = Calibration::in_bins(&answers, bins).unwrap();
        near(found.ece_mass, &golden["mass"][bins.to_string()], "mass");
    }
}

#[test]
fn calibrated_confidence_is_scikit_learns() {
    let (golden, answers) = recorded();
    let fit = Isotonic::fit(&answers[..250]).unwrap();
    for ((conf, _), want) in answers[250..].iter().zip(golden["isotonic"].as_array().unwrap()) {
        let want = want.as_f64().unwrap();
        assert!((fit.of(*conf) - want).abs() < 1e-6, "{conf}: {} {want}", fit.of(*conf));
    }
}
