//! What settings do to the rows of a step, through whole runs: noise on what is embedded, answers read
//! in part, right answers weighed against wrong ones.

use std::path::Path;

use luthier_core::{Row, Seed};
use luthier_params::Bound;
use luthier_train::{Job, Train, draw, log::metrics};
use luthier_update::Update;

mod job;

use job::{bound, bytes, job, killed_after};

fn config(settings: &str) -> Train {
    let update: Update = toml::from_str("[adamw]\nlearning_rate = 1e-2\n").unwrap();
    let train: Train = toml::from_str(settings).unwrap();
    Train { update, save_steps: 1, batch_size: Some(4), ..train }
}

/// Sixteen rows, of which neighbours are a right answer and a wrong one.
fn rows() -> Vec<Row> {
    let mut rng = Seed(3).rng();
    let mut row = |i: usize| {
        let tokens: Vec<u32> = (0..7 + i).map(|_| rng.below(96) as u32).collect();
        let weight = |t: usize| if t < 3 { 0.0 } else { 1.0 };
        let mut row =
            Row::from_tokens(&tokens, &(0..tokens.len()).map(weight).collect::<Vec<f32>>(), i / 2);
        row.tags = (0..row.len()).map(|t| if t == 4 { 3 } else { 0 }).collect();
        if i % 2 == 1 {
            row.weights.fill(0.0);
        }
        row
    };
    (0..16).map(&mut row).collect()
}

fn run(bound: &Bound, config: &Train, rows: &[Row], out: &Path, resume: bool) -> f64 {
    let steps: Vec<Vec<usize>> = (0..4).map(|s| (4 * s..4 * s + 4).collect()).collect();
    let draw = draw::of(config, Some(7)).unwrap();
    let order = |_, _| steps.clone();
    let job = job(bound, config, rows, &order, out);
    luthier_train::run(&Job { eval: &rows[..4], draw: draw.as_deref(), resume, ..job })
        .unwrap()
        .eval_loss
        .unwrap()
}

/// Logged losses of the steps of a run on rows all of which are learned, and its evaluation.
fn losses(settings: &str) -> (Vec<f64>, f64) {
    let rows: Vec<Row> = rows().into_iter().step_by(2).flat_map(|row| [row.clone(), row]).collect();
    let out = tempfile::tempdir().unwrap();
    let eval = run(&bound("[lora]\nr = 2\n"), &config(settings), &rows, out.path(), false);
    let lines = metrics::read(&out.path().join("metrics.jsonl")).unwrap();
    (lines.iter().filter_map(|line| line.get("loss")?.as_f64()).collect(), eval)
}

fn near(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5)
}

#[test]
fn noise_follows_seed_and_step_and_no_cut_into_passes() {
    let (plain, _) = losses("");
    let (noisy, _) = losses("neftune_noise_alpha = 30.0");
    assert!(plain.iter().zip(&noisy).all(|(a, b)| (a - b).abs() > 1e-4), "{plain:?} {noisy:?}");
    let (cut, _) = losses("neftune_noise_alpha = 30.0\nmicro_tokens = 8");
    assert!(near(&noisy, &cut), "{noisy:?} {cut:?}");
    let (other, _) = losses("neftune_noise_alpha = 30.0\nseed = 1");
    assert!(!near(&noisy, &other));
}

#[test]
fn evaluation_meets_no_noise() {
    // Nothing moves at a rate of 0, so evaluation sees the model as it was, whatever training does.
    let at = |settings: &str| {
        let mut config = config(settings);
        config.update =
            toml::from_str("[adamw]\nlearning_rate = 0.0\nweight_decay = 0.0\n").unwrap();
        let out = tempfile::tempdir().unwrap();
        run(&bound("[lora]\nr = 2\n"), &config, &rows(), out.path(), false)
    };
    let plain = at("");
    assert_eq!(at("neftune_noise_alpha = 30.0"), plain);
    assert_eq!(at("[corrupt]\nmask_ratio = 1.0\nmask_warmup_ratio = 0.0\n"), plain);
}

