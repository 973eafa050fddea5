//! Merging single-task models back (Fatemi et al. 2024, paper 76): what tuning for some tasks costs
//! elsewhere, and how much of it a merge gives back.
//!
//! The net of `zoo::pairs` with its fitted heads is the vanilla model. Seen: larger and smaller digit,
//! last digit of the sum, difference; unseen: left and right digit, style, which is larger. LoRA of rank 8
//! (`alpha / r = 46 / 32` as published) on both maps of all blocks, heads at rest: one adapter per seen
//! task, one for all of them with the task drawn for every batch. Merged: the base plus `w` times each
//! adapter's product, for several `w`; and, as it should not be done, the mean of the factors.
//!
//! **Departures**: (1) the gelu is its tanh form; (2) a small net, where the paper has language models: no
//! formats, no examples in context, no invalid answers; (3) the best `w` is that with the highest accuracy
//! on seen tasks, on images to choose by.

use luthier_core::{Result, Seed, StateDict};
use luthier_probe::f1::weighted_f1;

use crate::{
    Estimate, Inequality, Lab, Limit, Measured, Paper,
    stats::mean,
    zoo::{
        digits::{DIFFERENCE, GREATER, LEFT, MAX, MIN, RIGHT, STYLE, SUM},
        edit::arithmetic,
        pairs::{ALL, Base},
        train::side_by_side,
    },
};

mod lora;

use lora::Adapter;

/// The check.
pub const PAPER: Paper = Paper {
    number: 76,
    title: "merging single-task adapters back",
    claim: "tuning for several tasks lifts them and costs others; the merge of single-task adapters \
        lifts them by less and costs the others next to nothing",
    recipes: &["recipes/merge/vanilla.yaml"],
    seeds: 5,
    run,
};

/// The tasks that are tuned for.
const SEEN: [usize; 4] = [MAX, SUM, DIFFERENCE, MIN];
const UNSEEN: [usize; 4] = [LEFT, RIGHT, STYLE, GREATER];
/// Steps of a single task, and of all four.
const STEPS: [u64; 2] = [250, 1000];
/// Weights of a merge, without 0 and 1.
const BETWEEN: [f64; 4] = [0.1, 0.25, 0.4, 0.5];
/// The weight that is published: one over the number of tasks.
const USUAL: f64 = 0.25;

const VANILLA: &str = "vanilla";
const MULTI: &str = "multi-task";
const SINGLE: &str = "single-task, own task";
const FACTORS: &str = "mean of the factors";

const SEEN_RIGHT: &str = "seen";
const UNSEEN_RIGHT: &str = "unseen";
const SEEN_F1: &str = "seen, weighted F1";
const UNSEEN_F1: &str = "unseen, weighted F1";
/// On the images to choose by.
const CHOICE: &str = "seen, to choose by";

fn merged(weight: f64) -> String {
    format!("merged, w = {weight}")
}

fn run(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let base = Base::of(lab, seed)?;
        let mut courses: Vec<Vec<usize>> = SEEN.iter().map(|task| vec![*task]).collect();
        courses.push(SEEN.to_vec());
        // The longest first: the others fill the time beside it.
        courses.reverse();
        let mut adapters = side_by_side(&courses, |tasks| {
            let steps = STEPS[usize::from(tasks.len() > 1)];
            let seed = Seed(seed).split("lora").at((tasks.len() * 8 + tasks[0]) as u64);
            Adapter::trained(&base, tasks, steps, seed)
        })?;
        adapters.reverse();
        let tuned: Vec<StateDict> =
            adapters.iter().map(|a| a.folded(&base.weights)).collect::<Result<_>>()?;
        let single: Vec<&StateDict> = tuned[..SEEN.len()].iter().collect();
        let mut arms = vec![
            (VANILLA.to_string(), base.weights.clone()),
            (MULTI.to_string(), tuned[SEEN.len()].clone()),
            (FACTORS.to_string(), Adapter::mean(&adapters[..SEEN.len()])?.folded(&base.weights)?),
        ];
        for weight in BETWEEN.into_iter().chain([1.0]) {
            arms.push((merged(weight), arithmetic(&base.weights, &single, weight)?));
        }
        for ((arm, _), grid) in
            arms.iter().zip(side_by_side(&arms, |(_, net)| Grid::of(&base, net))?)
        {
            grid.add(arm, &mut measured);
        }
        let own = SEEN.iter().zip(&single).map(|(task, net)| Ok(base.tested(net)?[*task]));
        measured.add(SINGLE, SEEN_RIGHT, mean(&own.collect::<Result<Vec<f64>>>()?));
        lab.say(&format!("seed {seed}: {}", told(&measured)?));
    }
    claims(&mut measured)?;
    Ok(measured)
}

