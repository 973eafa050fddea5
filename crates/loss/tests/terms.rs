//! Terms of the token loss and penalties against PyTorch's (`tests/golden/make_terms.py`): losses as a
//! step minimises them, and gradients by every logit.

use candle_core::{Device, Tensor, Var};
use luthier_core::{Batch, Logits, Piece, Result, Row};
use luthier_loss::{Given, Loss, Seen, Terms, Totals, given};
use luthier_testkit::golden;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Golden {
    vocab: usize,
    weights: Vec<Vec<f32>>,
    targets: Vec<Vec<u32>>,
    logits: Vec<Vec<f32>>,
    base: Vec<Vec<f32>>,
    cases: Vec<Case>,
    penalties: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    settings: Value,
    loss: f64,
    gradient: Vec<Vec<f32>>,
    #[serde(default)]
    told: std::collections::BTreeMap<String, f64>,
}

fn recorded() -> Golden {
    let text = std::fs::read_to_string(golden::golden("terms.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A table of logits that counts the pieces of sums it is asked for.
struct Counted {
    logits_nv: Var,
    given: Given,
    pieces: usize,
}

impl Counted {
    fn new(rows: &[Vec<f32>], vocab: usize) -> Self {
        let logits_nv = Var::from_slice(&rows.concat(), (rows.len(), vocab), &Device::Cpu).unwrap();
        Counted { given: Given(logits_nv.as_tensor().clone()), logits_nv, pieces: 0 }
    }
}

impl Logits for Counted {
    fn logp(&mut self, index_m: &[u32], targets_m: &[u32]) -> Result<Tensor> {
        self.given.logp(index_m, targets_m)
    }

    fn logits(&mut self, index_m: &[u32]) -> Result<Tensor> {
        self.given.logits(index_m)
    }

    fn hidden(&mut self, index_m: &[u32]) -> Result<Tensor> {
        self.given.hidden(index_m)
    }

    fn sum(&mut self, pieces: usize, piece: &mut Piece) -> Result<Tensor> {
        self.pieces += pieces;
        given::sum(self, pieces, piece)
    }
}

fn rows(golden: &Golden) -> Vec<Row> {
    let row = |(weights, targets): (&Vec<f32>, &Vec<u32>)| Row {
        ids: vec![0; weights.len()],
        targets: targets.clone(),
        weights: weights.clone(),
        ..Row::default()
    };
    golden.weights.iter().zip(&golden.targets).map(row).collect()
}

/// Loss, gradient and logged means of a step, in one pass or a pass a row.
fn step(golden: &Golden, loss: &Loss, apart: bool) -> (f64, Vec<f64>, Vec<(&'static str, f64)>) {
    let objective = loss.objective().unwrap();
    let rows = rows(golden);
    let passes: Vec<Batch> = match apart {
        true => rows.chunks(1).map(Batch::from_rows).collect(),
        false => vec![Batch::from_rows(&rows)],
    };
    let by = objective.normaliser(&passes.iter().collect::<Vec<_>>());
    let whole = Totals { by, ..Totals::of(&passes) };
    let (mut sum, mut gradient, mut logs, mut done) = (0.0, Vec::new(), Vec::new(), 0);
    for batch in &passes {
        let range = done..done + batch.n();
        done = range.end;
        let mut out = Counted::new(&golden.logits[range.clone()], golden.vocab);
        let mut base = Counted::new(&golden.base[range], golden.vocab);
        let teacher = Some(&mut base as &mut dyn Logits);
        let seen = Seen { out: &mut out, teacher, batch, step: &whole };
        let Terms { sum: found, logs: told } = objective.terms(seen).unwrap();
        sum += f64::from(found.to_scalar::<f32>().unwrap()) / by;
        let store = found.backward().unwrap();
        assert!(store.get(&base.logits_nv).is_none(), "the model as it was has a gradient");
        let zeros = out.logits_nv.zeros_like().unwrap();
        let found = store.get(&out.logits_nv).unwrap_or(&zeros);
        let found = found.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        gradient.extend(found.into_iter().map(|g| f64::from(g) / by));
        logs.extend(told);
    }
    let mut means: Vec<(&'static str, f64)> = Vec::new();
    for name in ["nll", "unlikelihood", "z_loss", "entropy", "kl_base"] {
        let of = logs.iter().filter(|log| log.name == name);
        let (sum, weight) = of.fold((0.0, 0.0), |(s, w), log| (s + log.sum, w + log.weight));
        if weight > 0.0 {
            means.push((name, sum / weight));
        }
    }
    (sum, gradient, means)
}

fn compare(golden: &Golden, case: &Case, loss: &Loss) {
    for apart in [false, true] {
        let name = format!("{}, a pass a row: {apart}", case.settings);
        let (found, gradient, told) = step(golden, loss, apart);
        assert!((found - case.loss).abs() < 1e-5 * case.loss.abs().max(1.0), "{name}: {found}");
        let want = case.gradient.concat();
        assert_eq!(gradient.len(), want.len());
        for (got, want) in gradient.iter().zip(want) {
            let within = 1e-5 * (1.0 + f64::from(want.abs()));
            assert!((got - f64::from(want)).abs() < within, "{name}: {got} {want}");
        }
        for (key, want) in &case.told {
            let Some((_, got)) = told.iter().find(|(name, _)| name == key) else { continue };
            assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{name} {key}: {got} {want}");
        }
    }
}

#[test]
fn token_losses_and_gradients_are_pytorchs() {
    let golden = recorded();
    assert_eq!(golden.cases.len(), 11);
    for case in &golden.cases {
        let loss: Loss = serde_json::from_value(json!({ "nll": case.settings })).unwrap();
        compare(&golden, case, &loss);
    }
}

#[test]
fn penalties_and_gradients_are_pytorchs() {
    let golden = recorded();
    assert_eq!(golden.penalties.len(), 4);
    for case in &golden.penalties {
        let loss = serde_json::from_value(json!({ "penalty": case.settings })).unwrap();
        compare(&golden, case, &loss);
        let (_, _, told) = step(&golden, &loss, false);
        let asked = [("entropy", "entropy"), ("kl", "kl_base")];
        for (setting, log) in asked {
            let logged = told.iter().any(|(name, _)| *name == log);
            assert_eq!(logged, case.settings.get(setting).is_some(), "{}: {log}", case.settings);
        }
    }
}

#[test]
fn a_penalty_is_the_same_whatever_the_objective_is_divided_by() {
    let golden = recorded();
    let of = |text: &str| step(&golden, &toml::from_str::<Loss>(text).unwrap(), true);
    for normaliser in ["\"token\"", "\"sequence\"", "\"batch\"", "{ constant = 100.0 }"] {
        let nll = format!("[nll]\nnormaliser = {normaliser}\n");
        let (plain, plain_gradient, _) = of(&nll);
        let (found, gradient, _) = of(&format!("{nll}[penalty]\nkl = 0.5\n"));
        let (want, want_gradient, _) = of("[penalty]\nkl = 0.5\n");
        let (token, token_gradient, _) = of("");
        assert!((found - plain - (want - token)).abs() < 1e-5, "{normaliser}");
        let added = gradient.iter().zip(&plain_gradient).map(|(a, b)| a - b);
        let wanted = want_gradient.iter().zip(&token_gradient).map(|(a, b)| a - b);
        assert!(added.zip(wanted).all(|(a, b)| (a - b).abs() < 1e-5), "{normaliser}");
    }
}

#[test]
fn whole_distributions_are_asked_for_only_where_they_are_needed() {
    let golden = recorded();
    let pieces = |text: &str| {
        let loss: Loss = toml::from_str(text).unwrap();
        let objective = loss.objective().unwrap();
        let batch = Batch::from_rows(&rows(&golden));
        let step = Totals { by: 1.0, ..Totals::of([&batch]) };
        let mut out = Counted::new(&golden.logits, golden.vocab);
        objective.terms(Seen { out: &mut out, teacher: None, batch: &batch, step: &step }).unwrap();
        out.pieces
    };
    assert_eq!((pieces("[nll]"), pieces("[nll]\nfocal_gamma = 2.0")), (0, 0));
    assert_eq!((pieces("[nll]\nz_loss = 1e-4"), pieces("[penalty]\nentropy = 0.1")), (1, 1));
}
