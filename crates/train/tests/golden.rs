//! Ten training steps against plain PyTorch, and the laws of a step.

use std::{collections::BTreeMap, path::Path, sync::atomic::AtomicBool};

use luthier_core::{Batch, Model, Param, Row, Seed, StateDict};
use luthier_loss::{Loss, Totals};
use luthier_params::{Bound, Full, Params, peft};
use luthier_testkit::{assert_close, assert_same_bits, golden};
use luthier_train::{
    Gradients, Job, Outcome, Step, Stopped, Sums, Train, log::metrics, step::Data,
};
use luthier_update::{Start, Stepper, Update};

mod job;

use job::{bound, bytes, job, killed_after, lines, model, twelve};

/// The pinned runs' update: AdamW, clip 1, two warm-up steps, cosine to step 10.
fn update() -> Update {
    toml::from_str(
        "max_grad_norm = 1.0\ndecay_norms_and_biases = true\n[adamw]\nlearning_rate = 1e-2\nbetas = [0.9, 0.999]\neps = 1e-8\n\
         weight_decay = 0.01\n[schedule.cosine]\nwarmup_steps = 2\n",
    )
    .unwrap()
}

fn rows(batch: &Batch) -> Vec<Row> {
    let row = |b: usize| {
        let range = batch.rows.range(b);
        Row {
            ids: batch.ids_n[range.clone()].to_vec(),
            targets: batch.targets_n[range.clone()].to_vec(),
            weights: batch.weights_n[range].to_vec(),
            example: b,
            ..Row::default()
        }
    };
    (0..batch.rows.b()).map(row).collect()
}

/// Runs `config` on steps of given rows through the whole run loop.
fn run(
    bound: &Bound,
    config: &Train,
    (rows, steps): &(Vec<Row>, Vec<Vec<usize>>),
    out: &Path,
    resume: bool,
    stop: bool,
) -> Outcome {
    run_with(bound, config, (rows, steps, &[]), out, resume, stop)
}

/// The same with rows to evaluate on.
fn run_with(
    bound: &Bound,
    config: &Train,
    (rows, steps, eval): (&[Row], &[Vec<usize>], &[Row]),
    out: &Path,
    resume: bool,
    stop: bool,
) -> Outcome {
    let order = |_, _| steps.to_vec();
    let start = Start { n_layers: bound.policy.model.n_layers(), ..Start::steps(0) };
    let (stop, rounds) = (AtomicBool::new(stop), bound.form.rounds());
    let job = job(bound, config, rows, &order, out);
    luthier_train::run(&Job { eval, rounds, start: &start, stop: &stop, resume, ..job }).unwrap()
}

fn pinned(recorded: &StateDict, bound: &Bound, final_name: impl Fn(&str) -> String) {
    let (mut all, mut steps) = (Vec::new(), Vec::new());
    for t in 0..10 {
        let batch = golden::batch(recorded, &format!("step.{t}."));
        let first = all.len();
        all.extend(rows(&batch));
        steps.push((first..all.len()).collect::<Vec<_>>());
    }
    let config = Train { update: update(), ..Train::default() };
    let out = tempfile::tempdir().unwrap();
    run(bound, &config, &(all, steps), out.path(), false, false);
    let lines = metrics::read(&out.path().join("metrics.jsonl")).unwrap();
    let column = |name: &str| recorded.get(name).unwrap().to_vec1::<f32>().unwrap();
    let (losses, norms) = (column("losses"), column("grad_norms"));
    for t in 0..10 {
        for (key, want) in [("loss", losses[t]), ("grad_norm", norms[t])] {
            let (got, want) = (lines[t][key].as_f64().unwrap(), f64::from(want));
            assert!((got - want).abs() < 1e-4 * want, "step {t}: {key} {got}, expected {want}");
        }
    }
    for Param { name, var, .. } in &bound.params {
        let want = recorded.get(&final_name(name)).unwrap_or_else(|| panic!("{name}"));
        assert_close(name, &var.as_detached_tensor(), want, 2e-3, 1e-5);
    }
}

/// The recorded name that ends in PEFT's key of one of our variables.
fn peft_key(model: &dyn Model, name: &str, known: &[String]) -> String {
    let (site, part) = name.split_once(".lora_").unwrap();
    let module = model.sites().get(site).unwrap().module.clone().unwrap();
    let tail = format!("{module}.lora_{part}.weight");
    known.iter().find(|k| k.ends_with(&tail)).unwrap_or_else(|| panic!("no {tail}")).clone()
}

