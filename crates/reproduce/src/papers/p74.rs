//! Model Breadcrumbs (Davari and Belilovsky 2024, paper 74): merged updates without their smallest and
//! their very largest numbers.
//!
//! The eight tunings of `zoo::pairs`. Score: accuracy over that of the copy tuned to the question, a mean
//! over the questions. One update by itself (T = 1, a mean over the eight) and all eight together (T = 8),
//! each over a grid of α: task arithmetic; breadcrumbs that keep 15 or 10 % below the largest 0.7 or 3 %,
//! tensor by tensor or row by row; the largest 15 % without a cut at the top; 15 % drawn at random.
//!
//! **Departures**: (1) the gelu is its tanh form; (2) the best α is that on images to choose by, and its
//! score is that on others.

use luthier_core::{Result, Seed, StateDict};

use crate::{
    Inequality, Lab, Limit, Measured, Paper,
    stats::mean,
    zoo::{
        edit::Merge,
        pairs::{ALL, Base},
        train::side_by_side,
    },
};

/// The check.
pub const PAPER: Paper = Paper {
    number: 74,
    title: "Model Breadcrumbs",
    claim: "without their smallest and very largest numbers, updates keep what they taught, and \
        many of them can be merged at almost any scale",
    recipes: &["recipes/merge/breadcrumbs.yaml"],
    seeds: 5,
    run,
};

/// A way to mask an update.
struct Arm {
    name: &'static str,
    method: &'static str,
    density: f64,
    gamma: f64,
    rows: bool,
}

const fn crumbs(name: &'static str, density: f64, gamma: f64, rows: bool) -> Arm {
    Arm { name, method: "breadcrumbs", density, gamma, rows }
}

const PLAIN: &str = "task arithmetic";
const CRUMBS: &str = "breadcrumbs .15, γ .007";
const TOP: &str = "largest .15, γ 0";
const RANDOM: &str = "random .15";

const ARMS: [Arm; 7] = [
    Arm { name: PLAIN, method: "task_arithmetic", density: 1.0, gamma: 0.0, rows: false },
    crumbs(CRUMBS, 0.15, 0.007, false),
    crumbs("breadcrumbs .10, γ .007", 0.10, 0.007, false),
    crumbs("breadcrumbs .15, γ .03", 0.15, 0.03, false),
    crumbs("breadcrumbs .15, γ .007, by row", 0.15, 0.007, true),
    crumbs(TOP, 0.15, 0.0, false),
    Arm { name: RANDOM, method: "dare_linear", density: 0.15, gamma: 0.0, rows: false },
];

const ALONE: [f64; 6] = [0.6, 0.8, 1.0, 1.3, 1.6, 2.0];
const TOGETHER: [f64; 7] = [0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0];

const ONE: &str = "T = 1, best α";
const BEST: &str = "T = 8, best α";
const MEAN: &str = "T = 8, mean over α";
const WHOLE: &str = "T = 8, α = 1";

fn run(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let base = Base::of(lab, seed)?;
        let tuned = base.tuned(seed)?;
        let zoo = Zoo::new(&base, &tuned, Seed(seed).split("masks"))?;
        for arm in &ARMS {
            let alone = zoo.alone(arm)?;
            measured.add(arm.name, ONE, best(&alone).test);
            let together = zoo.together(arm)?;
            let tests: Vec<f64> = together.iter().map(|score| score.test).collect();
            measured.add(arm.name, BEST, best(&together).test);
            measured.add(arm.name, MEAN, mean(&tests));
            measured.add(arm.name, WHOLE, tests[TOGETHER.len() - 1]);
            let (one, all) = (best(&alone).test, best(&together).test);
            lab.say(&format!("seed {seed}, {}: {one:.3} alone, {all:.3} together", arm.name));
        }
    }
    claims(&mut measured)?;
    Ok(measured)
}