#[test]
fn nothing_hidden_is_bit_equal_to_no_table_and_something_is_not() {
    let (plain, _) = losses("");
    assert_eq!(losses("[corrupt]\nmask_ratio = 0.0\n").0, plain);
    let (hidden, _) = losses("[corrupt]\nmask_ratio = 1.0\n");
    // The first step hides nothing yet.
    assert_eq!(hidden[0], plain[0]);
    assert!((hidden[3] - plain[3]).abs() > 1e-3, "{hidden:?} {plain:?}");
    let (cut, _) = losses("[corrupt]\nmask_ratio = 1.0\n\n[loss.nll]\n");
    assert_eq!(cut, hidden);
    let (passes, _) = losses("micro_tokens = 8\n[corrupt]\nmask_ratio = 1.0\n");
    assert!(near(&passes, &hidden));
}

#[test]
fn a_resumed_run_draws_the_same() {
    for settings in [
        "neftune_noise_alpha = 30.0",
        "[corrupt]\nmask_ratio = 0.8\nmask_warmup_ratio = 0.1\nreplace_rate = 0.3\n",
        "[loss.fait]\n",
    ] {
        let (config, rows) = (config(settings), rows());
        let (whole, out) = (bound("[lora]\nr = 2\n"), tempfile::tempdir().unwrap());
        run(&whole, &config, &rows, out.path(), false);
        killed_after(2, out.path());
        let resumed = bound("[lora]\nr = 2\n");
        run(&resumed, &config, &rows, out.path(), true);
        assert!(bytes(&resumed) == bytes(&whole), "{settings}");
    }
}

#[test]
fn wrong_answers_weigh_right_ones_and_teach_nothing() {
    let loss = |settings: &str, rows: &[Row]| {
        let (bound, out) = (bound("[lora]\nr = 2\n"), tempfile::tempdir().unwrap());
        run(&bound, &config(settings), rows, out.path(), false);
        let lines = metrics::read(&out.path().join("metrics.jsonl")).unwrap();
        let told = |key: &str| -> Vec<f64> {
            lines.iter().filter_map(|line| line.get(key)?.as_f64()).collect()
        };
        (told("loss"), told("rho"))
    };
    let rows = rows();
    let none = "[loss.fait]\nalpha_line = 0.0\nalpha_tok = 0.0\n";
    let right: Vec<Row> = rows.iter().step_by(2).cloned().collect();
    // Without further weight it is plain learning of the right answers.
    let (plain, _) = {
        let doubled: Vec<Row> = right
            .iter()
            .flat_map(|row| [row.clone(), Row { weights: vec![0.0; row.len()], ..row.clone() }])
            .collect();
        loss("[loss.nll]\n", &doubled)
    };
    let (of_none, rho) = loss(none, &rows);
    assert!(near(&of_none, &plain), "{of_none:?} {plain:?}");
    assert!(rho.iter().all(|rho| (0.0..=1.0).contains(rho)) && rho.len() == 4);
    let (fait, rho) = loss("[loss.fait]\n", &rows);
    assert!(!near(&fait, &plain));
    let (cut, cut_rho) = loss("micro_tokens = 12\n[loss.fait]\n", &rows);
    assert!(near(&fait, &cut) && near(&rho, &cut_rho), "{fait:?} {cut:?}");
    // Another wrong answer enters through rho alone: static weights never look at it.
    let mut others = rows.clone();
    others.iter_mut().skip(1).step_by(2).for_each(|row| row.ids.iter_mut().for_each(|id| *id += 1));
    let fixed = "[loss.fait]\nweight_mode = \"static\"\n";
    assert_eq!(loss(fixed, &rows).0, loss(fixed, &others).0);
    assert_ne!(loss("[loss.fait]\n", &rows).1, loss("[loss.fait]\n", &others).1);
}