#[test]
fn ten_losses_of_a_lora_run_are_those_of_pytorch() {
    let model = model("llama");
    let bound = peft::load(&golden::golden("lora"), &model, None).unwrap();
    let recorded = golden::load_tensors("lora/run.safetensors");
    let finals = recorded.iter().map(|(n, _)| n.to_string()).filter(|n| n.starts_with("final."));
    let known: Vec<String> = finals.collect();
    pinned(&recorded, &bound, |name| peft_key(model.as_ref(), name, &known));
}

#[test]
fn ten_losses_of_full_fine_tuning_are_those_of_pytorch() {
    let model = model("llama-tied-llama3");
    let params = Params { full: Some(Full::default()), ..Params::default() };
    let bound = params.bind(&model, Seed(0)).unwrap();
    let recorded = golden::load_tensors("models/llama-tied-llama3/run.safetensors");
    pinned(&recorded, &bound, |name| format!("final.{name}"));
}

fn gradients(bound: &Bound, batches: &[Batch], keep: bool) -> (f64, Gradients) {
    let loss = Loss::default();
    let objective = loss.objective().unwrap();
    let scale = 1.0 / objective.normaliser(&batches.iter().collect::<Vec<_>>());
    let (mut sums, mut sum) = (Sums::new(&bound.params, Gradients::new()), 0.0);
    let step = Step {
        policy: &bound.policy,
        params: &bound.params,
        objective: objective.as_ref(),
        teacher: None,
        keep,
    };
    let whole = Totals::of(batches);
    for batch in batches {
        let share = step.forward_backward(batch, &whole, None, scale, &mut sums).unwrap();
        sum += share.sum * scale;
    }
    (sum, sums.gradients())
}

fn adapted() -> (Bound, Batch) {
    let bound = peft::load(&golden::golden("lora"), &model("llama"), None).unwrap();
    (bound, golden::batch(&golden::load_tensors("lora/golden.safetensors"), ""))
}

#[test]
fn layer_by_layer_gives_pefts_gradients_kept_or_recomputed() {
    let recorded = golden::load_tensors("lora/golden.safetensors");
    let (bound, batch) = adapted();
    let (loss, kept) = gradients(&bound, std::slice::from_ref(&batch), true);
    let want = f64::from(recorded.get("loss").unwrap().to_vec1::<f32>().unwrap()[0]);
    assert!((loss - want).abs() < 1e-4 * want);
    let by_name: BTreeMap<String, _> =
        golden::gradients(&recorded).map(|(n, t)| (n.to_string(), t)).collect();
    assert_eq!(by_name.len(), kept.len());
    let known: Vec<String> = by_name.keys().cloned().collect();
    for (name, got) in &kept {
        let key = peft_key(bound.policy.model.as_ref(), name, &known);
        assert_close(name, got, by_name[&key], 1e-4, 1e-7);
    }
    let (_, recomputed) = gradients(&bound, std::slice::from_ref(&batch), false);
    for (name, got) in &recomputed {
        assert_same_bits(name, got, &kept[name]);
    }
}

#[test]
fn any_split_of_a_batch_is_the_same_step() {
    let (bound, batch) = adapted();
    let one: Vec<Batch> = rows(&batch).iter().map(|r| Batch::from_rows([r])).collect();
    let (loss, whole) = gradients(&bound, std::slice::from_ref(&batch), true);
    let (split_loss, split) = gradients(&bound, &one, true);
    assert!((loss - split_loss).abs() < 1e-6 * loss);
    for (name, got) in &split {
        assert_close(name, got, &whole[name], 2e-5, 1e-8);
    }
}

