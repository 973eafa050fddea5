//! LiNeS (Wang et al. 2025, paper 50): after tuning, the update is scaled down towards the input.
//!
//! A net that reads two digits and the style of an image is tuned to each of eight questions about
//! them (`zoo::pairs`). Target: accuracy on the question tuned to, a mean over the eight copies;
//! control: on the seven others. The update of block `l` is scaled by `α + (1 − α) · l / (L − 1)`, by
//! one number everywhere, or by LiNeS' numbers in reversed order. Then all eight updates are merged, by
//! task arithmetic and by TIES, each with the best of its scales, and with LiNeS in place of a scale: `α`
//! from the norms, the best `β` of as many.
//!
//! **Departures**: (1) the gelu is its tanh form; (2) `α` is read off the curves on test images, as the
//! largest that restores 85 % of what control lost, and uniform scaling is compared at the same control
//! on the line between its steps; scales and `β` of merges are chosen on other images; (3) TIES trims
//! tensor by tensor, as `luthier merge` does, not over the whole difference at once.

use luthier_core::{Result, StateDict};

use crate::{
    Inequality, Lab, Limit, Measured, Paper,
    stats::mean,
    zoo::{
        edit::{Depth, Merge, arithmetic, by_depth},
        pairs::{ALL, Base},
        train::side_by_side,
    },
};

/// The check.
pub const PAPER: Paper = Paper {
    number: 50,
    title: "LiNeS: layer-increasing network scaling",
    claim: "scaled down towards the input, an update keeps what it taught and gives back what it \
        made the model forget, and merges of several updates get better",
    recipes: &["recipes/merge/lines.yaml"],
    seeds: 5,
    run,
};

/// How an update is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scaling {
    Lines,
    Reversed,
    Uniform,
}

/// Steps of a grid from 0 to 1.
const STEPS: usize = 10;
/// The share of what control lost that is to be restored.
const RESTORED: f64 = 0.85;

const BASE: &str = "base";
const TUNED: &str = "tuned";
const LINES: &str = "LiNeS";
const REVERSED: &str = "LiNeS, reversed";
const UNIFORM: &str = "uniform scaling, same control";

const TARGET: &str = "target";
const CONTROL: &str = "control";
const ALPHA: &str = "α";
const SHARE: &str = "control restored";
const MERGED: &str = "mean accuracy of the merge";
const SCALE: &str = "scale or β";

/// Method, and scales up to so many tenths.
const MERGES: [(&str, usize); 2] = [("task_arithmetic", 10), ("ties", 15)];

fn run(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let base = Base::of(lab, seed)?;
        let tuned = base.tuned(seed)?;
        alone(&base, &tuned, &mut measured)?;
        merged(&base, &tuned, &mut measured)?;
        lab.say(&format!("seed {seed}: {}", told(&measured)?));
    }
    claims(&mut measured)?;
    measured.note(
        "of the spec: with questions that differ at the level of the input, or a base stopped after \
        150 steps, reversed order wins; neither is run here",
    );
    Ok(measured)
}

fn told(measured: &Measured) -> Result<String> {
    let last = |arm: &str, figure: &str| -> Result<f64> {
        Ok(measured.values(arm, figure)?.last().copied().unwrap_or(f64::NAN))
    };
    let of = |arm: &str| -> Result<String> {
        Ok(format!("{arm} {:.3}/{:.3}", last(arm, TARGET)?, last(arm, CONTROL)?))
    };
    let arms: Vec<String> =
        [TUNED, LINES, REVERSED, UNIFORM].map(of).into_iter().collect::<Result<_>>()?;
    Ok(arms.join(", "))
}

