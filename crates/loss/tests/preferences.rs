//! Losses of pairs against TRL's (`tests/golden/make_preferences.py`): values and gradients by every
//! token's log-probability.

use candle_core::{Device, Tensor, Var};
use luthier_core::{Batch, Logits, Piece, Result, Row};
use luthier_loss::{
    Loss, Objective, Seen, Terms, Totals, Unit,
    pair::{log_probabilities, tails},
};
use luthier_testkit::{Said, golden};
use serde::Deserialize;
use serde_json::{Value, json};

/// Numbers of the tokens of every pair's two answers.
type Tokens = Vec<[Vec<f32>; 2]>;

#[derive(Deserialize)]
struct Golden {
    logps: Tokens,
    references: Vec<[f64; 2]>,
    /// `ln Σ p²` where each token is said.
    squares: Tokens,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    key: String,
    settings: Value,
    loss: f64,
    gradient: Tokens,
}

fn recorded() -> Golden {
    let text = std::fs::read_to_string(golden::golden("preferences.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A model that has said what it says.
struct Spread {
    said: Said,
    squares_n: Vec<f32>,
}

/// Tokens besides the one that is said.
const OTHERS: usize = 400;

/// Logits over which `logp − ln Σ p²` of the first token is `gain`.
fn with_gain(gain: f32) -> Vec<f32> {
    // The rest lies on one token, or on all of them alike: the first has more than all, or less.
    let spread = if gain > 0.0 { OTHERS } else { 1 };
    let of = |p: f64| p.ln() - (p * p + (1.0 - p) * (1.0 - p) / spread as f64).ln();
    let (mut low, mut high) = if gain > 0.0 { (0.06, 1.0) } else { (1e-6, 0.5) };
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        // Falling in p where the rest is spread, rising where it is not.
        match (of(middle) > f64::from(gain)) == (gain > 0.0) {
            true => low = middle,
            false => high = middle,
        }
    }
    let rest = ((1.0 - low) / spread as f64).ln() as f32;
    let others = (0..OTHERS).map(|i| if i < spread { rest } else { -60.0 });
    std::iter::once(low.ln() as f32).chain(others).collect()
}

impl Logits for Spread {
    fn logp(&mut self, index_m: &[u32], targets_m: &[u32]) -> Result<Tensor> {
        self.said.logp(index_m, targets_m)
    }

    fn logits(&mut self, index_m: &[u32]) -> Result<Tensor> {
        let logp_n: Vec<f32> = self.said.0.to_vec1()?;
        let of = |i: &u32| with_gain(logp_n[*i as usize] - self.squares_n[*i as usize]);
        let rows: Vec<f32> = index_m.iter().flat_map(of).collect();
        Ok(Tensor::from_vec(rows, (index_m.len(), OTHERS + 1), &Device::Cpu)?)
    }

    fn hidden(&mut self, index_m: &[u32]) -> Result<Tensor> {
        self.said.hidden(index_m)
    }

    fn sum(&mut self, pieces: usize, piece: &mut Piece) -> Result<Tensor> {
        self.said.sum(pieces, piece)
    }
}

/// Every answer behind two tokens of a prompt, and what is said of all of them.
fn batch(golden: &Golden, alpha: Option<f64>) -> (Batch, Spread) {
    let (mut rows, mut said, mut squares) = (Vec::new(), Vec::new(), Vec::new());
    let told: Vec<&Vec<f32>> = golden.squares.iter().flatten().collect();
    for (example, (pair, references)) in golden.logps.iter().zip(&golden.references).enumerate() {
        for (answer, reference) in pair.iter().zip(references) {
            let weights = [vec![0.0; 2], vec![1.0; answer.len()]].concat();
            let row = Row {
                ids: vec![0; weights.len()],
                targets: vec![0; weights.len()],
                weights,
                example,
                reference: *reference,
                ..Row::default()
            };
            squares.extend([-9.0f32; 2]);
            squares.extend(told[rows.len()]);
            said.extend([-9.0f32; 2]);
            said.extend(answer);
            rows.push(row);
        }
    }
    if let Some(alpha) = alpha {
        let before: Vec<f32> = rows.iter().map(|row| row.weights.iter().sum()).collect();
        tails(&mut rows, alpha);
        // The script weighs the reference's tokens in equal parts.
        for (row, before) in rows.iter_mut().zip(before) {
            row.reference *= f64::from(row.weights.iter().sum::<f32>() / before);
        }
    }
    let logp_n = Var::from_slice(&said, said.len(), &Device::Cpu).unwrap();
    (Batch::from_rows(&rows), Spread { said: Said(logp_n.as_tensor().clone()), squares_n: squares })
}

fn objective(case: &Case) -> Loss {
    let mut settings = case.settings.clone();
    if settings["loss_type"].to_string().contains("aot") {
        // TRL sorts all three pairs.
        settings["group"] = json!(3);
    }
    serde_json::from_value(json!({ case.key.as_str(): settings })).unwrap()
}

fn terms(objective: &dyn Objective, out: &mut Spread, batch: &Batch) -> Result<Terms> {
    objective.terms(Seen { out, teacher: None, batch, step: &Totals::of([batch]) })
}

#[test]
fn losses_and_gradients_are_trls() {
    let golden = recorded();
    assert_eq!(golden.cases.len(), 32);
    for case in &golden.cases {
        let name = format!("{} {}", case.key, case.settings);
        let loss = objective(case);
        let objective = loss.objective().unwrap();
        let (batch, mut said) = batch(&golden, case.settings["ld_alpha"].as_f64());
        let terms = terms(objective.as_ref(), &mut said, &batch).unwrap();
        let by = objective.normaliser(&[&batch]);
        let got = f64::from(terms.sum.to_scalar::<f32>().unwrap()) / by;
        assert!((got - case.loss).abs() < 1e-5 * case.loss.abs().max(1.0), "{name}: {got}");
        let grads = terms.sum.backward().unwrap();
        let mut found = grads.get(&said.said.0).unwrap().to_vec1::<f32>().unwrap().into_iter();
        for pair in &case.gradient {
            for answer in pair {
                assert_eq!([found.next(), found.next()], [Some(0.0), Some(0.0)], "{name}: prompt");
                for want in answer {
                    let got = f64::from(found.next().unwrap()) / by;
                    let apart = (got - f64::from(*want)).abs();
                    assert!(apart < 1e-5 * (1.0 + want.abs() as f64), "{name}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn rewards_are_gains_over_the_reference() {
    let golden = recorded();
    let (batch, mut said) = batch(&golden, None);
    let loss: Loss = toml::from_str("[dpo]\nbeta = 0.5").unwrap();
    let terms = terms(loss.objective().unwrap().as_ref(), &mut said, &batch).unwrap();
    let sum = |of: &[f32]| of.iter().map(|x| f64::from(*x)).sum::<f64>();
    let gains: Vec<[f64; 2]> = golden
        .logps
        .iter()
        .zip(&golden.references)
        .map(|(pair, reference)| [0, 1].map(|side| 0.5 * (sum(&pair[side]) - reference[side])))
        .collect();
    let mean = |of: &dyn Fn(&[f64; 2]) -> f64| gains.iter().map(of).sum::<f64>() / 3.0;
    let told = |name: &str| {
        let log = terms.logs.iter().find(|log| log.name == name).unwrap();
        log.sum / log.weight
    };
    for (name, want) in [
        ("rewards/chosen", mean(&|g| g[0])),
        ("rewards/rejected", mean(&|g| g[1])),
        ("rewards/margins", mean(&|g| g[0] - g[1])),
        ("rewards/accuracies", mean(&|g| f64::from(u8::from(g[0] > g[1])))),
    ] {
        assert!((told(name) - want).abs() < 1e-5, "{name}: {} {want}", told(name));
    }
}

#[test]
fn without_a_gain_dpo_is_the_logarithm_of_two() {
    let golden = recorded();
    let (mut batch, mut said) = batch(&golden, None);
    batch.references_b = log_probabilities(&mut said, &batch).unwrap();
    let loss: Loss = toml::from_str("[dpo]").unwrap();
    let terms = terms(loss.objective().unwrap().as_ref(), &mut said, &batch).unwrap();
    let got = f64::from(terms.sum.to_scalar::<f32>().unwrap());
    assert!((got - 3.0 * std::f64::consts::LN_2).abs() < 1e-6, "{got}");
}

#[test]
fn half_of_a_pair_is_no_pair() {
    let (mut batch, mut said) = batch(&recorded(), None);
    let rejected = batch.rows.range(1);
    batch.weights_n[rejected].fill(0.0);
    let loss: Loss = toml::from_str("[orpo]").unwrap();
    let error =
        terms(loss.objective().unwrap().as_ref(), &mut said, &batch).unwrap_err().to_string();
    assert!(error.contains("example 0") && error.contains("rejected answer"), "{error}");
}

#[test]
fn settings_that_cannot_be_meant_are_refused_by_their_key() {
    for (text, want) in [
        ("[dpo]\nbeta = 0.0", "train.loss.dpo.beta"),
        ("[dpo]\nloss_type = []", "train.loss.dpo.loss_type"),
        ("[dpo]\nloss_weights = [1.0, 2.0]", "2 weights for 1 types"),
        ("[dpo]\nlabel_smoothing = 0.5", "train.loss.dpo.label_smoothing"),
        ("[dpo]\nloss_type = \"exo_pair\"", "exo_pair needs a share above 0"),
        (
            "[dpo]\nloss_type = \"apo_zero\"\nf_divergence_type = \"forward_kl\"",
            "train.loss.dpo.f_divergence_type",
        ),
        ("[dpo]\nld_alpha = 1.5", "train.loss.dpo.ld_alpha"),
        ("[dpo]\nloss_type = \"aot\"\ngroup = 1", "train.loss.dpo.group"),
        ("[dpo]\nloss_type = \"aot\"\nuse_weighting = true", "train.loss.dpo.use_weighting"),
        ("[kto]\nbeta = 0.0", "train.loss.kto.beta"),
        ("[kto]\ngroup = 1", "train.loss.kto.group"),
        ("[kto]\nundesirable_weight = -1.0", "train.loss.kto.undesirable_weight"),
        ("[bco]\ngroup = 0", "train.loss.bco.group"),
        ("[classify]\nlabel_smoothing = 1.0", "train.loss.classify.label_smoothing"),
        (
            "[reward]\nloss_type = \"mse\"\ncenter_rewards_coefficient = 0.1",
            "centres the rewards of pairs",
        ),
        ("[cpo]\nlabel_smoothing = 0.7", "train.loss.cpo.label_smoothing"),
        ("[orpo]\nbeta = -1.0", "train.loss.orpo.beta"),
    ] {
        let loss: Loss = toml::from_str(text).unwrap();
        let error = loss.objective().err().unwrap().to_string();
        assert!(error.contains(want), "{text}: {error}");
    }
    let unknown = toml::from_str::<Loss>("[dpo]\nloss_type = \"sigmoyd\"").unwrap_err().to_string();
    assert!(unknown.contains("loss_type") || unknown.contains("sigmoyd"), "{unknown}");
    let unit = |text: &str| toml::from_str::<Loss>(text).unwrap().objective().unwrap().unit();
    assert_eq!(unit("[dpo]"), Unit::Pair { reference: true });
    assert_eq!(unit("[cpo]"), Unit::Pair { reference: false });
    assert_eq!(unit("[dpo]\nloss_type = \"aot\""), Unit::Pairs { group: 8 });
    assert_eq!(unit("[kto]").rows(), 16);
    let several: Loss = toml::from_str("[dpo]\nloss_type = [\"hinge\", \"robust\"]").unwrap();
    assert_eq!(toml::from_str::<Loss>(&toml::to_string(&several).unwrap()).unwrap(), several);
}
