//! Several tasks in one step: numbers known from the papers' definitions.

use candle_core::{Device, Var};
use luthier_core::{Batch, Row, Seed};
use luthier_loss::{Loss, Nll, Objective, Seen, Tasks, Terms, Totals};
use luthier_testkit::Said;

/// Rows of these tasks and losses, every token of weight 1 behind one that is not trained.
fn rows(of: &[(usize, &[f32])]) -> (Vec<Row>, Vec<f32>) {
    let row = |(example, (task, losses)): (usize, &(usize, &[f32]))| {
        let n = losses.len() + 1;
        let weights = (0..n).map(|i| f32::from(u8::from(i > 0))).collect();
        Row {
            ids: vec![0; n],
            targets: vec![0; n],
            weights,
            example,
            task: *task,
            ..Row::default()
        }
    };
    let logps = of
        .iter()
        .flat_map(|(_, losses)| std::iter::once(0.0).chain(losses.iter().map(|loss| -loss)));
    (of.iter().enumerate().map(row).collect(), logps.collect())
}

fn terms(
    objective: &dyn Objective,
    batch: &Batch,
    logps: &[f32],
    step: &Totals,
) -> (Terms, Vec<f32>) {
    let logp_n = Var::from_slice(logps, logps.len(), &Device::Cpu).unwrap();
    let mut given = Said(logp_n.as_tensor().clone());
    let terms = objective.terms(Seen { out: &mut given, teacher: None, batch, step }).unwrap();
    let grads = terms.sum.backward().unwrap();
    let gradient = match grads.get(&logp_n) {
        Some(gradient) => gradient.to_vec1::<f32>().unwrap(),
        None => vec![0.0; logps.len()],
    };
    (terms, gradient)
}

/// The loss of a step in one pass.
fn loss(objective: &dyn Objective, of: &[(usize, &[f32])]) -> f64 {
    let (rows, logps) = rows(of);
    let batch = Batch::from_rows(&rows);
    let (terms, _) = terms(objective, &batch, &logps, &Totals::of([&batch]));
    f64::from(terms.sum.to_scalar::<f32>().unwrap()) / objective.normaliser(&[&batch])
}

fn tasks(text: &str) -> Tasks {
    let loss: Loss = toml::from_str(&format!("[tasks]\n{text}")).unwrap();
    let tasks = loss.tasks.unwrap();
    tasks.check().unwrap();
    tasks
}

fn near(got: f64, want: f64) {
    assert!((got - want).abs() < 2e-6 * want.abs().max(1.0), "{got}, expected {want}");
}

/// A1 [1, 1, 1], A2 [5], B1 [2, 4].
const STEP: [(usize, &[f32]); 3] = [(0, &[1.0, 1.0, 1.0]), (0, &[5.0]), (1, &[2.0, 4.0])];
const CASES: [(&str, f64); 4] =
    [("case1", 14.0 / 6.0), ("case2", 3.0), ("case3", 2.5), ("case4", 3.0)];

#[test]
fn each_case_is_the_papers_reduction() {
    for (mode, want) in CASES {
        near(loss(&tasks(&format!("mode = \"{mode}\"")), &STEP), want);
    }
    assert_eq!(tasks(""), tasks("mode = \"case3\""));
    let weighed = tasks("task_weights = {a = 0.75, b = 0.25}").of(&["a", "b"]).unwrap();
    near(loss(&weighed, &STEP), 2.25);
    // Only the weights of tasks that are there divide.
    for weights in [[0.75, 0.25], [0.01, 5.0]] {
        near(loss(&tasks("").weighted(&weights), &STEP[..2]), 2.0);
    }
    near(loss(&tasks("").weighted(&[0.0, 1.0]), &STEP), 3.0);
}

#[test]
fn with_one_task_the_tasks_do_not_matter() {
    let one: Vec<(usize, &[f32])> = STEP.iter().map(|(_, losses)| (3, *losses)).collect();
    for (a, b) in [("case3", "case1"), ("case4", "case2")] {
        let of = |mode: &str| loss(&tasks(&format!("mode = \"{mode}\"")), &one);
        near(of(a), of(b));
    }
}