fn claims(measured: &mut Measured) -> Result<()> {
    let of = |arm: &str, figure: &str| measured.values(arm, figure);
    let kept = crate::Estimate::of(of(CRUMBS, ONE)?);
    let pair = |what: &str, figure: &str, minus: &str, limit: Limit| -> Result<Inequality> {
        Ok(Inequality::paired(what, of(CRUMBS, figure)?, of(minus, figure)?, limit))
    };
    let claims = vec![
        Inequality::new("score of one update, breadcrumbs", kept, Limit::AtLeast(0.97)),
        pair("score of one update, breadcrumbs − random", ONE, RANDOM, Limit::AtLeast(0.08))?,
        pair("best score of eight, breadcrumbs − arithmetic", BEST, PLAIN, Limit::AtLeast(-0.01))?,
        pair("mean over α, breadcrumbs − arithmetic", MEAN, PLAIN, Limit::AtLeast(0.07))?,
        pair("score at α = 1, γ .007 − γ 0", WHOLE, TOP, Limit::Above(0.0))?,
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

/// Scores on the images to choose by, and on those to judge by.
#[derive(Clone, Copy, Debug)]
struct Score {
    valid: f64,
    test: f64,
}

/// The score of the α that one would choose; of equals the first.
fn best(scores: &[Score]) -> Score {
    scores[1..]
        .iter()
        .fold(scores[0], |best, next| if next.valid > best.valid { *next } else { best })
}

struct Zoo<'a> {
    base: &'a Base,
    tuned: &'a [StateDict],
    /// What each copy reaches on its question: to choose by, to judge by.
    reached: Vec<(f64, f64)>,
    seed: Seed,
}

impl<'a> Zoo<'a> {
    fn new(base: &'a Base, tuned: &'a [StateDict], seed: Seed) -> Result<Self> {
        let reached = side_by_side(&ALL, |question| {
            let shares = |images| base.shape.accuracies(&tuned[*question], images, &[*question]);
            Ok((shares(&base.valid)?[0], shares(&base.test)?[0]))
        })?;
        Ok(Zoo { base, tuned, reached, seed })
    }

    fn merge(&self, arm: &Arm, models: &[&StateDict], alpha: f64, seed: Seed) -> Result<StateDict> {
        let each = |_: &str, _: usize, key: &str| match key {
            "weight" => Some(alpha),
            "density" => Some(arm.density),
            "gamma" => Some(arm.gamma),
            _ => None,
        };
        let all: &[(&str, f64)] = match arm.method {
            // Which numbers go is by chance, and the rest stays as it was.
            "dare_linear" => &[("rescale", 0.0)],
            "breadcrumbs" if arm.rows => &[("per", 1.0)],
            _ => &[],
        };
        let merge = Merge::new(arm.method, Some(&self.base.weights), models);
        Merge { each: &each, all, seed, ..merge }.run()
    }

    fn score(&self, weights: &StateDict, questions: &[usize]) -> Result<Score> {
        let Base { shape, valid, test, .. } = self.base;
        let (valid, test) = (
            shape.accuracies(weights, valid, questions)?,
            shape.accuracies(weights, test, questions)?,
        );
        let reached = questions.iter().map(|q| self.reached[*q]);
        let (valid, test): (Vec<f64>, Vec<f64>) =
            reached.zip(valid.iter().zip(&test)).map(|(r, (v, t))| (v / r.0, t / r.1)).unzip();
        Ok(Score { valid: mean(&valid), test: mean(&test) })
    }

    /// By α, one update by itself.
    fn alone(&self, arm: &Arm) -> Result<Vec<Score>> {
        let tasks: Vec<(f64, usize)> =
            ALONE.iter().flat_map(|alpha| ALL.map(|question| (*alpha, question))).collect();
        let scores = side_by_side(&tasks, |(alpha, question)| {
            let seed = self.seed.at(*question as u64);
            let weights = self.merge(arm, &[&self.tuned[*question]], *alpha, seed)?;
            self.score(&weights, &[*question])
        })?;
        let over = |scores: &[Score]| {
            let (valid, test): (Vec<f64>, Vec<f64>) =
                scores.iter().map(|s| (s.valid, s.test)).unzip();
            Score { valid: mean(&valid), test: mean(&test) }
        };
        Ok(scores.chunks(ALL.len()).map(over).collect())
    }

    /// By α, all updates together.
    fn together(&self, arm: &Arm) -> Result<Vec<Score>> {
        let models: Vec<&StateDict> = self.tuned.iter().collect();
        side_by_side(&TOGETHER, |alpha| {
            let weights = self.merge(arm, &models, *alpha, self.seed.split("together"))?;
            self.score(&weights, &ALL)
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::zoo::{digits::Images, pairs::shape};

    #[test]
    fn arms_keep_what_they_are_named_after() {
        let shape = shape(1);
        let state = |x: f32| -> StateDict {
            let tensor = |(name, dims): (String, Vec<usize>)| {
                let n: usize = dims.iter().product();
                let numbers: Vec<f32> = (0..n).map(|i| x * (1 + i) as f32).collect();
                (name, Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap())
            };
            shape.tensors().into_iter().map(tensor).collect()
        };
        let (weights, tuned) = (state(0.0), [state(1.0)]);
        let none = Images::default;
        let base =
            Base { shape: shape.clone(), weights, train: none(), valid: none(), test: none() };
        let zoo = Zoo { base: &base, tuned: &tuned, reached: vec![(1.0, 1.0)], seed: Seed(1) };
        let merged = |arm: &Arm| -> Vec<f32> {
            let state = zoo.merge(arm, &[&tuned[0]], 2.0, Seed(1)).unwrap();
            state.get("blocks.0.up.weight").unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let n = 96 * 192;
        for arm in &ARMS {
            let numbers = merged(arm);
            let kept = numbers.iter().filter(|x| **x != 0.0).count() as f64 / n as f64;
            assert!((kept - arm.density).abs() < 0.01, "{}: {kept}", arm.name);
            // What is kept is doubled and not stretched otherwise.
            let doubled = |(i, x): (usize, &f32)| *x == 0.0 || *x == 2.0 * (1 + i) as f32;
            assert!(numbers.iter().enumerate().all(doubled), "{}", arm.name);
            let cut = numbers.iter().rev().take_while(|x| **x == 0.0).count() as f64;
            match arm.method {
                "breadcrumbs" if !arm.rows => assert_eq!(cut, (arm.gamma * n as f64).floor()),
                "breadcrumbs" => assert!(cut < 2.0),
                _ => {}
            }
        }
    }

    #[test]
    fn the_scale_is_chosen_by_other_images_than_it_is_judged_by() {
        let score = |valid, test| Score { valid, test };
        let all = [score(0.5, 0.9), score(0.7, 0.6), score(0.7, 0.8)];
        assert_eq!((best(&all).valid, best(&all).test), (0.7, 0.6));
    }
}