fn told(measured: &Measured) -> Result<String> {
    let arms = [VANILLA.to_string(), MULTI.to_string(), merged(USUAL), merged(1.0)];
    let last = |arm: &String| -> Result<String> {
        let of = |figure: &str| measured.values(arm, figure).map(|all| all.last().copied());
        let (seen, unseen) =
            (of(SEEN_RIGHT)?.unwrap_or(f64::NAN), of(UNSEEN_RIGHT)?.unwrap_or(f64::NAN));
        Ok(format!("{arm} {seen:.3}/{unseen:.3}"))
    };
    Ok(arms.iter().map(last).collect::<Result<Vec<String>>>()?.join(", "))
}

fn claims(measured: &mut Measured) -> Result<()> {
    let less = |of: &str, minus: &str, figure: &str, limit: Limit| -> Result<Inequality> {
        let what = format!("{figure}, {of} − {minus}");
        let (of, minus) = (measured.values(of, figure)?, measured.values(minus, figure)?);
        Ok(Inequality::paired(what, of, minus, limit))
    };
    let (usual, whole) = (merged(USUAL), merged(1.0));
    let ends = [measured.values(VANILLA, CHOICE)?, measured.values(&whole, CHOICE)?];
    let between: Vec<&[f64]> = BETWEEN
        .iter()
        .map(|weight| measured.values(&merged(*weight), CHOICE))
        .collect::<Result<_>>()?;
    let most = |arms: &[&[f64]], seed: usize| {
        arms.iter().map(|arm| arm[seed]).fold(f64::NEG_INFINITY, f64::max)
    };
    let inside = |seed: usize| most(&between, seed) - most(&ends, seed);
    let inside: Vec<f64> = (0..ends[0].len()).map(inside).collect();
    let claims = vec![
        less(MULTI, VANILLA, SEEN_RIGHT, Limit::AtLeast(0.15))?,
        less(MULTI, VANILLA, UNSEEN_RIGHT, Limit::AtMost(-0.05))?,
        less(&usual, VANILLA, UNSEEN_RIGHT, Limit::AtLeast(-0.02))?,
        less(&usual, VANILLA, SEEN_RIGHT, Limit::AtLeast(0.08))?,
        Inequality::new(
            "seen, to choose by: the best w between 0 and 1 less the better of both",
            Estimate::of(&inside),
            Limit::Above(0.0),
        ),
        less(&whole, VANILLA, SEEN_RIGHT, Limit::AtMost(0.0))?,
        less(&whole, VANILLA, UNSEEN_RIGHT, Limit::AtMost(0.0))?,
        less(&usual, FACTORS, SEEN_RIGHT, Limit::Above(0.0))?.aside(),
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

/// A row of the grid: one net on all tasks.
struct Grid {
    right: Vec<f64>,
    f1: Vec<f64>,
    choice: f64,
}

impl Grid {
    fn of(base: &Base, net: &StateDict) -> Result<Self> {
        let logits = base.shape.logits(net, &base.test, &ALL)?;
        let f1 = ALL.iter().zip(&logits).map(|(task, logits)| {
            let rows = logits.chunks_exact(base.shape.heads[*task]);
            let best =
                |row: &[f32]| (1..row.len()).fold(0, |b, c| if row[c] > row[b] { c } else { b });
            let answers: Vec<Option<u32>> = rows.map(|row| Some(best(row) as u32)).collect();
            weighted_f1(&answers, &base.test.answers[*task])
        });
        let (f1, valid) = (f1.collect::<Result<Vec<f64>>>()?, base.validated(net)?);
        let choice = mean(&SEEN.map(|task| valid[task]));
        Ok(Grid { right: base.tested(net)?, f1, choice })
    }

    fn add(&self, arm: &str, measured: &mut Measured) {
        let over = |tasks: [usize; 4], of: &[f64]| mean(&tasks.map(|task| of[task]));
        measured.add(arm, SEEN_RIGHT, over(SEEN, &self.right));
        measured.add(arm, UNSEEN_RIGHT, over(UNSEEN, &self.right));
        measured.add(arm, SEEN_F1, over(SEEN, &self.f1));
        measured.add(arm, UNSEEN_F1, over(UNSEEN, &self.f1));
        measured.add(arm, CHOICE, self.choice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_seen_or_unseen() {
        let mut all = [SEEN, UNSEEN].concat();
        all.sort_unstable();
        assert_eq!(all, ALL);
        assert_eq!(USUAL * SEEN.len() as f64, 1.0);
    }
}
