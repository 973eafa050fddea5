//! Distillation against TRL's and torch's numbers (`tests/golden/make_distil.py`): losses and gradients
//! by the student's logits.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use luthier_core::{Batch, Logits, Row, batch::Told};
use luthier_loss::{
    Distil, Given, Objective, Seen, Totals,
    term::distil::{INSIDE, NONE, SPAN},
};
use luthier_testkit::golden;
use serde_json::Value;

fn numbers(of: &Value) -> Vec<f32> {
    match of {
        Value::Array(all) => all.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap() as f32],
    }
}

/// A row of `n` targets that all count.
fn row(n: usize) -> Row {
    Row { ids: vec![0; n], targets: vec![1; n], weights: vec![1.0; n], ..Row::default() }
}

/// The summed loss, and its gradient by the student's logits.
fn run(distil: &Distil, student: &[f32], teacher: Option<&[f32]>, row: &Row) -> (f32, Vec<f32>) {
    distil.check().unwrap();
    let n = row.len();
    let dims = (n, student.len() / n);
    let logits_nv = Var::from_slice(student, dims, &Device::Cpu).unwrap();
    let mut out = Given(logits_nv.as_tensor().clone());
    let mut taught =
        teacher.map(|teacher| Given(Tensor::from_slice(teacher, dims, &Device::Cpu).unwrap()));
    let teacher = taught.as_mut().map(|given| given as &mut dyn Logits);
    let (batch, step) = (Batch::from_rows([row]), Totals::default());
    let seen = Seen { out: &mut out, teacher, batch: &batch, step: &step };
    let sum = distil.terms(seen).unwrap().sum;
    let store = sum.backward().unwrap();
    let gradient = store.get(&logits_nv).unwrap().flatten_all().unwrap();
    (sum.to_scalar().unwrap(), gradient.to_vec1().unwrap())
}