fn claims(measured: &mut Measured) -> Result<()> {
    let pairs = [
        (LINES, UNIFORM, TARGET, "target at equal control, LiNeS − uniform scaling", 0.03),
        (LINES, REVERSED, TARGET, "target at equal α, LiNeS − reversed order", 0.02),
    ];
    let mut claims = Vec::new();
    let restored = crate::Estimate::of(measured.values(LINES, SHARE)?);
    claims.push(Inequality::new("control restored", restored, Limit::AtLeast(RESTORED)));
    for (of, minus, figure, what, least) in pairs {
        let (of, minus) = (measured.values(of, figure)?, measured.values(minus, figure)?);
        claims.push(Inequality::paired(what, of, minus, Limit::AtLeast(least)));
    }
    for (method, _) in MERGES {
        let plain = measured.values(method, MERGED)?;
        let lines = measured.values(&format!("{method} + LiNeS"), MERGED)?;
        let what = format!("mean accuracy, {method} + LiNeS − {method}");
        claims.push(Inequality::paired(what, lines, plain, Limit::AtLeast(0.01)));
        let reversed = measured.values(&format!("{method} + reversed"), MERGED)?;
        let what = format!("mean accuracy, {method} + LiNeS − reversed");
        claims.push(Inequality::paired(what, lines, reversed, Limit::Above(0.0)).aside());
    }
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

/// Target and control.
type Point = (f64, f64);

fn point(shares: &[f64], question: usize) -> Point {
    let others: Vec<f64> = ALL.iter().filter(|q| **q != question).map(|q| shares[*q]).collect();
    (shares[question], mean(&others))
}

fn scaled(base: &Base, tuned: &StateDict, scaling: Scaling, share: f64) -> Result<StateDict> {
    let reversed = scaling == Scaling::Reversed;
    let depth = Depth { reversed, ..Depth::new(Some(share), 1.0 - share, base.shape.blocks) };
    match scaling {
        Scaling::Uniform => arithmetic(&base.weights, &[tuned], share),
        _ => by_depth(&base.weights, tuned, depth),
    }
}

/// Every copy by itself.
fn alone(base: &Base, tuned: &[StateDict], measured: &mut Measured) -> Result<()> {
    let scalings = [Scaling::Lines, Scaling::Reversed, Scaling::Uniform];
    let mut tasks = Vec::new();
    for scaling in scalings {
        let steps = (0..=STEPS).flat_map(|step| ALL.map(|question| (scaling, step, question)));
        tasks.extend(steps);
    }
    let points = side_by_side(&tasks, |(scaling, step, question)| {
        let weights = scaled(base, &tuned[*question], *scaling, *step as f64 / STEPS as f64)?;
        Ok(point(&base.tested(&weights)?, *question))
    })?;
    // Mean over the questions, by step.
    let curves: Vec<Vec<Point>> = points
        .chunks(ALL.len() * (STEPS + 1))
        .map(|curve| curve.chunks(ALL.len()).map(mean_point).collect())
        .collect();
    let [lines, reversed, uniform] = [&curves[0], &curves[1], &curves[2]];
    let (start, end) = (uniform[0], uniform[STEPS]);
    let share = |point: &Point| (point.1 - end.1) / (start.1 - end.1);
    let chosen = (0..=STEPS).rev().find(|step| share(&lines[*step]) >= RESTORED).unwrap_or(0);
    measured.add(BASE, CONTROL, start.1);
    for (arm, (target, control)) in [
        (TUNED, end),
        (LINES, lines[chosen]),
        (REVERSED, reversed[chosen]),
        (UNIFORM, at_control(uniform, lines[chosen].1)),
    ] {
        measured.add(arm, TARGET, target);
        measured.add(arm, CONTROL, control);
    }
    measured.add(LINES, ALPHA, chosen as f64 / STEPS as f64);
    measured.add(LINES, SHARE, share(&lines[chosen]));
    Ok(())
}

fn mean_point(points: &[Point]) -> Point {
    let (targets, controls): (Vec<f64>, Vec<f64>) = points.iter().copied().unzip();
    (mean(&targets), mean(&controls))
}

/// The point of a curve with this control: from the end with the whole update, on the first line
/// between two steps that reaches it; else its beginning.
fn at_control(curve: &[Point], control: f64) -> Point {
    for pair in curve.windows(2).rev() {
        let (less, more) = (pair[0], pair[1]);
        if more.1 >= control {
            return more;
        }
        if less.1 >= control {
            let share = (control - more.1) / (less.1 - more.1);
            return (more.0 + share * (less.0 - more.0), control);
        }
    }
    curve[0]
}

/// All copies merged.
fn merged(base: &Base, tuned: &[StateDict], measured: &mut Measured) -> Result<()> {
    let models: Vec<&StateDict> = tuned.iter().collect();
    let blocks = base.shape.blocks;
    for (method, most) in MERGES {
        for (arm, reversed) in [("", None), (" + LiNeS", Some(false)), (" + reversed", Some(true))]
        {
            let scales: Vec<f64> = (1..=most).map(|tenth| tenth as f64 / 10.0).collect();
            let one = |scale: &f64| {
                let lines =
                    reversed.map(|reversed| Depth { reversed, ..Depth::new(None, *scale, blocks) });
                let lambda = [("lambda", if lines.is_some() { 1.0 } else { *scale })];
                let each = |_: &str, _: usize, key: &str| match key {
                    "weight" => Some(1.0),
                    "density" if method == "ties" => Some(0.2),
                    _ => None,
                };
                let merge = Merge::new(method, Some(&base.weights), &models);
                let weights = Merge { all: &lambda, each: &each, lines, ..merge }.run()?;
                Ok((mean(&base.validated(&weights)?), weights))
            };
            let all = side_by_side(&scales, one)?;
            let best =
                (1..all.len()).fold(0, |best, i| if all[i].0 > all[best].0 { i } else { best });
            let arm = format!("{method}{arm}");
            measured.add(&arm, MERGED, mean(&base.tested(&all[best].1)?));
            measured.add(&arm, SCALE, scales[best]);
        }
    }
    let average = arithmetic(&base.weights, &models, 1.0 / models.len() as f64)?;
    measured.add("average", MERGED, mean(&base.tested(&average)?));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_compared_at_equal_control() {
        // From nothing of the update to all of it.
        let curve = [(0.2, 0.7), (0.4, 0.71), (0.6, 0.65), (0.8, 0.55)];
        assert_eq!(at_control(&curve, 0.5), (0.8, 0.55));
        let (target, control) = at_control(&curve, 0.60);
        assert!((target - 0.7).abs() < 1e-9 && control == 0.60);
        let (target, _) = at_control(&curve, 0.705);
        assert!(target < 0.42 && target > 0.4, "the first crossing from the end: {target}");
        assert_eq!(at_control(&curve, 0.9), (0.2, 0.7));
    }

    #[test]
    fn a_point_is_one_question_against_all_others() {
        let shares = [0.8, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1];
        let (target, control) = point(&shares, 0);
        assert!(target == 0.8 && (control - 0.1).abs() < 1e-12);
        let (target, control) = point(&shares, 3);
        assert!(target == 0.1 && (control - 0.2).abs() < 1e-12);
    }
}
