//! Losses of single answers and of heads against TRL's and torch's values
//! (`tests/golden/make_preferences.py`).

use candle_core::{Device, Var};
use luthier_core::{Batch, Result, Row};
use luthier_loss::{Loss, Objective, Seen, Terms, Totals};
use luthier_testkit::{Said, golden};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Golden {
    unpaired: Unpaired,
    rewards: Rewards,
}

#[derive(Deserialize)]
struct Unpaired {
    labels: Vec<bool>,
    logps: Vec<Vec<f32>>,
    kl_logps: Vec<Vec<f32>>,
    references: Vec<f64>,
    kl_references: Vec<f64>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    key: String,
    settings: Value,
    loss: f64,
    /// The baseline.
    told: f64,
    gradient: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Rewards {
    rewards: Vec<[f32; 2]>,
    cases: Vec<RewardCase>,
}

#[derive(Deserialize)]
struct RewardCase {
    settings: Value,
    margins: Option<Vec<f64>>,
    loss: f64,
    gradient: Vec<[f32; 2]>,
}

fn recorded() -> Golden {
    let text = std::fs::read_to_string(golden::golden("preferences.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn terms(objective: &dyn Objective, said: &mut Said, batch: &Batch) -> Result<Terms> {
    let step = Totals::of([batch]);
    objective.terms(Seen { out: said, teacher: None, batch, step: &step })
}

fn close(got: f64, want: f64, name: &str) {
    assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{name}: {got} {want}");
}

/// A row of one token of prompt and an answer of `n`.
fn row(n: usize, label: bool, reference: f64) -> Row {
    let weights = [vec![0.0], vec![1.0; n]].concat();
    let ids = vec![0; n + 1];
    let label = f64::from(u8::from(label));
    Row { ids: ids.clone(), targets: ids, weights, label, reference, ..Row::default() }
}

/// A group of one row more than there are, which counts for nothing.
fn group(given: &Unpaired, mismatched: bool) -> (Vec<Row>, Vec<f32>) {
    let (mut rows, mut said) = (Vec::new(), Vec::new());
    let mut add = |logps: &[Vec<f32>], references: &[f64]| {
        for ((logps, reference), label) in logps.iter().zip(references).zip(&given.labels) {
            rows.push(row(logps.len(), *label, *reference));
            said.push(-9.0);
            said.extend(logps);
        }
        rows.push(Row { weights: vec![0.0; 2], ..row(1, true, 5.0) });
        said.extend([-3.0; 2]);
    };
    add(&given.logps, &given.references);
    if mismatched {
        add(&given.kl_logps, &given.kl_references);
    }
    (rows, said)
}

#[test]
fn wanted_and_unwanted_answers_cost_what_trl_says() {
    let given = recorded().unpaired;
    assert_eq!(given.cases.len(), 5);
    for case in &given.cases {
        let name = format!("{} {}", case.key, case.settings);
        let mut settings = case.settings.clone();
        settings["group"] = json!(given.labels.len() + 1);
        let text = json!({ case.key.as_str(): settings });
        let loss: Loss = serde_json::from_value(text).unwrap();
        let objective = loss.objective().unwrap();
        let apo = case.settings["loss_type"] == "apo_zero_unpaired";
        let mismatched = case.key == "kto" && !apo;
        let (rows, said) = group(&given, mismatched);
        assert_eq!(rows.len() % objective.unit().rows(), 0, "{name}");
        let batch = Batch::from_rows(&rows);
        let mut said =
            Said(Var::from_slice(&said, said.len(), &Device::Cpu).unwrap().as_tensor().clone());
        let terms = terms(objective.as_ref(), &mut said, &batch).unwrap();
        let by = objective.normaliser(&[&batch]);
        assert_eq!(by, given.labels.len() as f64, "{name}");
        close(f64::from(terms.sum.to_scalar::<f32>().unwrap()) / by, case.loss, &name);
        let baseline = terms.logs.iter().find(|log| ["kl", "delta"].contains(&log.name));
        close(baseline.map_or(0.0, |log| log.sum / log.weight), case.told, &name);
        let grads = terms.sum.backward().unwrap();
        let found: Vec<f32> = grads.get(&said.0).unwrap().to_vec1().unwrap();
        let mut found = found.into_iter();
        for want in &case.gradient {
            assert_eq!(found.next(), Some(0.0), "{name}: prompt");
            for want in want {
                close(f64::from(found.next().unwrap()) / by, f64::from(*want), &name);
            }
        }
        assert!(found.all(|g| g == 0.0), "{name}: rows that count for nothing");
    }
}

#[test]
fn a_baseline_is_never_below_nothing() {
    let mut given = recorded().unpaired;
    given.kl_references.iter_mut().for_each(|reference| *reference += 100.0);
    let (rows, said) = group(&given, true);
    let batch = Batch::from_rows(&rows);
    let mut said =
        Said(Var::from_slice(&said, said.len(), &Device::Cpu).unwrap().as_tensor().clone());
    let loss: Loss = toml::from_str("[kto]\ngroup = 6").unwrap();
    let terms = terms(loss.objective().unwrap().as_ref(), &mut said, &batch).unwrap();
    assert_eq!(terms.logs.iter().find(|log| log.name == "kl").unwrap().sum, 0.0);
}

/// Rows of which the last token counts `weight`.
fn judged(labels: &[f64], weight: f32) -> Batch {
    let row = |(example, label): (usize, &f64)| {
        let n = 1 + example % 3;
        let mut weights = vec![0.0; n];
        weights[n - 1] = weight;
        Row {
            ids: vec![0; n],
            targets: vec![0; n],
            weights,
            example,
            label: *label,
            ..Row::default()
        }
    };
    Batch::from_rows(&labels.iter().enumerate().map(row).collect::<Vec<Row>>())
}

/// Scores at the last token of every row, and others before it.
fn scores(batch: &Batch, of: &[Vec<f32>]) -> Said {
    let labels = of[0].len();
    let mut all = vec![7.5f32; batch.n() * labels];
    for (row, of) in of.iter().enumerate() {
        let last = batch.rows.range(row).end - 1;
        all[last * labels..][..labels].copy_from_slice(of);
    }
    Said(Var::from_slice(&all, (batch.n(), labels), &Device::Cpu).unwrap().as_tensor().clone())
}

/// The gradient at the last token of every row; it must be 0 before it.
fn slopes(terms: &Terms, said: &Said, batch: &Batch) -> Vec<Vec<f64>> {
    let grads = terms.sum.backward().unwrap();
    let all: Vec<Vec<f32>> = grads.get(&said.0).unwrap().to_vec2().unwrap();
    let of = |row: usize| {
        let range = batch.rows.range(row);
        assert!(all[range.start..range.end - 1].iter().flatten().all(|g| *g == 0.0));
        all[range.end - 1].iter().map(|g| f64::from(*g)).collect()
    };
    (0..batch.rows.b()).map(of).collect()
}

#[test]
fn rewards_cost_what_trl_says() {
    let given = recorded().rewards;
    assert_eq!(given.cases.len(), 3);
    for case in &given.cases {
        let name = format!("{} {:?}", case.settings, case.margins);
        let loss: Loss = serde_json::from_value(json!({ "reward": case.settings })).unwrap();
        let margin = |i: usize| case.margins.as_ref().map_or(0.0, |margins| margins[i / 2]);
        let labels: Vec<f64> = (0..6).map(margin).collect();
        let batch = judged(&labels, 1.0);
        let of: Vec<Vec<f32>> = given.rewards.iter().flatten().map(|r| vec![*r]).collect();
        let mut said = scores(&batch, &of);
        let objective = loss.objective().unwrap();
        let terms = terms(objective.as_ref(), &mut said, &batch).unwrap();
        let by = objective.normaliser(&[&batch]);
        close(f64::from(terms.sum.to_scalar::<f32>().unwrap()) / by, case.loss, &name);
        let got = slopes(&terms, &said, &batch);
        for (got, want) in got.iter().zip(case.gradient.iter().flatten()) {
            close(got[0] / by, f64::from(*want), &name);
        }
        let accuracy = terms.logs.iter().find(|log| log.name == "accuracy").unwrap();
        assert_eq!((accuracy.sum, accuracy.weight), (2.0, 3.0));
    }
}

#[test]
fn a_label_costs_its_cross_entropy() {
    // torch.nn.functional.cross_entropy([[1, 2, 0.5], [-1, 0, 3]], [1, 0], label_smoothing=0.1,
    // reduction="none"), and its gradient's first row.
    let batch = judged(&[1.0, 0.0], 0.5);
    let mut said = scores(&batch, &[vec![1.0, 2.0, 0.5], vec![-1.0, 0.0, 3.0]]);
    let loss: Loss = toml::from_str("[classify]\nlabel_smoothing = 0.1").unwrap();
    let objective = loss.objective().unwrap();
    let terms = terms(objective.as_ref(), &mut said, &batch).unwrap();
    let softmax = |x: [f64; 3]| {
        let z: f64 = x.iter().map(|x| x.exp()).sum();
        x.map(|x| x.exp() / z)
    };
    let (p, q) = (softmax([1.0, 2.0, 0.5]), softmax([-1.0, 0.0, 3.0]));
    let cost = |p: [f64; 3], label: usize| {
        -0.9 * p[label].ln() - 0.1 / 3.0 * p.iter().map(|p| p.ln()).sum::<f64>()
    };
    let want = 0.5 * (cost(p, 1) + cost(q, 0));
    close(f64::from(terms.sum.to_scalar::<f32>().unwrap()), want, "sum");
    assert_eq!(objective.normaliser(&[&batch]), 1.0);
    let got = slopes(&terms, &said, &batch);
    for (i, got) in got[0].iter().enumerate() {
        let wanted = 0.1 / 3.0 + if i == 1 { 0.9 } else { 0.0 };
        close(*got, 0.5 * (p[i] - wanted), "slope");
    }
    let accuracy = terms.logs[0];
    assert_eq!((accuracy.name, accuracy.sum, accuracy.weight), ("accuracy", 0.5, 1.0));
}

#[test]
fn heads_and_labels_that_do_not_fit_are_refused() {
    let refused = |text: &str, labels: &[f64], of: &[Vec<f32>]| {
        let batch = judged(labels, 1.0);
        let mut said = scores(&batch, of);
        let loss: Loss = toml::from_str(text).unwrap();
        let objective = loss.objective().unwrap();
        terms(objective.as_ref(), &mut said, &batch).unwrap_err().to_string()
    };
    let two = [vec![0.1, 0.2], vec![0.3, 0.4]];
    assert!(refused("[classify]", &[0.0, 2.0], &two).contains("from 0 to 1, got 2"));
    assert!(refused("[classify]", &[0.5, 1.0], &two).contains("got 0.5"));
    assert!(refused("[regress]", &[0.0, 1.0], &two).contains("one label, this one has 2"));
    assert!(refused("[reward]", &[0.0, 0.0], &two).contains("one label"));
    let one = [vec![0.1], vec![0.3]];
    assert!(refused("[reward]\nloss_type = \"bce\"", &[0.0, 3.0], &one).contains("got 3"));
}

#[test]
fn numbers_are_learned_by_squares_or_as_odds() {
    let batch = judged(&[1.0, 0.25], 2.0);
    let of = [vec![0.5f32], vec![-1.0]];
    for text in ["[regress]", "[reward]\nloss_type = \"mse\""] {
        let mut said = scores(&batch, &of);
        let loss: Loss = toml::from_str(text).unwrap();
        let terms = terms(loss.objective().unwrap().as_ref(), &mut said, &batch).unwrap();
        close(f64::from(terms.sum.to_scalar::<f32>().unwrap()), 2.0 * (0.25 + 1.5625), text);
        assert_eq!(slopes(&terms, &said, &batch), [vec![-2.0], vec![-5.0]], "{text}");
    }
    let mut said = scores(&batch, &of);
    let loss: Loss = toml::from_str("[reward]\nloss_type = \"bce\"").unwrap();
    let terms = terms(loss.objective().unwrap().as_ref(), &mut said, &batch).unwrap();
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for ((got, score), label) in
        slopes(&terms, &said, &batch).iter().zip([0.5, -1.0]).zip([1.0, 0.25])
    {
        close(got[0], 2.0 * (sigmoid(score) - label), "odds");
    }
}