#[test]
fn case_one_and_no_second_objective_are_nll_bit_by_bit() {
    let (rows, logps) = rows(&STEP);
    let mut batch = Batch::from_rows(&rows);
    batch.weights_n[2] = 0.37;
    let step = Totals::of([&batch]);
    let (want, want_gradient) = terms(&Nll::default(), &batch, &logps, &step);
    let mut answers = batch.clone();
    answers.tasks_b.fill(0);
    let alone: Loss = toml::from_str("[rationale]\nalpha = 0.0").unwrap();
    let alone = alone.objective().unwrap();
    assert_eq!(alone.unit().rows(), 1);
    let case1 = tasks("mode = \"case1\"");
    for (objective, batch) in [(&case1 as &dyn Objective, &batch), (alone.as_ref(), &answers)] {
        let (got, gradient) = terms(objective, batch, &logps, &Totals::of([batch]));
        let bits = |terms: &Terms| terms.sum.to_scalar::<f32>().unwrap().to_bits();
        assert_eq!(bits(&got), bits(&want));
        assert_eq!(gradient, want_gradient);
        assert_eq!(objective.normaliser(&[batch]), Nll::default().normaliser(&[batch]));
    }
}

#[test]
fn an_answer_and_its_reason_share_the_loss_by_alpha() {
    let step: [(usize, &[f32]); 3] = [(0, &[1.2]), (1, &[0.9, 0.7, 0.8]), (1, &[0.8])];
    for (alpha, want) in [(0.5, 1.0), (0.75, 0.9)] {
        let loss_of: Loss = toml::from_str(&format!("[rationale]\nalpha = {alpha}")).unwrap();
        near(loss(loss_of.objective().unwrap().as_ref(), &step), want);
    }
    let wrong: Loss = toml::from_str("[rationale]\nalpha = 1.5").unwrap();
    assert!(wrong.objective().err().unwrap().to_string().contains("train.loss.rationale.alpha"));
}

#[test]
fn focal_losses_have_their_known_values() {
    let of = |gamma: f64, p: f64| {
        let text = format!("mode = \"focal_sample\"\nfocal_gamma = {gamma:?}");
        loss(&tasks(&text), &[(0, &[-(p.ln() as f32)])])
    };
    assert!((of(2.0, 0.9) - 0.001_053_6).abs() < 1e-7, "{}", of(2.0, 0.9));
    assert!((of(2.0, 0.1) - 1.865_094).abs() < 2e-6, "{}", of(2.0, 0.1));
    let plain = tasks("mode = \"focal_sample\"\nfocal_gamma = 0.0");
    near(loss(&plain, &STEP), 2.5);
    // One row a task of one token: the mean probability is its own.
    let each: [(usize, &[f32]); 2] = [(0, &[0.3]), (1, &[2.0])];
    for alpha in [1.0, 0.25] {
        let of = |mode: &str| {
            loss(&tasks(&format!("mode = \"{mode}\"\nfocal_alpha = {alpha:?}")), &each)
        };
        near(of("focal_task"), of("focal_sample"));
    }
}

/// `Σ_k v_k (1 − P_k)^γ (−log P_k)`, by the definition.
fn focal_task(of: &[(usize, Vec<f64>)], gamma: f64, shares: &[f64]) -> f64 {
    let task = |(k, share): (usize, &f64)| {
        let rows: Vec<f64> = of
            .iter()
            .filter(|(task, _)| *task == k)
            .map(|(_, logps)| logps.iter().map(|l| l.exp()).sum::<f64>() / logps.len() as f64)
            .collect();
        let mean = rows.iter().sum::<f64>() / rows.len() as f64;
        -share * (1.0 - mean).powf(gamma) * mean.ln()
    };
    shares.iter().enumerate().map(task).sum()
}

