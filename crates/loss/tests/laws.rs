//! The laws of objectives, over every row of `METHODS`.

use candle_core::{Device, Tensor, Var, backprop::GradStore};
use luthier_core::{Batch, Logits, Result, Rng, Row, Seed, model::gather_logp};
use luthier_loss::{Loss, METHODS, Nll, Normaliser, Objective, Terms};

const VOCAB: usize = 7;

/// A forward pass whose logits are the variable itself, and that remembers what it was asked.
struct Table {
    logits_nv: Var,
    asked: Vec<u32>,
}

impl Logits for Table {
    fn logp(&mut self, index_m: &[u32], targets_m: &[u32]) -> Result<Tensor> {
        gather_logp(&self.logits(index_m)?, targets_m)
    }

    fn logits(&mut self, index_m: &[u32]) -> Result<Tensor> {
        self.asked.extend(index_m);
        let index = Tensor::from_slice(index_m, index_m.len(), &Device::Cpu)?;
        Ok(self.logits_nv.index_select(&index, 0)?)
    }
}

fn objectives() -> Vec<(String, Loss)> {
    let of = |normaliser| Loss { nll: Some(Nll { normaliser }) };
    let all = vec![
        ("nll/token".to_string(), of(Normaliser::Token)),
        ("nll/sequence".to_string(), of(Normaliser::Sequence)),
    ];
    for method in METHODS {
        assert!(all.iter().any(|(name, _)| name.starts_with(method.name)), "{}", method.name);
    }
    all
}

fn rows(rng: &mut Rng) -> Vec<Row> {
    let weights = [0.0, 0.0, 0.25, 1.0, 2.0];
    let row = |rng: &mut Rng, (example, n): (usize, usize)| Row {
        ids: (0..n).map(|_| rng.below(VOCAB) as u32).collect(),
        targets: (0..n).map(|_| rng.below(VOCAB) as u32).collect(),
        weights: (0..n).map(|i| if i == 0 { 0.5 } else { weights[rng.below(5)] }).collect(),
        example,
    };
    [5, 1, 9, 3].into_iter().enumerate().map(|at| row(rng, at)).collect()
}

fn logits(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n * VOCAB).map(|_| (2.0 * rng.normal()) as f32).collect()
}

fn run(objective: &dyn Objective, logits: &[f32], batch: &Batch) -> (Terms, Table) {
    let logits_nv = Var::from_slice(logits, (batch.n(), VOCAB), &Device::Cpu).unwrap();
    let mut table = Table { logits_nv, asked: Vec::new() };
    let terms = objective.terms(&mut table, batch).unwrap();
    (terms, table)
}

fn gradient(grads: &GradStore, table: &Table) -> Vec<f32> {
    match grads.get(&table.logits_nv) {
        Some(g) => g.flatten_all().unwrap().to_vec1().unwrap(),
        None => vec![0.0; table.logits_nv.elem_count()],
    }
}

/// Weighted nll of each token in f64, by the definition.
fn nll_n(logits: &[f32], batch: &Batch) -> Vec<f64> {
    let of = |i: usize| {
        let row: Vec<f64> =
            logits[i * VOCAB..(i + 1) * VOCAB].iter().map(|x| f64::from(*x)).collect();
        row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[batch.targets_n[i] as usize]
    };
    (0..batch.n()).map(of).collect()
}

#[test]
fn nll_is_the_textbook_mean() {
    let mut rng = Seed(3).rng();
    let batch = Batch::from_rows(&rows(&mut rng));
    let logits = logits(&mut rng, batch.n());
    let nll_n = nll_n(&logits, &batch);
    let w = |i: usize| f64::from(batch.weights_n[i]);
    let mean = |range: std::ops::Range<usize>| {
        range.clone().map(|i| w(i) * nll_n[i]).sum::<f64>() / range.map(w).sum::<f64>()
    };
    let by_row: f64 = (0..4).map(|r| mean(batch.rows.range(r))).sum::<f64>() / 4.0;
    for (normaliser, want) in
        [(Normaliser::Token, mean(0..batch.n())), (Normaliser::Sequence, by_row)]
    {
        let nll = Nll { normaliser };
        let (terms, _) = run(&nll, &logits, &batch);
        let got = f64::from(terms.sum.to_scalar::<f32>().unwrap()) / nll.normaliser(&[&batch]);
        assert!((got - want).abs() < 1e-6 * want, "{normaliser:?}: {got} {want}");
        let log = terms.logs[0];
        assert!((log.sum / log.weight - mean(0..batch.n())).abs() < 1e-6, "{log:?}");
    }
}

