//! The laws of objectives, over every row of `METHODS`.

use luthier_core::{Batch, Seed};
use luthier_loss::{Align, AlignOn, Loss, Nll, Normaliser, Objective, Totals};

mod table;
mod units;

use table::{VOCAB, gradient, logits, run, run_in};
use units::{has_constants, objectives, of_reference, rows, units};

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
        let nll = Nll { normaliser, ..Nll::PLAIN };
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
        let (_, mut table) = run(objective.as_ref(), &logits, &batch);
        table.asked.sort_unstable();
        table.asked.dedup();
        let trained = batch.trained_m();
        match name.as_str() {
            // Nothing or only the first target token of a reference.
            name if name.contains("lambda_kl = 0.0") || name.contains("hidden") => {
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
        let (terms, table) = run(objective.as_ref(), &logits, &batch);
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
            let whole_step = Totals { by, ..Totals::of(batches) };
            for batch in batches {
                let part = &logits[done * VOCAB..(done + batch.n()) * VOCAB];
                done += batch.n();
                let (terms, table) = run_in(objective.as_ref(), part, batch, &whole_step);
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
            let within = 1e-6 * want.abs().max(1.0);
            assert!((got - want).abs() < within, "{name} {cuts:?}: {got} {want}");
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
        let (terms, table) = run(objective.as_ref(), &logits, &batch);
        if has_constants(&name) {
            // Their gradients are compared with TRL's.
            continue;
        }
        let grad = gradient(&terms.sum.backward().unwrap(), &table);
        let at = |j: usize, by: f32| {
            let mut moved = logits.clone();
            moved[j] += by;
            f64::from(run(objective.as_ref(), &moved, &batch).0.sum.to_scalar::<f32>().unwrap())
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
    assert_eq!(loss.nll, Some(Nll { normaliser: Normaliser::Sequence, ..Nll::PLAIN }));
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