#[test]
fn the_focal_loss_of_tasks_and_its_gradient_are_those_of_the_definition() {
    let mut rng = Seed(11).rng();
    let lengths = [(0, 3), (1, 1), (0, 2), (1, 4), (2, 5)];
    let logps: Vec<(usize, Vec<f64>)> = lengths
        .iter()
        .map(|(task, n)| (*task, (0..*n).map(|_| -3.0 * rng.uniform()).collect()))
        .collect();
    let losses: Vec<(usize, Vec<f32>)> =
        logps.iter().map(|(k, l)| (*k, l.iter().map(|l| -*l as f32).collect())).collect();
    let given: Vec<(usize, &[f32])> = losses.iter().map(|(k, l)| (*k, l.as_slice())).collect();
    let shares = [0.2, 0.5, 0.3];
    for gamma in [0.0, 0.5, 2.0] {
        let text = format!("mode = \"focal_task\"\nfocal_gamma = {gamma:?}");
        let objective = tasks(&text).weighted(&shares);
        near(loss(&objective, &given), focal_task(&logps, gamma, &shares));
        let (rows, flat) = rows(&given);
        let batch = Batch::from_rows(&rows);
        let (_, gradient) = terms(&objective, &batch, &flat, &Totals::of([&batch]));
        let by = objective.normaliser(&[&batch]);
        let mut at = 0;
        for (row, (_, of_row)) in logps.iter().enumerate() {
            assert_eq!(gradient[at], 0.0);
            for j in 0..of_row.len() {
                let moved = |by: f64| {
                    let mut logps = logps.clone();
                    logps[row].1[j] += by;
                    focal_task(&logps, gamma, &shares)
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                let got = f64::from(gradient[at + 1 + j]) / by;
                assert!((got - slope).abs() < 1e-6, "γ {gamma}, row {row}: {got} {slope}");
            }
            at += of_row.len() + 1;
        }
    }
}

#[test]
fn whole_tasks_in_passes_of_their_own_change_nothing() {
    let (all, logps) = rows(&STEP);
    let batch = Batch::from_rows(&all);
    let step = Totals::of([&batch]);
    let parts = [Batch::from_rows(&all[..2]), Batch::from_rows(&all[2..])];
    let cut = parts[0].n();
    for mode in ["case1", "case2", "case3", "case4", "focal_sample", "focal_task"] {
        let objective = tasks(&format!("mode = \"{mode}\"")).weighted(&[0.3, 0.7]);
        let (whole, gradient) = terms(&objective, &batch, &logps, &step);
        let (a, first) = terms(&objective, &parts[0], &logps[..cut], &step);
        let (b, second) = terms(&objective, &parts[1], &logps[cut..], &step);
        let value = |terms: &Terms| f64::from(terms.sum.to_scalar::<f32>().unwrap());
        near(value(&a) + value(&b), value(&whole));
        assert_eq!([first, second].concat(), gradient, "{mode}");
    }
}

#[test]
fn the_log_tells_tasks_apart_by_name() {
    let named = tasks("mode = \"case1\"").of(&["copy", "add"]).unwrap();
    let (rows, logps) = rows(&STEP);
    let batch = Batch::from_rows(&rows);
    let (terms, _) = terms(&named, &batch, &logps, &Totals::of([&batch]));
    let told: Vec<(&str, f64)> =
        terms.logs.iter().map(|log| (log.name, log.sum / log.weight)).collect();
    assert_eq!(told, [("nll", 14.0 / 6.0), ("nll/copy", 2.0), ("nll/add", 3.0)]);
    assert_eq!((named.name(1), named.name(7)), ("add".to_string(), "7".to_string()));
}

#[test]
fn weights_that_cannot_be_meant_are_refused() {
    let of = |text: &str| toml::from_str::<Loss>(&format!("[tasks]\n{text}")).unwrap();
    let refused = |text: &str| of(text).objective().err().unwrap().to_string();
    assert!(refused("focal_gamma = -1.0").contains("train.loss.tasks.focal_gamma"));
    assert!(refused("task_weights = {a = -1.0}").contains("task_weights.a"));
    assert!(refused("task_weights = {a = 0.0}").contains("nothing would be learned"));
    let names = ["copy".to_string(), "add".to_string()];
    let named = |text: &str| of(text).of_tasks(&names).err().unwrap().to_string();
    let odd = named("task_weights = {copi = 1.0, add = 2.0}");
    assert!(odd.contains("task_weights.copi") && odd.contains("did you mean copy"), "{odd}");
    assert!(named("task_weights = {add = 2.0}").contains("no weight is given for the task copy"));
    let untold = Loss::default().of_tasks(&names).err().unwrap().to_string();
    assert!(untold.starts_with("data.task") && untold.contains("[train.loss.tasks]"), "{untold}");
    let untold = of("").of_tasks(&[]).err().unwrap().to_string();
    assert!(untold.starts_with("train.loss.tasks") && untold.contains("data.task"), "{untold}");
}