#[test]
fn passes_are_one_batch_at_any_number_of_threads() {
    let (rows, _) = twelve();
    let batch = |rows: &[Row]| Batch::from_rows(rows);
    let split: Vec<Batch> = rows.iter().map(|row| batch(std::slice::from_ref(row))).collect();
    let run = |passes: &[Batch], threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let bound = bound("[lora]\nr = 2\nalpha = 8\n");
            let mut stepper = Stepper::new(&update(), &bound.params, &Start::steps(4)).unwrap();
            let loss = Loss::default();
            let objective = loss.objective().unwrap();
            let step = Step {
                policy: &bound.policy,
                params: &bound.params,
                objective: objective.as_ref(),
                teacher: None,
                keep: true,
            };
            let mut used = Gradients::new();
            let mut report = |number| {
                let describe = &|i: usize| format!("row {i}");
                let data = Data { number, passes, noise: Seed(0), describe };
                step.run(&data, &mut used, &mut stepper).unwrap()
            };
            // The first step of the warm-up moves nothing.
            let reports = [report(1), report(2), report(3)];
            (reports.map(|r| (r.loss, r.grad_norm, r.tokens)), bytes(&bound))
        })
    };
    let (reports, weights) = run(&split, 1);
    for threads in [2, 3, 16] {
        let (others, same) = run(&split, threads);
        assert!(others == reports && same == weights, "{threads} threads: {others:?} {reports:?}");
    }
    let (whole, _) = run(&[batch(&rows)], 2);
    for ((loss, norm, tokens), (want_loss, want_norm, want_tokens)) in reports.iter().zip(&whole) {
        assert!((loss - want_loss).abs() < 1e-5 * want_loss, "{loss} {want_loss}");
        assert!((norm - want_norm).abs() < 1e-4 * want_norm, "{norm} {want_norm}");
        assert_eq!(tokens, want_tokens);
    }
}

fn fresh() -> Bound {
    bound("[lora]\nr = 2\nalpha = 8\ndropout = 0.2\n")
}

#[test]
fn a_resumed_run_is_bit_equal_to_an_uninterrupted_one() {
    let data = twelve();
    let config = Train { update: update(), epochs: 2.0, save_steps: 1, ..Train::default() };
    let (whole, straight) = (fresh(), tempfile::tempdir().unwrap());
    run(&whole, &config, &data, straight.path(), false, false);
    let want = bytes(&whole);
    for at in [1, 6, 11] {
        // Killed after checkpoint `at`: later checkpoints never came to be, later lines did.
        let (killed, out) = (fresh(), tempfile::tempdir().unwrap());
        run(&killed, &config, &data, out.path(), false, false);
        killed_after(at, out.path());
        let resumed = fresh();
        run(&resumed, &config, &data, out.path(), true, false);
        assert!(bytes(&resumed) == want, "resumed at step {at}: other weights");
        assert_eq!(lines(out.path()), lines(straight.path()), "resumed at step {at}: other log");
    }
}

#[test]
fn an_interruption_leaves_a_checkpoint_to_go_on_from() {
    let data = twelve();
    let config = Train { update: update(), ..Train::default() };
    let (whole, straight) = (fresh(), tempfile::tempdir().unwrap());
    run(&whole, &config, &data, straight.path(), false, false);
    let (first, out) = (fresh(), tempfile::tempdir().unwrap());
    let outcome = run(&first, &config, &data, out.path(), false, true);
    assert_eq!(outcome.stopped, Some(Stopped::Interrupted(out.path().join("checkpoint-1"))));
    let second = fresh();
    let outcome = run(&second, &config, &data, out.path(), true, false);
    assert_eq!((outcome.steps, outcome.stopped), (6, None));
    assert!(bytes(&second) == bytes(&whole));
}

#[test]
fn the_best_evaluation_is_kept_and_patience_ends_the_run() {
    let (rows, steps) = twelve();
    let config: Train = Train {
        // Far too fast: the evaluation gets worse after a few steps.
        update: toml::from_str("[adamw]\nlearning_rate = 0.3\n[schedule.constant]\n").unwrap(),
        epochs: 4.0,
        eval_steps: 1,
        load_best_model_at_end: true,
        early_stopping_patience: Some(3),
        ..Train::default()
    };
    let (bound, out) = (fresh(), tempfile::tempdir().unwrap());
    let data = (rows.as_slice(), steps.as_slice(), &rows[..3]);
    let outcome = run_with(&bound, &config, data, out.path(), false, false);
    let lines = metrics::read(&out.path().join("metrics.jsonl")).unwrap();
    let evals: Vec<f64> = lines.iter().filter_map(|l| l["eval_loss"].as_f64()).collect();
    let lowest = evals.iter().copied().fold(f64::INFINITY, f64::min);
    let (step, best) = outcome.best.unwrap();
    assert_eq!((best, evals[step as usize - 1]), (lowest, lowest));
    assert_eq!(outcome.stopped, Some(Stopped::EarlyStopping));
    assert_eq!(outcome.steps, step + 3, "three evaluations without improvement, then the end");
    let objective = config.loss.objective().unwrap();
    let (again, _) = luthier_train::evaluate::evaluate(
        &bound.policy,
        objective.as_ref(),
        None,
        &rows[..3],
        4096,
    )
    .unwrap();
    assert_eq!(again, best, "the weights are not those of the best evaluation");
}
