//! The alignment of two phrasings against its definition.

use candle_core::{Device, Tensor, Var};
use luthier_core::{Batch, Row, Seed};
use luthier_loss::{Align, AlignOn, Objective, Unit, apart::naive_apart};

mod table;
mod units;

use table::{VOCAB, gradient, logits, run};
use units::{rows, units};

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
