//! The laws of objectives, over every row of `METHODS`.

use luthier_core::{Batch, Rng, Row, Seed};
use luthier_loss::{Advantage, Align, AlignOn, Loss, Nll, Normaliser, Objective, Totals};

mod table;
mod units;

use table::{VOCAB, gradient, logits, run, run_in, taught};
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

/// The loss and the gradient of a step of these rows are those of any cut of it.
fn may_be_split(name: &str, objective: &dyn Objective, rows: &[Row], rng: &mut Rng) {
    let whole = Batch::from_rows(rows);
    let logits = logits(rng, whole.n());
    let step = |batches: &[Batch]| {
        let (mut sum, mut grad, mut done) = (0.0, Vec::new(), 0);
        let by = objective.normaliser(&batches.iter().collect::<Vec<_>>());
        assert!(by > 0.0, "{name}: {by}");
        let whole_step = Totals { by, ..Totals::of(batches) };
        for batch in batches {
            let part = &logits[done * VOCAB..(done + batch.n()) * VOCAB];
            done += batch.n();
            let (terms, table) = run_in(objective, part, batch, &whole_step);
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

/// The gradient at every fifth logit is the slope of the sum.
fn has_its_gradient(name: &str, objective: &dyn Objective, batch: &Batch, logits: &[f32]) {
    let (terms, table) = run(objective, logits, batch);
    let grad = gradient(&terms.sum.backward().unwrap(), &table);
    let at = |j: usize, by: f32| {
        let mut moved = logits.to_vec();
        moved[j] += by;
        f64::from(run(objective, &moved, batch).0.sum.to_scalar::<f32>().unwrap())
    };
    for j in (0..logits.len()).step_by(5) {
        if of_reference(batch, objective.unit(), j / VOCAB) {
            assert_eq!(grad[j], 0.0, "{name} {j}: a reference has a gradient");
            continue;
        }
        let slope = (at(j, 0.05) - at(j, -0.05)) / 0.1;
        assert!((slope - f64::from(grad[j])).abs() < 2e-3, "{name} {j}: {slope} {}", grad[j]);
    }
}

#[test]
fn splitting_a_batch_changes_nothing() {
    let mut rng = Seed(6).rng();
    for (name, loss) in objectives() {
        let objective = loss.objective().unwrap();
        let rows = units(&mut rng, objective.unit());
        may_be_split(&name, objective.as_ref(), &rows, &mut rng);
    }
}

#[test]
fn the_gradient_agrees_with_finite_differences() {
    let mut rng = Seed(7).rng();
    for (name, loss) in objectives() {
        let objective = loss.objective().unwrap();
        let batch = Batch::from_rows(&units(&mut rng, objective.unit()));
        let logits = logits(&mut rng, batch.n());
        // Gradients with constants in them are compared with TRL's.
        if !has_constants(&name) {
            has_its_gradient(&name, objective.as_ref(), &batch, &logits);
        }
    }
}

/// Rows whose weights have both signs; those of the first sum to 0, those of the second to less.
fn signed(rng: &mut Rng) -> Vec<Row> {
    let mut rows = rows(rng);
    for row in &mut rows {
        row.weights.iter_mut().skip(1).step_by(2).for_each(|w| *w = -*w);
    }
    rows[0].weights.copy_from_slice(&[0.5, -1.0, 0.25, 0.25, 0.0]);
    rows[1].weights.copy_from_slice(&[-0.5]);
    rows
}

#[test]
fn the_laws_hold_for_weights_of_either_sign() {
    for text in [
        "[nll]",
        "[nll]\nnormaliser = \"sequence\"",
        "[nll]\nnormaliser = \"batch\"",
        "[nll]\nlabel_smoothing = 0.1\nz_loss = 0.01",
        "[penalty]\nkl = 0.3",
        "[tasks]",
        "[tasks]\nmode = \"case4\"",
        "[advantage]",
        "[penalty]\nkl = 0.3\n[advantage]",
    ] {
        let mut rng = Seed(8).rng();
        let (loss, rows) = (toml::from_str::<Loss>(text).unwrap(), signed(&mut rng));
        let objective = loss.objective().unwrap();
        may_be_split(text, objective.as_ref(), &rows, &mut rng);
        let batch = Batch::from_rows(&rows);
        let logits = logits(&mut rng, batch.n());
        has_its_gradient(text, objective.as_ref(), &batch, &logits);
        let (terms, _) = run(objective.as_ref(), &logits, &batch);
        let weights = terms.logs.iter().map(|log| log.weight);
        assert!(weights.into_iter().all(|weight| weight >= 0.0), "{text}: {:?}", terms.logs);
    }
}

#[test]
fn advantages_begin_as_the_policy_gradient_and_are_bounded() {
    let mut rng = Seed(9).rng();
    let batch = Batch::from_rows(&signed(&mut rng));
    let as_it_was = taught(&batch);
    let of = |objective: &dyn Objective, logits: &[f32]| {
        let (terms, table) = run(objective, logits, &batch);
        let by = objective.normaliser(&[&batch]);
        let grad = gradient(&terms.sum.backward().unwrap(), &table);
        let grad: Vec<f64> = grad.iter().map(|g| f64::from(*g) / by).collect();
        (f64::from(terms.sum.to_scalar::<f32>().unwrap()), grad)
    };
    let beta = 0.4;
    let (cost, grad) = of(&Advantage { beta }, &as_it_was);
    let (_, plain) = of(&Nll { normaliser: Normaliser::Batch, ..Nll::PLAIN }, &as_it_was);
    for (i, (got, nll)) in grad.iter().zip(&plain).enumerate() {
        assert!((got - 0.5 * beta * nll).abs() < 1e-6, "{i}: {got} {nll}");
    }
    // ln 2 for every step, by the size of its advantage: runs of one weight within a row.
    let mut sizes = 0.0;
    for row in 0..batch.rows.b() {
        let weights = &batch.weights_n[batch.rows.range(row)];
        sizes += weights.chunk_by(|a, b| a == b).map(|run| f64::from(run[0].abs())).sum::<f64>();
    }
    assert!((cost - sizes * std::f64::consts::LN_2).abs() < 1e-5, "{cost} {sizes}");
    // Where every step is as it should be, less is charged, and never less than 0; nll falls without end.
    let mut far = as_it_was.clone();
    for (i, target) in batch.targets_n.iter().enumerate() {
        far[i * VOCAB + *target as usize] += 400.0 * batch.weights_n[i].signum();
    }
    assert!((0.0..cost).contains(&of(&Advantage { beta }, &far).0));
    assert!(of(&Nll { normaliser: Normaliser::Batch, ..Nll::PLAIN }, &far).0 < -400.0);
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
