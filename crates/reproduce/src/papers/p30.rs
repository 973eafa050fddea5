//! MFTCoder (Liu et al. 2024, paper 30): the loss balances tasks, where tokens would let the longest rule.
//!
//! A decoder from scratch learns two tasks at once: to copy 20 of 16 letters, and to add two numbers mod 13,
//! whose answer is one token. Every step has 36 rows of the first and 4 of the second, so that 720 of 724
//! trained tokens are copies. Arms: the mean over tokens, over rows and over tasks, the focal loss of tokens,
//! and CoBa; the same fresh rows in the same order. After 1600 steps: the share of 300 further rows of each task
//! that are right in every token.
//!
//! **Departures**: (1) means are those of a step, not of a micro-batch (a step is one pass here); (2) the decoder has
//! rotary positions, gated MLPs and no dropout, as all of this program's; (3) 1600
//! steps instead of 800 to 1000, after which every arm but one guesses (see the notes); (4) the focal loss and
//! CoBa, which the spec does not pilot, are asides; CoBa is asked about given histories by its tests;
//! (5) `case4` is compared with `case3` by its losses in the first 20 steps, not trained to the end: where the rows of
//! a task have one length, both are one.

use luthier_core::{Result, Rng, Row, Seed};
use luthier_loss::Mode;
use luthier_params::{Full, Params};
use luthier_train::Train;
use luthier_update::{Schedules, schedule::Constant};
use serde_json::Value;

use crate::{Inequality, Lab, Limit, Measured, Paper, Sizes, Small, measure, recipe};

/// The check.
pub const PAPER: Paper = Paper {
    number: 30,
    title: "MFTCoder: multi-task fine-tuning",
    claim: "where one task has nearly all tokens, a loss in which every task counts the same learns the \
        other one at least twice as well in the same steps, and costs the first nothing",
    recipes: &[STATIC, DYNAMIC],
    seeds: 3,
    run,
};

const STATIC: &str = "recipes/tasks/tasks.toml";
const DYNAMIC: &str = "recipes/tasks/coba.toml";

const LETTERS: usize = 16;
const COPIED: usize = 20;
const NUMBERS: usize = 13;
const COPY: u32 = 29;
const PLUS: u32 = 30;
const EQUALS: u32 = 31;

const SIZES: Sizes =
    Sizes { layers: 2, width: 48, heads: 4, kv_heads: 4, ffn: 128, vocab: 32, tied: false };

const STEPS: usize = 1600;
/// Rows of each task in a step.
const ROWS: [usize; 2] = [36, 4];
const TESTS: usize = 300;
/// Rows of each task that dynamic weights look at.
const HELD_OUT: usize = 200;
/// Steps in which two losses that must be one are compared.
const COMPARED: usize = 20;

const TASKS: [&str; 2] = ["copy", "add"];
const TOKENS: &str = "case1";
const ROWWISE: &str = "case2";
const BY_TASK: &str = "case3";
const BY_TASK_AND_ROW: &str = "case4";
const COBA: &str = "coba";
const FOCAL: &str = "focal_sample";
const ARMS: [&str; 5] = [TOKENS, ROWWISE, BY_TASK, FOCAL, COBA];

/// The design before this one, in case somebody thinks of it again.
const TRIED: &str = "tried before: 900 steps, one seed: added right case1 0.053, case2 0.143, case3 and case4 0.123, \
    focal_sample 0.307, focal_task 0.100, CoBa 0.120, where guessing gives 0.077; all that is claimed held, next to \
    nothing. Then case1 alone: 0.077, 0.133, \
    0.493, 0.880 after 1200, 1500, 1800, 2500 steps (and case2 0.657 after 1800): 1600, where twice as much has room";

const LEAST: &str = "the worse of both";
const APART: &str = "apart from case3 in the first steps";

fn run(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let start = Small::random(SIZES, Seed(seed).split("weights"))?;
        let train = steps(Seed(seed).split("train"), STEPS);
        let held_out = [0, 1].map(|task| rows(task, HELD_OUT, Seed(seed).split("held out")));
        let tests = [0, 1].map(|task| rows(task, TESTS, Seed(seed).split("test")));
        for arm in ARMS {
            let config = settings(arm, seed)?;
            let bound = start.bind(&config)?;
            let eval = if arm == COBA { held_out.concat() } else { Vec::new() };
            lab.logged(&bound, &train, &eval, &Train { logging_steps: u64::MAX, ..config })?;
            let right = [
                measure::exact(&bound.policy, &tests[0])?,
                measure::exact(&bound.policy, &tests[1])?,
            ];
            lab.say(&format!("seed {seed}, {arm}: copied {:.3}, added {:.3}", right[0], right[1]));
            for (task, right) in TASKS.iter().zip(right) {
                measured.add(arm, task, right);
            }
            measured.add(arm, LEAST, right[0].min(right[1]));
        }
        measured.add(BY_TASK_AND_ROW, APART, apart(lab, &start, &train, seed)?);
    }
    claims(&mut measured)?;
    measured.note(TRIED);
    Ok(measured)
}

