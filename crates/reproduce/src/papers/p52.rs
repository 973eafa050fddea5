//! Fine-tuning transfer (Lin et al. 2025, paper 52): the update of one version of a model, added to
//! another version.
//!
//! A net reads two digits and the style (`zoo`, 6 blocks); its versions M1 to M5 are those of steps 60,
//! 200, 500, 750 and 1000 of one run, MX is the end of a run from another start. All other heads are zero
//! in every version. Each version is tuned to name the larger digit, head included: Δ. Then every Δ is
//! added to every version, M5 is tuned again from where Δ4 and ΔX put it, and Δ4 is added to M5 without its
//! head and against the wrong ancestor (M3).
//!
//! **Departures**: (1) the gelu is its tanh form; (2) tuning keeps its rate, so that the first 20 steps
//! are the same for a short and a long course; the spec names no schedule.

use luthier_core::{Result, Seed, StateDict};
use luthier_update::{
    Schedules,
    schedule::{Curve, WarmupStableDecay},
};

use crate::{
    Inequality, Lab, Limit, Measured, Paper,
    zoo::{
        digits::{Images, MAX, pairs},
        edit::Merge,
        net::{Shape, is_head},
        pairs::{READ, shape},
        train::{Course, adamw, constant, copy, part, side_by_side, with},
    },
};

/// The check.
pub const PAPER: Paper = Paper {
    number: 52,
    title: "fine-tuning transfer between model versions",
    claim: "the update of a neighbouring version does most of what tuning would do, less the further \
        the versions are apart and nothing across unrelated ones, and is a better place to tune from",
    recipes: &["recipes/merge/transfer.yaml"],
    seeds: 5,
    run,
};

/// Steps after which a version is kept.
const VERSIONS: [u64; 5] = [60, 200, 500, 750, 1000];
const STEPS: u64 = 1000;
/// The places of M3, M4, M5 and MX among all versions.
const M1: usize = 0;
const M3: usize = 2;
const M4: usize = 3;
const M5: usize = 4;
const MX: usize = 5;
const NAMES: [&str; 6] = ["M1", "M2", "M3", "M4", "M5", "MX"];
/// Steps of a whole tuning, and of shorter ones.
const TUNING: u64 = 250;
const SHORT: [u64; 3] = [20, 50, 100];

const RIGHT: &str = "larger digit";

/// Images, and sizes of the nets.
struct World {
    shape: Shape,
    train: Images,
    tune: Images,
    test: Images,
    seed: Seed,
}

fn run(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let from = Seed(seed).split("versions");
        let train = pairs(40_000, from.split("train"));
        let (tune, test) = (train.first(4000), pairs(3000, from.split("test")));
        let world = World { shape: shape(6), train, tune, test, seed: from };
        let mut runs = side_by_side(&["M", "X"], |name| world.versions(name))?;
        let last = runs[1].pop();
        // All versions of the one, and the end of the other.
        let bases: Vec<StateDict> = runs.into_iter().flatten().take(MX).chain(last).collect();
        let tuned = side_by_side(&[0, 1, 2, 3, 4, 5], |i| world.tuned(&bases[*i], *i))?;
        let tuned: Vec<StateDict> =
            tuned.into_iter().filter_map(|mut course| course.pop()).collect();
        moves(&world, &bases, &tuned, &mut measured)?;
        continued(&world, &bases, &tuned, &mut measured)?;
        lab.say(&format!("seed {seed}: {}", told(&measured)?));
    }
    claims(&mut measured)?;
    Ok(measured)
}

fn tuning(version: usize) -> String {
    format!("{} tuned", NAMES[version])
}

fn moving(update: usize, to: usize) -> String {
    format!("{} + Δ{}", NAMES[to], &NAMES[update][1..])
}

fn steps(start: &str, steps: u64) -> String {
    format!("{start}, {steps} steps")
}

fn told(measured: &Measured) -> Result<String> {
    let arms = [tuning(M4), tuning(M5), moving(M4, M5), moving(M3, M5), moving(MX, M5)];
    let last = |arm: String| -> Result<String> {
        let value = measured.values(&arm, RIGHT)?.last().copied().unwrap_or(f64::NAN);
        Ok(format!("{arm} {value:.3}"))
    };
    Ok(arms.into_iter().map(last).collect::<Result<Vec<String>>>()?.join(", "))
}

