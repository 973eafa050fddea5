//! The laws of objectives, over every row of `METHODS`.

use candle_core::{Device, Tensor, Var, backprop::GradStore};
use luthier_core::{Batch, Logits, Piece, Result, Rng, Row, Seed, model::gather_logp};
use luthier_loss::{
    Align, AlignOn, Loss, METHODS, Nll, Normaliser, Objective, Terms, Unit, apart::naive_apart,
};

const VOCAB: usize = 7;

/// A forward pass whose logits, and last residual stream, are the variable itself, and that remembers
/// what it was asked.
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

    fn hidden(&mut self, index_m: &[u32]) -> Result<Tensor> {
        self.logits(index_m)
    }

    fn sum(&mut self, pieces: usize, piece: &mut Piece) -> Result<Tensor> {
        let mut sum = Tensor::new(0f32, &Device::Cpu)?;
        for i in 0..pieces {
            sum = (sum + piece(&mut *self, i)?)?;
        }
        Ok(sum)
    }
}

/// Objectives of pairs, as recipes name them.
const PAIRS: [&str; 10] = [
    "[dpo]",
    "[dpo]\nbeta = 0.5\nlabel_smoothing = 0.1",
    "[dpo]\nloss_type = \"ipo\"\nbeta = 0.3",
    "[dpo]\nloss_type = [\"bco_pair\", \"apo_zero\"]\nloss_weights = [0.3, 2.0]",
    "[dpo]\nloss_type = \"discopop\"\nf_divergence_type = \"js_divergence\"",
    "[dpo]\nloss_type = \"sigmoid_norm\"\nf_divergence_type = \"alpha_divergence\"\nf_alpha_divergence_coef = 0.9",
    "[cpo]",
    "[cpo]\nloss_type = \"simpo\"\nbeta = 2.0\ncpo_alpha = 0.0",
    "[cpo]\nloss_type = \"simpo\"\nalpha = 0.25",
    "[orpo]\nbeta = 0.7",
];

fn objectives() -> Vec<(String, Loss)> {
    let of = |normaliser| Loss { nll: Some(Nll { normaliser }), ..Loss::default() };
    let align = |lambda_kl, align_on| {
        let align = Some(Align { lambda_kl, align_on });
        Loss { align, ..Loss::default() }
    };
    let all = vec![
        ("nll/token".to_string(), of(Normaliser::Token)),
        ("nll/sequence".to_string(), of(Normaliser::Sequence)),
        ("align/logits".to_string(), align(0.8, AlignOn::Logits)),
        ("align/logits alone".to_string(), align(1.0, AlignOn::Logits)),
        ("align/answers alone".to_string(), align(0.0, AlignOn::Logits)),
        ("align/hidden".to_string(), align(0.3, AlignOn::Hidden)),
    ];
    let pairs = PAIRS.iter().map(|text| {
        let loss: Loss = toml::from_str(text).unwrap();
        (text.trim_start_matches('[').replace(['\n', ']'], " "), loss)
    });
    let all: Vec<(String, Loss)> = all.into_iter().chain(pairs).collect();
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
        reference: -3.0,
    };
    [5, 1, 9, 3].into_iter().enumerate().map(|at| row(rng, at)).collect()
}

/// Rows in whole units.
fn units(rng: &mut Rng, unit: Unit) -> Vec<Row> {
    let rows = rows(rng);
    match unit {
        Unit::Row => rows,
        Unit::Phrasings => {
            let pair = |row: Row| [reference(rng, &row), row];
            rows.into_iter().flat_map(pair).collect()
        }
        Unit::Pair { .. } => {
            let pair = |row: Row| [other(rng, &row), row];
            rows.into_iter().flat_map(pair).collect()
        }
    }
}

/// The same targets behind other tokens.
fn reference(rng: &mut Rng, row: &Row) -> Row {
    let more = 1 + rng.below(3);
    let mut ids = |n: usize| (0..n).map(|_| rng.below(VOCAB) as u32).collect::<Vec<u32>>();
    Row {
        ids: ids(more + row.len()),
        targets: [ids(more), row.targets.clone()].concat(),
        weights: [vec![0.0; more], row.weights.clone()].concat(),
        example: row.example,
        reference: row.reference,
    }
}