fn claims(measured: &mut Measured) -> Result<()> {
    let of = |arm, figure| measured.values(arm, figure);
    let (by_task, tokens) = (of(BY_TASK, LEAST)?, of(TOKENS, LEAST)?);
    let twice: Vec<f64> = tokens.iter().map(|right| 2.0 * right).collect();
    let none = vec![0.0; tokens.len()];
    let at_least = |what: &str, of: &[f64], minus: &[f64], limit| {
        Inequality::paired(what, of, minus, Limit::AtLeast(limit))
    };
    let above = |what: &str, of: &[f64], minus: &[f64]| {
        Inequality::paired(what, of, minus, Limit::Above(0.0)).aside()
    };
    let claims = [
        at_least("the worse of both tasks, case3 − 2 × case1", by_task, &twice, 0.0),
        at_least("copied with case3", of(BY_TASK, TASKS[0])?, &none, 0.98),
        Inequality::paired(
            "largest difference between the losses of case3 and case4 in the first steps",
            of(BY_TASK_AND_ROW, APART)?,
            &none,
            Limit::AtMost(1e-3),
        ),
        above("the worse of both tasks, case3 − case2", by_task, of(ROWWISE, LEAST)?),
        above("the worse of both tasks, CoBa − case1", of(COBA, LEAST)?, tokens),
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

/// The training settings of an arm.
fn settings(arm: &str, seed: u64) -> Result<Train> {
    let set = [
        "batch_size=40",
        "micro_tokens=2048",
        "epochs=1",
        "learning_rate=2e-3",
        "weight_decay=0",
        "shuffle=false",
    ];
    let mut config = recipe(if arm == COBA { DYNAMIC } else { STATIC }, &set)?;
    let mode = match arm {
        TOKENS => Mode::Case1,
        ROWWISE => Mode::Case2,
        BY_TASK_AND_ROW => Mode::Case4,
        FOCAL => Mode::FocalSample,
        _ => Mode::Case3,
    };
    config.loss.tasks.get_or_insert_default().mode = mode;
    config.params = Params { full: Some(Full::default()), ..Params::default() };
    config.update.schedule =
        Schedules { constant: Some(Constant::default()), ..Schedules::default() };
    config.seed = seed;
    Ok(config)
}

/// The largest difference between the losses of `case3` and `case4`, which are one where the rows of a task have
/// one length.
fn apart(lab: &Lab, start: &Small, train: &[Row], seed: u64) -> Result<f64> {
    let losses = |arm: &str| -> Result<Vec<f64>> {
        let config = Train { max_steps: Some(COMPARED as u64), ..settings(arm, seed)? };
        let (_, lines) = lab.logged(&start.bind(&config)?, train, &[], &config)?;
        Ok(lines.iter().filter_map(|line| line.get("loss").and_then(Value::as_f64)).collect())
    };
    let (a, b) = (losses(BY_TASK)?, losses(BY_TASK_AND_ROW)?);
    Ok(a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max))
}

/// A row of a task.
fn row(task: usize, example: usize, rng: &mut Rng) -> Row {
    let row = if task == 0 {
        let text: Vec<u32> = (0..COPIED).map(|_| rng.below(LETTERS) as u32).collect();
        measure::row(&[&text[..], &[COPY]].concat(), &text, example)
    } else {
        let (a, b) = (rng.below(NUMBERS), rng.below(NUMBERS));
        let [a, b, sum] = [a, b, (a + b) % NUMBERS].map(|n| (LETTERS + n) as u32);
        measure::row(&[a, PLUS, b, EQUALS], &[sum], example)
    };
    Row { task, ..row }
}

/// Rows of one task.
fn rows(task: usize, n: usize, seed: Seed) -> Vec<Row> {
    let mut rng = seed.at(task as u64).rng();
    (0..n).map(|example| row(task, example, &mut rng)).collect()
}

/// Rows of so many steps in their order.
fn steps(seed: Seed, n: usize) -> Vec<Row> {
    let mut rng = seed.rng();
    let mut all = Vec::with_capacity(n * 40);
    for _ in 0..n {
        for (task, rows) in ROWS.into_iter().enumerate() {
            all.extend((0..rows).map(|i| row(task, i, &mut rng)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_its_share_of_both_tasks() {
        let all = steps(Seed(1), 3);
        for step in all.chunks(ROWS.iter().sum()) {
            let tokens = |task: usize| -> usize {
                step.iter().filter(|row| row.task == task).map(Row::trained).sum()
            };
            assert_eq!((tokens(0), tokens(1)), (720, 4));
        }
        let config = settings(BY_TASK, 1).unwrap();
        let plan = crate::lab::order(&all, &config).unwrap().epoch(0);
        assert_eq!(plan[1], (40..80).collect::<Vec<usize>>());
    }

    #[test]
    fn sums_are_right_and_copies_are_copies() {
        for row in rows(1, 50, Seed(2)) {
            let [a, b] = [row.ids[0], row.ids[2]].map(|id| id as usize - LETTERS);
            assert_eq!(row.targets[3] as usize - LETTERS, (a + b) % NUMBERS);
        }
        let copy = &rows(0, 1, Seed(2))[0];
        assert_eq!(copy.ids[..COPIED], copy.targets[COPIED..]);
    }

    #[test]
    fn arms_differ_in_the_loss_and_coba_in_what_weighs_it() {
        let plain = settings(BY_TASK, 4).unwrap();
        for arm in ARMS {
            let mut config = settings(arm, 4).unwrap();
            assert_eq!(config.balance.coba.is_some(), arm == COBA);
            (config.loss, config.balance) = (plain.loss.clone(), plain.balance.clone());
            assert_eq!(config, plain, "{arm}");
        }
    }
}