/// Every update added to every version, and Δ4 to M5 in two wrong ways.
fn moves(
    world: &World,
    bases: &[StateDict],
    tuned: &[StateDict],
    measured: &mut Measured,
) -> Result<()> {
    let all: Vec<(usize, usize)> =
        (0..NAMES.len()).flat_map(|to| (0..NAMES.len()).map(move |from| (from, to))).collect();
    let right = side_by_side(&all, |(from, to)| {
        world.right(&transfer(&bases[*to], &tuned[*from], &bases[*from])?)
    })?;
    for (version, (base, tuned)) in bases.iter().zip(tuned).enumerate() {
        measured.add(&tuning(version), RIGHT, world.right(tuned)?);
        measured.add(NAMES[version], RIGHT, world.right(base)?);
    }
    for ((from, to), right) in all.iter().zip(right).filter(|((from, to), _)| from != to) {
        measured.add(&moving(*from, *to), RIGHT, right);
    }
    let whole = transfer(&bases[M5], &tuned[M4], &bases[M4])?;
    let headless = with(&whole, &part(&bases[M5], &is_head));
    measured.add("M5 + Δ4 without the head", RIGHT, world.right(&headless)?);
    let wrong = transfer(&bases[M5], &tuned[M4], &bases[M3])?;
    measured.add("M5 + (M4 tuned − M3)", RIGHT, world.right(&wrong)?);
    Ok(())
}

/// M5 tuned from where it is, and from where the updates of M4 and MX put it.
fn continued(
    world: &World,
    bases: &[StateDict],
    tuned: &[StateDict],
    measured: &mut Measured,
) -> Result<()> {
    let starts = [
        (NAMES[M5].to_string(), bases[M5].clone()),
        (moving(M4, M5), transfer(&bases[M5], &tuned[M4], &bases[M4])?),
        (moving(MX, M5), transfer(&bases[M5], &tuned[MX], &bases[MX])?),
    ];
    let courses = side_by_side(&starts, |(_, start)| world.tuned(start, M5))?;
    for ((name, _), course) in starts.iter().zip(&courses) {
        for (number, net) in SHORT.iter().zip(course) {
            measured.add(&steps(name, *number), RIGHT, world.right(net)?);
        }
    }
    Ok(())
}