#[test]
fn only_tokens_with_weight_are_asked_for() {
    let mut rng = Seed(4).rng();
    let batch = Batch::from_rows(&rows(&mut rng));
    let logits = logits(&mut rng, batch.n());
    for (name, loss) in objectives() {
        let (_, table) = run(loss.objective().unwrap(), &logits, &batch);
        assert_eq!(table.asked, batch.trained_m(), "{name}");
        assert!(table.asked.len() < batch.n());
    }
}

#[test]
fn zero_weights_give_zero_and_no_gradient() {
    let mut rng = Seed(5).rng();
    let mut batch = Batch::from_rows(&rows(&mut rng));
    batch.weights_n.fill(0.0);
    // An infinite logit would turn a 0 × ∞ into NaN if it were looked at.
    let logits = vec![f32::INFINITY; batch.n() * VOCAB];
    for (name, loss) in objectives() {
        let objective = loss.objective().unwrap();
        let (terms, table) = run(objective, &logits, &batch);
        assert_eq!(terms.sum.to_scalar::<f32>().unwrap(), 0.0, "{name}");
        assert_eq!(objective.normaliser(&[&batch]), 0.0, "{name}");
        let grads = terms.sum.backward().unwrap();
        assert!(gradient(&grads, &table).iter().all(|g| *g == 0.0), "{name}");
    }
}

#[test]
fn splitting_a_batch_changes_nothing() {
    let mut rng = Seed(6).rng();
    let rows = rows(&mut rng);
    let whole = Batch::from_rows(&rows);
    let logits = logits(&mut rng, whole.n());
    for (name, loss) in objectives() {
        let objective = loss.objective().unwrap();
        let step = |batches: &[Batch]| {
            let (mut sum, mut grad, mut done) = (0.0, Vec::new(), 0);
            let by = objective.normaliser(&batches.iter().collect::<Vec<_>>());
            for batch in batches {
                let part = &logits[done * VOCAB..(done + batch.n()) * VOCAB];
                done += batch.n();
                let (terms, table) = run(objective, part, batch);
                let grads = terms.sum.backward().unwrap();
                sum += f64::from(terms.sum.to_scalar::<f32>().unwrap()) / by;
                grad.extend(gradient(&grads, &table).iter().map(|g| f64::from(*g) / by));
            }
            (sum, grad)
        };
        let (want, want_grad) = step(std::slice::from_ref(&whole));
        for cuts in [vec![0, 1, 4], vec![0, 3, 4], vec![0, 1, 2, 3, 4]] {
            let parts: Vec<Batch> =
                cuts.windows(2).map(|c| Batch::from_rows(&rows[c[0]..c[1]])).collect();
            let (got, got_grad) = step(&parts);
            assert!((got - want).abs() < 1e-6, "{name} {cuts:?}: {got} {want}");
            let apart = got_grad.iter().zip(&want_grad).map(|(a, b)| (a - b).abs());
            assert!(apart.fold(0.0, f64::max) < 1e-6, "{name} {cuts:?}");
        }
    }
}

#[test]
fn the_gradient_agrees_with_finite_differences() {
    let mut rng = Seed(7).rng();
    let batch = Batch::from_rows(&rows(&mut rng));
    let logits = logits(&mut rng, batch.n());
    for (name, loss) in objectives() {
        let objective = loss.objective().unwrap();
        let (terms, table) = run(objective, &logits, &batch);
        let grad = gradient(&terms.sum.backward().unwrap(), &table);
        let at = |j: usize, by: f32| {
            let mut moved = logits.clone();
            moved[j] += by;
            f64::from(run(objective, &moved, &batch).0.sum.to_scalar::<f32>().unwrap())
        };
        for j in (0..logits.len()).step_by(5) {
            let slope = (at(j, 0.05) - at(j, -0.05)) / 0.1;
            assert!((slope - f64::from(grad[j])).abs() < 2e-3, "{name} {j}: {slope} {}", grad[j]);
        }
    }
}

#[test]
fn a_recipe_names_the_objective_by_its_key() {
    let loss: Loss = toml::from_str("[nll]\nnormaliser = \"sequence\"").unwrap();
    assert_eq!(loss.nll, Some(Nll { normaliser: Normaliser::Sequence }));
    assert_eq!(toml::from_str::<Loss>(&toml::to_string(&loss).unwrap()).unwrap(), loss);
    for (text, want) in [
        ("[nl]", "unknown field `nl`"),
        ("[nll]\nnormalizer = \"token\"", "unknown field `normalizer`"),
        ("[nll]\nnormaliser = \"row\"", "unknown variant `row`"),
    ] {
        let err = toml::from_str::<Loss>(text).unwrap_err().to_string();
        assert!(err.contains(want), "{err}");
    }
}

#[test]
fn no_method_means_nll() {
    let loss = Loss::default();
    assert!(loss.objective().is_ok());
    assert_eq!(loss.with_defaults().nll, Some(Nll::default()));
}