#[test]
fn every_divergence_has_the_peers_values_and_gradients() {
    let text = std::fs::read_to_string(golden::golden("distil.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let (student, teacher) = (numbers(&golden["student"]), numbers(&golden["teacher"]));
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 19);
    for case in cases {
        let settings = &case["settings"];
        let distil: Distil = serde_json::from_value(settings.clone()).unwrap();
        let (got, gradient) = run(&distil, &student, Some(&teacher), &row(4));
        let want: f32 = numbers(&case["losses"]).iter().sum();
        assert!((got - want).abs() < 1e-5 * (1.0 + want), "{settings}: {got} {want}");
        for (got, want) in gradient.iter().zip(numbers(&case["gradient"])) {
            assert!((got - want).abs() < 1e-5, "{settings}: {got} {want}");
        }
    }
}

#[test]
fn the_share_of_answers_is_added_and_a_padded_teacher_is_narrowed() {
    let student: Vec<f32> = (0..10).map(|i| (i as f32 * 1.3).sin()).collect();
    let teacher: Vec<f32> = (0..10).map(|i| (i as f32 * 0.7).cos()).collect();
    let share =
        |nll| run(&Distil { nll, ..Distil::default() }, &student, Some(&teacher), &row(2)).0;
    let (divergence, answers) = (share(0.0), share(1.0));
    assert!((share(0.25) - (0.75 * divergence + 0.25 * answers)).abs() < 1e-5);
    let nll = |x: &[f32]| x.iter().map(|x| x.exp()).sum::<f32>().ln() - x[1];
    assert!((answers - nll(&student[..5]) - nll(&student[5..])).abs() < 1e-5);
    // Two more entries that no token has.
    let padded: Vec<f32> = teacher.chunks(5).flat_map(|row| [row, &[9.0, 9.0]].concat()).collect();
    let logits_nv = Tensor::from_slice(&student, (2, 5), &Device::Cpu).unwrap();
    let mut given = Given(Tensor::from_vec(padded, (2, 7), &Device::Cpu).unwrap());
    let batch = Batch::from_rows([&row(2)]);
    let seen = Seen {
        out: &mut Given(logits_nv),
        teacher: Some(&mut given),
        batch: &batch,
        step: &Totals::default(),
    };
    let sum = Distil::default().terms(seen).unwrap().sum.to_scalar::<f32>().unwrap();
    assert!((sum - divergence).abs() < 1e-6, "{sum} {divergence}");
}

fn stored(text: &str) -> Distil {
    toml::from_str(&format!("cache = \"teacher.safetensors\"\n{text}")).unwrap()
}

fn told(k: usize, entries: &[(u32, f32)]) -> Option<Arc<Told>> {
    let (ids, logps) = entries.iter().copied().unzip();
    Some(Arc::new(Told { k, ids, logps }))
}

/// −log p of token `v` in the first row of five logits, and so on.
fn logp(student: &[f32], row: usize, v: usize) -> f64 {
    let x: Vec<f64> = student[5 * row..5 * row + 5].iter().map(|x| f64::from(*x)).collect();
    x[v] - x.iter().map(|x| x.exp()).sum::<f64>().ln()
}

#[test]
fn stored_tokens_are_learned_as_the_paper_says() {
    let student: Vec<f32> = (0..10).map(|i| (i as f32 * 1.3).sin()).collect();
    let p = [[0.6f32, 0.25], [0.5, 0.1]];
    let ids = [[3u32, 0], [2, 4]];
    let entries: Vec<(u32, f32)> =
        ids.iter().flatten().zip(p.iter().flatten()).map(|(id, p)| (*id, p.ln())).collect();
    let row = Row { teacher: told(2, &entries), ..row(2) };
    // First: a softmax of probabilities, against shares of the whole vocabulary.
    let (got, _) = run(&stored("calib = \"temp_prob\"\nc = 0.3"), &student, None, &row);
    let mut want = 0.0;
    for (at, (p, ids)) in p.iter().zip(ids).enumerate() {
        let e = p.map(|p| (f64::from(p) / 0.3).exp());
        for (e_i, id) in e.iter().zip(ids) {
            let q = e_i / (e[0] + e[1]);
            want += q * (q.ln() - logp(&student, at, id as usize));
        }
    }
    assert!((f64::from(got) - want).abs() < 1e-5, "{got} {want}");
    // With a bucket for the rest: a divergence of three outcomes.
    let (got, _) = run(&stored("tail = true"), &student, None, &row);
    let mut want = 0.0;
    for (at, (p, ids)) in p.iter().zip(ids).enumerate() {
        let own = ids.map(|id| logp(&student, at, id as usize).exp());
        let p = p.map(f64::from);
        let pairs = [(p[0], own[0]), (p[1], own[1]), (1.0 - p[0] - p[1], 1.0 - own[0] - own[1])];
        want += pairs.iter().map(|(r, p)| r * (r / p).ln()).sum::<f64>();
    }
    assert!((f64::from(got) - want).abs() < 1e-5, "{got} {want}");
}

#[test]
fn spans_are_compared_as_wholes_and_blanks_with_the_answers_alone() {
    let student: Vec<f32> = (0..25).map(|i| (i as f32 * 1.3).sin()).collect();
    let blank = (NONE, f32::NEG_INFINITY);
    let entries =
        [(INSIDE, 0.0), blank, (SPAN, 0.3f32.ln()), blank, blank, blank, (2, -0.5), blank];
    let entries = [&entries[..], &[(SPAN, 0.8f32.ln()), blank]].concat();
    let row = Row { teacher: told(2, &entries), ..row(5) };
    let chance = |r: f64, p: f64| r * (r / p).ln() + (1.0 - r) * ((1.0 - r) / (1.0 - p)).ln();
    let span = (logp(&student, 0, 1) + logp(&student, 1, 1)).exp();
    let q = (-0.5f64).exp();
    let want = chance(0.3, span)
        + q * (q.ln() - logp(&student, 3, 2))
        + chance(0.8, logp(&student, 4, 1).exp());
    let (got, gradient) = run(&stored(""), &student, None, &row);
    assert!((f64::from(got) - want).abs() < 1e-5, "{got} {want}");
    // Nothing was said of the third token, so nothing is learned of it.
    assert!(
        gradient[10..15].iter().all(|g| *g == 0.0) && gradient[15..20].iter().any(|g| *g != 0.0)
    );
    let answers: f64 = (0..5).map(|at| -logp(&student, at, 1)).sum();
    let (got, _) = run(&stored("nll = 0.5"), &student, None, &row);
    assert!((f64::from(got) - 0.5 * (want + answers)).abs() < 1e-5, "{got}");
}

#[test]
fn what_is_stored_for_other_targets_is_refused() {
    let refused = |teacher: Option<Arc<Told>>, part: &str| {
        let row = Row { teacher, example: 7, ..row(2) };
        let batch = Batch::from_rows([&row]);
        let logits_nv = Tensor::zeros((2, 5), candle_core::DType::F32, &Device::Cpu).unwrap();
        let seen = Seen {
            out: &mut Given(logits_nv),
            teacher: None,
            batch: &batch,
            step: &Totals::default(),
        };
        let error = stored("").terms(seen).unwrap_err().to_string();
        assert!(error.contains("example 7") && error.contains(part), "{error}");
    };
    refused(None, "nothing is stored");
    refused(told(2, &[(1, -0.1), (2, -3.0)]), "other targets");
    refused(told(1, &[(1, -0.1), (INSIDE, 0.0)]), "no end");
    refused(told(1, &[(INSIDE, 0.0), (1, -0.1)]), "no end");
}