fn claims(measured: &mut Measured) -> Result<()> {
    let of = |arm: &str| measured.values(arm, RIGHT);
    let share = |of: &[f64], whole: &[f64]| {
        let shares: Vec<f64> = of.iter().zip(whole).map(|(of, whole)| of / whole).collect();
        crate::Estimate::of(&shares)
    };
    let (near, back) = (moving(M4, M5), moving(M5, M4));
    let (further, far) = (moving(M3, M5), moving(M1, M5));
    let (onto, out) = (moving(M4, MX), moving(MX, M5));
    let (short, long) = (steps(&near, 20), steps(NAMES[M5], 100));
    let least = Limit::AtLeast(0.9);
    let less = |of_arm: &str, minus: &str| -> Result<Inequality> {
        let what = format!("{of_arm} less {minus}");
        Ok(Inequality::paired(what, of(of_arm)?, of(minus)?, Limit::Above(0.0)))
    };
    let alone = |arm: &str| -> Result<Inequality> {
        Ok(Inequality::new(arm, crate::Estimate::of(of(arm)?), Limit::AtMost(0.25)))
    };
    let claims = vec![
        Inequality::new(
            format!("{near} over {}", tuning(M5)),
            share(of(&near)?, of(&tuning(M5))?),
            least,
        ),
        Inequality::new(
            format!("{back} over {}", tuning(M4)),
            share(of(&back)?, of(&tuning(M4))?),
            least,
        ),
        less(&near, &further)?,
        less(&further, &far)?,
        alone(&onto)?,
        alone(&out)?,
        less(&short, &long)?,
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

/// `to + (tuned − source)`.
fn transfer(to: &StateDict, tuned: &StateDict, source: &StateDict) -> Result<StateDict> {
    let each = |_: &str, model: usize, key: &str| match (key, model) {
        ("source", 1) => Some(1.0),
        _ => None,
    };
    Merge { each: &each, ..Merge::new("transfer", Some(to), &[tuned, source]) }.run()
}

impl World {
    /// One run's versions, their other heads zero.
    fn versions(&self, name: &str) -> Result<Vec<StateDict>> {
        let seed = self.seed.split(name);
        let zero = |name: &str| {
            is_head(name) && !READ.iter().any(|q| name.starts_with(&format!("heads.{q}.")))
        };
        let mut start = self.shape.random(seed.split("weights"))?;
        for (name, tensor) in part(&start, &zero).iter() {
            start.insert(name, tensor.zeros_like()?);
        }
        let course = Course {
            shape: &self.shape,
            images: &self.train,
            questions: &READ,
            steps: STEPS,
            batch: 96,
            smoothing: 0.0,
            mixup: 0.0,
            seed: seed.split("order"),
        };
        let half = WarmupStableDecay {
            num_stable_steps: Some(STEPS / 2),
            num_decay_steps: Some(STEPS / 2),
            decay_type: Curve::Linear,
            min_lr_ratio: 0.1,
            ..WarmupStableDecay::default()
        };
        let schedule = Schedules { warmup_stable_decay: Some(half), ..Schedules::default() };
        let mut kept = Vec::new();
        course.watched(&adamw(1e-3, 0.01, schedule), &start, &|_| true, &mut |step, now| {
            if VERSIONS.contains(&step) {
                kept.push(copy(now)?);
            }
            Ok(())
        })?;
        Ok(kept)
    }

    /// A version tuned to name the larger digit: after each of the short numbers of steps, and at the end.
    fn tuned(&self, start: &StateDict, version: usize) -> Result<Vec<StateDict>> {
        let course = Course {
            shape: &self.shape,
            images: &self.tune,
            questions: &[MAX],
            steps: TUNING,
            batch: 64,
            smoothing: 0.0,
            mixup: 0.0,
            seed: self.seed.split("tuning").at(version as u64),
        };
        let mut kept = Vec::new();
        course.watched(&adamw(5e-4, 0.01, constant()), start, &|_| true, &mut |step, now| {
            if SHORT.contains(&step) || step == TUNING {
                kept.push(copy(now)?);
            }
            Ok(())
        })?;
        Ok(kept)
    }

    fn right(&self, net: &StateDict) -> Result<f64> {
        Ok(self.shape.accuracies(net, &self.test, &[MAX])?[0])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn an_update_is_moved_from_one_version_to_another() {
        let state = |x: f32| -> StateDict {
            [("w".to_string(), Tensor::new(&[x], &Device::Cpu).unwrap())].into_iter().collect()
        };
        let number = |state: &StateDict| state.get("w").unwrap().to_vec1::<f32>().unwrap()[0];
        let moved = transfer(&state(10.0), &state(3.5), &state(3.0)).unwrap();
        assert_eq!(number(&moved), 10.5);
        // Onto its own source: the tuned model. And back: the target.
        assert_eq!(number(&transfer(&state(3.0), &state(3.5), &state(3.0)).unwrap()), 3.5);
        assert_eq!(number(&transfer(&moved, &state(3.0), &state(3.5)).unwrap()), 10.0);
        assert_eq!(moving(MX, M5), "M5 + ΔX");
    }

    #[test]
    fn versions_begin_without_an_answer_to_the_question() {
        let seed = Seed(1);
        let images = pairs(200, seed);
        let world = World {
            shape: Shape { width: 8, hidden: 8, ..shape(1) },
            train: images.clone(),
            tune: images.first(100),
            test: images,
            seed,
        };
        let versions = world.versions("M").unwrap();
        assert_eq!(versions.len(), VERSIONS.len());
        let head = |net: &StateDict, name: &str| {
            let numbers = net.get(name).unwrap().flatten_all().unwrap();
            numbers.to_vec1::<f32>().unwrap().iter().map(|x| x.abs()).sum::<f32>()
        };
        for version in &versions {
            assert_eq!(head(version, "heads.2.weight"), 0.0);
            assert!(head(version, "heads.5.weight") > 0.0);
        }
        let tuned = world.tuned(&versions[M5], M5).unwrap();
        assert_eq!(tuned.len(), SHORT.len() + 1);
        assert!(head(&tuned[0], "heads.2.weight") > 0.0);
        assert_eq!(head(&tuned[0], "heads.3.weight"), 0.0);
    }
}
