//! Weights of tasks that follow held-out losses: interrupted and not, and what they do to a step.

use std::path::Path;

use luthier_core::{Result, Row, Seed};
use luthier_params::Bound;
use luthier_train::{Job, Train};
use serde_json::Value;

mod job;

use job::{bytes, job, killed_after, lines};

fn bound() -> Bound {
    job::bound("[full]\n")
}

/// Rows of two tasks: numbers in order, and any.
fn rows(n: usize, seed: u64) -> Vec<Row> {
    let mut rng = Seed(seed).rng();
    let mut row = |i: usize| {
        let start = rng.below(50) as u32;
        let tokens: Vec<u32> = match i % 2 {
            0 => (start..start + 12).collect(),
            _ => (0..4).map(|_| rng.below(96) as u32).collect(),
        };
        Row { task: i % 2, ..Row::from_tokens(&tokens, &vec![1.0; tokens.len()], i) }
    };
    (0..n).map(&mut row).collect()
}

fn config(balance: &str) -> Train {
    let text = format!(
        "epochs = 2.0\nsave_steps = 1\neval_steps = 5\n[loss.tasks]\n{balance}\n[update.adamw]\nlearning_rate = 1e-2\n"
    );
    let mut config: Train = toml::from_str(&text).unwrap();
    let names = ["order".to_string(), "any".to_string()];
    config.loss = config.loss.of_tasks(&names).unwrap();
    config.check().unwrap();
    config
}

const COBA: &str = "[balance.coba]\nwarmup_steps = 4\nhistory_length = 6\nvalid_rows = 3";
const EVERY_OTHER: &str = "[balance.coba]\nwarmup_steps = 3\nhistory_length = 5\nupdate_interval = 2\nsample_valid_num = 2\nvalid_rows = 2";
const FAMO: &str = "[balance.famo]\nbeta = 0.5\nvalid_rows = 3";

fn run(bound: &Bound, config: &Train, out: &Path, resume: bool) -> Result<()> {
    let (train, eval) = (rows(24, 3), rows(12, 4));
    let steps: Vec<Vec<usize>> = (0..12).map(|s| vec![2 * s, 2 * s + 1]).collect();
    let order = |_, _| steps.clone();
    let job = Job { eval: &eval, resume, ..job(bound, config, &train, &order, out) };
    luthier_train::run(&job).map(|_| ())
}

#[test]
fn a_resumed_balance_is_bit_equal_to_an_uninterrupted_one() {
    for balance in [COBA, EVERY_OTHER, FAMO] {
        let config = config(balance);
        let (whole, straight) = (bound(), tempfile::tempdir().unwrap());
        run(&whole, &config, straight.path(), false).unwrap();
        for at in [1, 3, 8, 17] {
            let (killed, out) = (bound(), tempfile::tempdir().unwrap());
            run(&killed, &config, out.path(), false).unwrap();
            killed_after(at, out.path());
            let resumed = bound();
            run(&resumed, &config, out.path(), true).unwrap();
            assert!(bytes(&resumed) == bytes(&whole), "{balance} resumed at {at}: other weights");
            assert_eq!(lines(out.path()), lines(straight.path()), "{balance} resumed at {at}");
        }
    }
}

#[test]
fn weights_are_logged_sum_to_one_and_move_after_the_warm_up() {
    for (balance, still) in [(COBA, 3), (EVERY_OTHER, 2), (FAMO, 0)] {
        let out = tempfile::tempdir().unwrap();
        let balanced = bound();
        run(&balanced, &config(balance), out.path(), false).unwrap();
        let lines = lines(out.path());
        let steps = lines.iter().filter(|line| line.get("loss").is_some());
        let number = |line: &Value, key: &str| line[key].as_f64().unwrap();
        let weights: Vec<[f64; 2]> = steps
            .map(|line| ["order", "any"].map(|name| number(line, &format!("task_weight/{name}"))))
            .collect();
        assert_eq!(weights.len(), 24);
        for (i, [a, b]) in weights.iter().enumerate() {
            assert!((a + b - 1.0).abs() < 1e-9, "{balance}: {a} {b}");
            // CoBa keeps a tenth of an equal share.
            assert!(balance == FAMO || a.min(*b) >= 0.05 - 1e-9, "{balance}: {a} {b}");
            assert_eq!((a - 0.5).abs() < 1e-12, i < still, "{balance}, step {}: {a}", i + 1);
        }
        // The losses of tasks, in training and in evaluation.
        for key in ["nll/order", "nll/any", "eval_nll/order", "eval_nll/any"] {
            assert!(lines.iter().any(|line| line[key].as_f64().is_some_and(|x| x > 0.0)), "{key}");
        }
        let plain = bound();
        run(&plain, &config(""), tempfile::tempdir().unwrap().path(), false).unwrap();
        assert!(bytes(&plain) != bytes(&balanced), "{balance} changes nothing");
    }
}

#[test]
fn a_mean_over_a_task_wants_the_whole_step_in_one_pass() {
    let mut focal = config("");
    focal.loss = toml::from_str("[tasks]\nmode = \"focal_task\"").unwrap();
    focal.micro_tokens = Some(12);
    let out = tempfile::tempdir().unwrap();
    let error = run(&bound(), &focal, out.path(), false).unwrap_err().to_string();
    assert!(error.starts_with("train.micro_tokens: ") && error.contains("14 tokens"), "{error}");
    focal.micro_tokens = Some(14);
    run(&bound(), &focal, tempfile::tempdir().unwrap().path(), false).unwrap();
}