/// Another answer to the same prompt.
fn other(rng: &mut Rng, row: &Row) -> Row {
    let mut tokens = |n: usize| (0..n).map(|_| rng.below(VOCAB) as u32).collect::<Vec<u32>>();
    let n = row.len() + 1;
    Row {
        ids: tokens(n),
        targets: tokens(n),
        weights: [&[0.0], &row.weights[..]].concat(),
        example: row.example,
        reference: -4.5,
    }
}

/// Whether a token is one of a reference, which is a constant.
fn of_reference(batch: &Batch, unit: Unit, token: usize) -> bool {
    let row = (0..batch.rows.b()).find(|row| batch.rows.range(*row).contains(&token)).unwrap();
    unit == Unit::Phrasings && row % 2 == 0
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
    for (name, loss) in objectives() {
        let objective = loss.objective().unwrap();
        let batch = Batch::from_rows(&units(&mut rng, objective.unit()));
        let logits = logits(&mut rng, batch.n());
        let (_, mut table) = run(objective, &logits, &batch);
        table.asked.sort_unstable();
        table.asked.dedup();
        let trained = batch.trained_m();
        match name.as_str() {
            // Nothing or only the first target token of a reference.
            "align/answers alone" | "align/hidden" => {
                assert!(table.asked.iter().all(|i| trained.contains(i)), "{name}");
            }
            _ => assert_eq!(table.asked, trained, "{name}"),
        }
        assert!(table.asked.len() < batch.n());
    }
}

