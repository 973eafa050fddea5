//! How the rows of a step are read and cut into passes, through whole runs: masks that are learned as tokens
//! that are new, passes of one task.

use std::path::Path;

use luthier_core::{Row, Seed};
use luthier_params::Bound;
use luthier_train::{Job, Train, draw, log::metrics};

mod job;

use job::{bound, bytes, job, killed_after};

const MASK: u32 = 7;

/// Sixteen rows of two tasks, none of which has the mask.
fn rows() -> Vec<Row> {
    let mut rng = Seed(3).rng();
    let mut row = |i: usize| {
        let tokens: Vec<u32> = (0..7 + i).map(|_| 8 + rng.below(88) as u32).collect();
        let weights: Vec<f32> = (0..tokens.len()).map(|t| if t < 3 { 0.0 } else { 1.0 }).collect();
        Row { task: i % 3 / 2, ..Row::from_tokens(&tokens, &weights, i) }
    };
    (0..16).map(&mut row).collect()
}

fn config(settings: &str) -> Train {
    let text = format!(
        "save_steps = 1\nbatch_size = 4\n{settings}\n[update.adamw]\nlearning_rate = 1e-2\n"
    );
    let mut config: Train = toml::from_str(&text).unwrap();
    if config.loss.tasks.is_some() {
        config.loss = config.loss.of_tasks(&["a".to_string(), "b".to_string()]).unwrap();
    }
    config.check().unwrap();
    config
}

/// Four steps; what they log as their losses.
fn run(bound: &Bound, config: &Train, out: &Path, resume: bool) -> Vec<f64> {
    let (rows, draw) = (rows(), draw::of(config, Some(MASK)).unwrap());
    let steps: Vec<Vec<usize>> = (0..4).map(|s| (4 * s..4 * s + 4).collect()).collect();
    let order = |_, _| steps.clone();
    let job = job(bound, config, &rows, &order, out);
    luthier_train::run(&Job { draw: draw.as_deref(), resume, ..job }).unwrap();
    let lines = metrics::read(&out.join("metrics.jsonl")).unwrap();
    lines.iter().filter_map(|line| line.get("loss")?.as_f64()).collect()
}

fn corrupted(init: &str) -> Train {
    config(&format!(
        "[corrupt]\nmask_ratio = 0.8\nmask_warmup_ratio = 0.1\nmask_token = {MASK}\n\
         mask_token_init = \"{init}\"\n"
    ))
}

#[test]
fn a_fresh_mask_is_another_one_and_a_resumed_run_reads_it_the_same() {
    let (mean, own) = (corrupted("mean"), corrupted("own"));
    for form in ["[full]\n", "[lora]\nr = 2\n"] {
        let (whole, out) = (bound(form), tempfile::tempdir().unwrap());
        let losses = run(&whole, &mean, out.path(), false);
        // The weights that a checkpoint brings back are not those that training began with.
        killed_after(2, out.path());
        let resumed = bound(form);
        run(&resumed, &mean, out.path(), true);
        assert!(bytes(&resumed) == bytes(&whole), "{form}");
        let (other, out) = (bound(form), tempfile::tempdir().unwrap());
        let others = run(&other, &own, out.path(), false);
        assert_eq!(losses[0], others[0], "{form}: nothing is hidden yet");
        assert!((losses[1] - others[1]).abs() > 1e-4, "{form}: {losses:?} {others:?}");
    }
}

#[test]
fn passes_of_one_task_change_rounding_alone() {
    let losses = |settings: &str| {
        let (bound, out) = (bound("[full]\n"), tempfile::tempdir().unwrap());
        run(&bound, &config(settings), out.path(), false)
    };
    for mode in ["case2", "case3", "case4"] {
        let loss =
            format!("[loss.tasks]\nmode = \"{mode}\"\ntask_weights = {{ a = 1.0, b = 3.0 }}");
        let mixed = losses(&loss);
        for micro in ["", "micro_tokens = 24\n"] {
            let apart = losses(&format!("{micro}group_by_task = \"pass\"\n{loss}"));
            let near = mixed.iter().zip(&apart).all(|(a, b)| (a - b).abs() < 1e-4);
            assert!(near && apart.len() == 4, "{mode}: {mixed:?} {apart:?}");
        }
    }
}