#[test]
fn zero_weights_give_zero_and_no_gradient() {
    let mut rng = Seed(5).rng();
    for (name, loss) in objectives() {
        let objective = loss.objective().unwrap();
        let mut batch = Batch::from_rows(&units(&mut rng, objective.unit()));
        batch.weights_n.fill(0.0);
        // An infinite logit would turn a 0 × ∞ into NaN if it were looked at.
        let logits = vec![f32::INFINITY; batch.n() * VOCAB];
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
    for (name, loss) in objectives() {
        let objective = loss.objective().unwrap();
        let rows = units(&mut rng, objective.unit());
        let whole = Batch::from_rows(&rows);
        let logits = logits(&mut rng, whole.n());
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
            let unit = objective.unit().rows();
            let part = |c: &[usize]| Batch::from_rows(&rows[c[0] * unit..c[1] * unit]);
            let parts: Vec<Batch> = cuts.windows(2).map(part).collect();
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
    for (name, loss) in objectives() {
        let objective = loss.objective().unwrap();
        let batch = Batch::from_rows(&units(&mut rng, objective.unit()));
        let logits = logits(&mut rng, batch.n());
        let (terms, table) = run(objective, &logits, &batch);
        let grad = gradient(&terms.sum.backward().unwrap(), &table);
        let at = |j: usize, by: f32| {
            let mut moved = logits.clone();
            moved[j] += by;
            f64::from(run(objective, &moved, &batch).0.sum.to_scalar::<f32>().unwrap())
        };
        for j in (0..logits.len()).step_by(5) {
            if of_reference(&batch, objective.unit(), j / VOCAB) {
                assert_eq!(grad[j], 0.0, "{name} {j}: a reference has a gradient");
                continue;
            }
            let slope = (at(j, 0.05) - at(j, -0.05)) / 0.1;
            assert!((slope - f64::from(grad[j])).abs() < 2e-3, "{name} {j}: {slope} {}", grad[j]);
        }
    }
}

/// The paper's loss in plain tensor operations over all tokens at once, against any cut into pieces.
#[test]
fn alignment_is_the_papers_mean_over_target_tokens() {
    let mut rng = Seed(8).rng();
    // More target tokens than fit into one piece.
    let long: Vec<Row> = (0..12).flat_map(|_| units(&mut rng, Unit::Phrasings)).collect();
    let batch = Batch::from_rows(&long);
    let logits = logits(&mut rng, batch.n());
    let var = Var::from_slice(&logits, (batch.n(), VOCAB), &Device::Cpu).unwrap();
    let trained = |of: usize| -> Vec<u32> {
        let in_row = |row: usize| batch.rows.range(row).filter(|i| batch.weights_n[*i] != 0.0);
        (of..batch.rows.b()).step_by(2).flat_map(in_row).map(|i| i as u32).collect()
    };
    let (reference, paraphrase) = (trained(0), trained(1));
    assert!(paraphrase.len() > 128);
    let pick = |index: &[u32]| {
        let index = Tensor::from_slice(index, index.len(), &Device::Cpu).unwrap();
        var.index_select(&index, 0).unwrap()
    };
    let targets: Vec<u32> = paraphrase.iter().map(|i| batch.targets_n[*i as usize]).collect();
    let weights: Vec<f32> = paraphrase.iter().map(|i| batch.weights_n[*i as usize]).collect();
    let both_m2 = naive_apart(&pick(&paraphrase), &targets, &pick(&reference).detach()).unwrap();
    let align = Align { lambda_kl: 0.8, align_on: AlignOn::Logits };
    let shares: Vec<f32> = weights.iter().flat_map(|w| [0.2 * w, 0.8 * w]).collect();
    let shares_m2 = Tensor::from_vec(shares, (weights.len(), 2), &Device::Cpu).unwrap();
    let want = (both_m2 * shares_m2).unwrap().sum_all().unwrap();
    let want_grad = want.backward().unwrap().get(&var).unwrap().flatten_all().unwrap();

    let (terms, table) = run(&align, &logits, &batch);
    let (got, want) = (terms.sum.to_scalar::<f32>().unwrap(), want.to_scalar::<f32>().unwrap());
    assert!((got - want).abs() < 1e-5 * want, "{got} {want}");
    let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
    assert!((align.normaliser(&[&batch]) - total).abs() < 1e-9 * total);
    let parts: f64 = terms.logs.iter().zip([0.2, 0.8]).map(|(log, by)| by * log.sum).sum();
    assert!((parts - f64::from(want)).abs() < 1e-4 * f64::from(want), "{:?}", terms.logs);
    let grad = gradient(&terms.sum.backward().unwrap(), &table);
    for (got, want) in grad.iter().zip(want_grad.to_vec1::<f32>().unwrap()) {
        assert!((got - want).abs() < 1e-5, "{got} {want}");
    }
}

#[test]
fn a_phrasing_agrees_with_itself() {
    let mut rng = Seed(9).rng();
    let rows: Vec<Row> = rows(&mut rng).into_iter().flat_map(|row| [row.clone(), row]).collect();
    let batch = Batch::from_rows(&rows);
    // The same logits for both rows of a pair.
    let mut same = Vec::new();
    for row in (0..batch.rows.b()).step_by(2) {
        let one = logits(&mut rng, batch.rows.range(row).len());
        same.extend([one.clone(), one].concat());
    }
    for (align_on, within) in [(AlignOn::Logits, 0.0), (AlignOn::Hidden, 1e-5)] {
        let (terms, table) = run(&Align { lambda_kl: 1.0, align_on }, &same, &batch);
        assert!(terms.sum.to_scalar::<f32>().unwrap().abs() <= within);
        let grad = gradient(&terms.sum.backward().unwrap(), &table);
        assert!(grad.iter().all(|g| g.abs() <= within), "{align_on:?}: {grad:?}");
    }
}

#[test]
fn a_recipe_names_the_objective_by_its_key() {
    let align: Loss = toml::from_str("[align]\nalign_on = \"hidden\"").unwrap();
    assert_eq!(align.align, Some(Align { lambda_kl: 0.8, align_on: AlignOn::Hidden }));
    let beyond: Loss = toml::from_str("[align]\nlambda_kl = 2.0").unwrap();
    let error = beyond.objective().err().unwrap().to_string();
    assert!(error.contains("lambda_kl"), "{error}");
    let both: Loss = toml::from_str("[align]\n[nll]").unwrap();
    assert!(both.objective().err().unwrap().to_string().contains("2 objectives"));
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
