//! EVA (Paischer et al. 2024, paper 69): LoRA whose A begins at the main directions of a site's inputs,
//! with ranks where they explain most.
//!
//! A small decoder reads stories, sums and questions about what did not change; LoRA of rank 8 on all
//! linear maps of its blocks then learns to answer, with the working, what did: 2400 problems, one
//! epoch in steps of 8, at 5e-4. Arms: LoRA as it is; random orthonormal rows in A, whose length is
//! EVA's; EVA with the same rank everywhere (ρ = 1) and with up to twice the rank (ρ = 2); PiSSA. Before
//! training, on held-out problems: the share of the variance of a site's centred inputs that lies in
//! A's rows, and, at the first step, the gradient of B. The loss on 64 held-out problems every 10
//! steps, and on 400 others at the end.
//!
//! **Departures**: (1) a decoder of 6 blocks of width 128 made for this, not SmolLM2-135M, of which 300
//! steps for 15 runs take hours; so the time of the probe there is measured by hand (see the notes);
//! (2) all arms have EVA's schedule (cosine, warm-up 3 %) and one learning rate; (3) inputs and their
//! variance are those of trained tokens, as in the recipe; (4) all seeds start from one decoder and
//! differ in problems, order and what is drawn; (5) PiSSA is compared without a claim.

use std::time::Instant;

use candle_core::{Device, Tensor};
use luthier_core::{Error, Result, Row, Seed, SiteMap, StateDict};
use luthier_params::{Bound, Lora, Scope};
use luthier_recipe::begin::directions;
use luthier_train::Train;
use serde_json::Value;

use crate::{
    Estimate, Inequality, Lab, Limit, Measured, Paper, Pretraining, Sizes, Small, lab, measure,
    recipe, stats::mean,
};

mod story;
mod variance;

use variance::{captured, inputs, orthonormal};

/// The check.
pub const PAPER: Paper = Paper {
    number: 69,
    title: "EVA: explained variance adaptation",
    claim: "beginning at the main directions of its inputs, LoRA sees more of them, takes larger \
        first steps and learns faster than from random directions",
    recipes: &["recipes/lora/eva.toml", "recipes/lora/sft.toml", "recipes/lora/pissa.toml"],
    seeds: 3,
    run,
};

const SIZES: Sizes = Sizes {
    layers: 6,
    width: 128,
    heads: 4,
    kv_heads: 4,
    ffn: 352,
    vocab: story::VOCAB,
    tied: false,
};

const TEXTS: usize = 64_000;
const PROBLEMS: usize = 2400;
const RANK: usize = 8;
/// Steps of a run.
const STEPS: f64 = 300.0;
/// Where LoRA's loss is the one to be reached.
const MARK: f64 = 200.0;

/// A design before this one, in case somebody thinks of it again.
const TRIED: &str = "tried before: a decoder that had read 24000 texts, one seed: held-out loss 5.57 \
    before, LoRA 1.58, random orthonormal A 1.57, EVA 1.51 and 1.50, PiSSA 1.26; all that is claimed \
    held, but no arm answered anything right, so it reads 64000 now";
/// What this check has no time for.
const BY_HAND: &str = "the whole of `luthier train recipes/lora/eva.toml` with one step of 256 tokens on \
    SmolLM2-135M-Instruct and 64 problems of GSM8K takes 68 s of processor time, the probe most \
    of it: some 35 s on two cores, of the 60 s that the paper's check has for it";

const LORA: &str = "LoRA";
const ORTHONORMAL: &str = "random orthonormal A";
const EVEN: &str = "EVA, ρ = 1";
const EVA: &str = "EVA, ρ = 2";
const PISSA: &str = "PiSSA";
const ARMS: [&str; 5] = [LORA, ORTHONORMAL, EVEN, EVA, PISSA];

const CAPTURED: &str = "variance in A's rows";
const GRADIENT: &str = "first gradient of B";
const REACHED: &str = "steps to LoRA's loss at 200";
const LOSS: &str = "held-out loss";
const RIGHT: &str = "answered right";
const LEARNS: &str = "numbers that learn";
const PROBE: &str = "s to measure";

struct Data {
    train: Vec<Row>,
    watched: Vec<Row>,
    test: Vec<Row>,
}

fn run(lab: &Lab) -> Result<Measured> {
    let rows = story::reading(TEXTS, Seed(69).split("reading"));
    let set = ["batch_size=32", "micro_tokens=1024", "learning_rate=2e-3"];
    let config = recipe("recipes/full/sft.toml", &set)?;
    let how = Pretraining { name: "stories", sizes: SIZES, rows: &rows, config: &config };
    let base = lab.pretrained(&how)?;
    let known = measure::exact(&base.policy()?, &story::questions(400, Seed(69).split("known")))?;
    lab.say(&format!("questions about what did not change answered right: {known:.3}"));
    let (mut measured, mut sites) = (Measured::default(), Sites::default());
    for seed in lab.seeds() {
        let draw = |name: &str, n| story::problems(n, Seed(seed).split(name));
        let data = Data {
            train: draw("train", PROBLEMS),
            watched: draw("watched", 64),
            test: draw("test", 400),
        };
        one(lab, &base, seed, &data, &mut measured, &mut sites)?;
    }
    claims(&mut measured, &sites)?;
    measured.note(format!("{known:.3} of the questions about what did not change right before"));
    measured.note(BY_HAND);
    measured.note(TRIED);
    Ok(measured)
}

/// What holds of every site, over all seeds.
#[derive(Default)]
struct Sites {
    /// By how much the share of variance in EVA's rows exceeds that in random ones.
    beyond: Vec<f64>,
    /// Ranks that ρ = 2 gives.
    ranks: Vec<usize>,
    /// By how much the sum of a seed's ranks misses the budget.
    missed: usize,
}

/// All arms with one seed.
fn one(
    lab: &Lab,
    base: &Small,
    seed: u64,
    data: &Data,
    measured: &mut Measured,
    sites: &mut Sites,
) -> Result<()> {
    let inputs = inputs(base, &data.watched)?;
    let before = measure::loss(&base.policy()?, &data.watched)?;
    measured.add("before", LOSS, measure::loss(&base.policy()?, &data.test)?);
    let (mut courses, mut random) = (Vec::new(), Vec::new());
    for arm in ARMS {
        let (config, begun) = (settings(arm, seed)?, Instant::now());
        let bound = begin(arm, base, &data.train, &config)?;
        if matches!(arm, EVEN | EVA) {
            measured.add(arm, PROBE, begun.elapsed().as_secs_f64());
        }
        let captured = captured(&bound, &inputs)?;
        measured.add(arm, CAPTURED, mean(&captured));
        match arm {
            ORTHONORMAL => random = captured,
            EVEN => sites.beyond.extend(captured.iter().zip(&random).map(|(eva, r)| eva - r)),
            EVA => {
                let ranks = ranks(&bound);
                sites.missed += (RANK * inputs.len()).abs_diff(ranks.iter().sum());
                sites.ranks.extend(ranks);
            }
            _ => {}
        }
        let (_, log) = lab.logged(&bound, &data.train, &data.watched, &config)?;
        let course = Course::read(before, &log)?;
        // Where B is 0, A has no gradient: that of everything is B's.
        if arm != PISSA {
            measured.add(arm, GRADIENT, course.gradient);
        }
        let loss = measure::loss(&bound.policy, &data.test)?;
        measured.add(arm, LOSS, loss);
        measured.add(arm, RIGHT, measure::exact(&bound.policy, &data.test)?);
        measured.add(arm, LEARNS, bound.count() as f64);
        lab.say(&format!("seed {seed}, {arm}: held-out loss {loss:.4}"));
        courses.push(course);
    }
    let target = courses[0].at(MARK);
    for (arm, course) in ARMS.iter().zip(&courses) {
        measured.add(arm, REACHED, course.reaches(target));
    }
    Ok(())
}

fn claims(measured: &mut Measured, sites: &Sites) -> Result<()> {
    let over = |figure: &str, of: &str, base: &str| -> Result<Estimate> {
        let pairs = measured.values(of, figure)?.iter().zip(measured.values(base, figure)?);
        Ok(Estimate::of(&pairs.map(|(of, base)| of / base).collect::<Vec<f64>>()))
    };
    let less = |of: &str, minus: &str, limit: Limit| -> Result<Inequality> {
        let what = format!("held-out loss, {of} − {minus}");
        Ok(Inequality::paired(
            what,
            measured.values(of, LOSS)?,
            measured.values(minus, LOSS)?,
            limit,
        ))
    };
    let exact = |mean: f64| Estimate { mean, standard_error: None };
    let least = sites.beyond.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = sites.ranks.iter().copied().max().unwrap_or(0);
    let what = format!("steps to the loss of LoRA at {MARK}, {EVEN}");
    let claims = [
        Inequality::new(
            format!("variance in A's rows, {EVEN} over {ORTHONORMAL}"),
            over(CAPTURED, EVEN, ORTHONORMAL)?,
            Limit::AtLeast(3.0),
        ),
        Inequality::new(
            format!("the same at the site that gains least, {EVEN} − {ORTHONORMAL}"),
            exact(least),
            Limit::AtLeast(0.0),
        ),
        Inequality::new(
            format!("first gradient of B, {EVEN} over {ORTHONORMAL}"),
            over(GRADIENT, EVEN, ORTHONORMAL)?,
            Limit::AtLeast(1.5),
        ),
        Inequality::new(
            what,
            Estimate::of(measured.values(EVEN, REACHED)?),
            Limit::AtMost(0.8 * MARK),
        ),
        less(EVEN, LORA, Limit::AtMost(0.0))?,
        less(EVA, LORA, Limit::AtMost(0.0))?,
        less(ORTHONORMAL, EVEN, Limit::Above(0.0))?,
        Inequality::new(
            format!("ranks beyond or below the budget, {EVA}"),
            exact(sites.missed as f64),
            Limit::AtMost(0.0),
        ),
        Inequality::new(
            format!("largest rank of a site, {EVA}"),
            exact(largest as f64),
            Limit::Above(RANK as f64),
        ),
        Inequality::new(
            format!("largest rank of a site, {EVA}"),
            exact(largest as f64),
            Limit::AtMost(2.0 * RANK as f64),
        ),
        less(EVEN, PISSA, Limit::AtMost(0.0))?.aside(),
        Inequality::new(
            format!("numbers that learn, {EVA} over {EVEN}"),
            over(LEARNS, EVA, EVEN)?,
            Limit::AtMost(1.0),
        )
        .aside(),
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

fn settings(arm: &str, seed: u64) -> Result<Train> {
    let mut set =
        vec!["batch_size=8", "learning_rate=5e-4", "eval_steps=10", "lora.r=8", "lora.alpha=8"];
    let path = match arm {
        LORA => "recipes/lora/sft.toml",
        PISSA => "recipes/lora/pissa.toml",
        _ => "recipes/lora/eva.toml",
    };
    if matches!(arm, ORTHONORMAL | EVEN) {
        set.push("train.params.lora.eva.rho=1.0");
    }
    let mut config = Train { seed, ..recipe(path, &set)? };
    if arm == LORA {
        config.update = settings(EVEN, seed)?.update;
    }
    Ok(config)
}

/// The decoder with the arm's LoRA, measured on the rows to train on where it asks for that.
fn begin(arm: &str, base: &Small, rows: &[Row], config: &Train) -> Result<Bound> {
    let (model, seed) = (base.model()?, Seed(config.seed));
    let lora = config.params.lora.as_ref();
    let lora = lora.ok_or_else(|| Error::failed(arm, "its recipe has no LoRA"))?;
    let found = match arm {
        ORTHONORMAL => random(lora, model.sites(), seed.split("orthonormal"))?,
        EVEN | EVA => directions(lora, &model, rows, &lab::order(rows, config)?)?.state,
        _ => StateDict::default(),
    };
    let scope = Scope::new(seed.split("params")).with_measured(found);
    config.params.bind_in(&model, scope)
}

/// Random orthonormal directions in place of measured ones, all of the same worth.
fn random(lora: &Lora, sites: &SiteMap, seed: Seed) -> Result<StateDict> {
    let mut found = StateDict::default();
    for target in lora.targets(sites)? {
        let (name, r, (i, _)) = (&target.site.name, target.r, target.widths());
        let mut rng = seed.split(name).rng();
        let drawn = (0..r).map(|_| (0..i).map(|_| rng.normal()).collect()).collect();
        let rows: Vec<f32> = orthonormal(drawn).concat().iter().map(|x| *x as f32).collect();
        let ratio = Tensor::full(1.0 / r as f32, r, &Device::Cpu)?;
        found.insert(format!("{name}.components"), Tensor::from_vec(rows, (r, i), &Device::Cpu)?);
        found.insert(format!("{name}.ratio"), ratio);
    }
    Ok(found)
}

/// Ranks of the sites that have one.
fn ranks(bound: &Bound) -> Vec<usize> {
    let a = bound.params.iter().filter(|param| param.name.ends_with(".lora_A"));
    a.filter_map(|param| param.var.dims().first().copied()).collect()
}

/// How a run went.
struct Course {
    /// Held-out loss after so many steps.
    losses: Vec<(f64, f64)>,
    /// Length of the first gradient.
    gradient: f64,
}

impl Course {
    fn read(before: f64, log: &[Value]) -> Result<Self> {
        let number = |line: &Value, key: &str| line.get(key).and_then(Value::as_f64);
        let loss = |line| number(line, "step").zip(number(line, "eval_loss"));
        let gradient = log.iter().find_map(|line| number(line, "grad_norm"));
        let missing = || Error::failed("metrics", "tell no gradient");
        Ok(Course {
            losses: std::iter::once((0.0, before)).chain(log.iter().filter_map(loss)).collect(),
            gradient: gradient.ok_or_else(missing)?,
        })
    }

    /// The loss after `step` steps.
    fn at(&self, step: f64) -> f64 {
        let last = |of: &&(f64, f64)| of.0 <= step;
        self.losses.iter().rev().find(last).map_or(f64::NAN, |(_, loss)| *loss)
    }

    /// Steps after which the loss is first as low as `target`, on a line between evaluations; the
    /// whole run and a step where it never is.
    fn reaches(&self, target: f64) -> f64 {
        let down = self.losses.windows(2).find(|pair| pair[1].1 <= target);
        down.map_or(STEPS + 1.0, |pair| {
            let ((from, high), (to, low)) = (pair[0], pair[1]);
            from + (to - from) * ((high - target) / (high - low)).max(0.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use luthier_params::LoraInit;

    use super::*;

    #[test]
    fn arms_differ_in_where_they_begin_and_in_nothing_else() {
        let of = |arm| settings(arm, 5).unwrap();
        let lora = |config: &Train| config.params.lora.clone().unwrap();
        let eva = of(EVA);
        assert_eq!((eva.seed, eva.batch_size, eva.epochs), (5, Some(8), 1.0));
        assert_eq!(PROBLEMS as f64 / 8.0, STEPS);
        assert_eq!((lora(&eva).r, lora(&eva).alpha, lora(&eva).eva.rho), (RANK, 8.0, 2.0));
        assert_eq!(eva.update.adamw.clone().unwrap().learning_rate, 5e-4);
        assert_eq!(of(ORTHONORMAL), of(EVEN));
        for (arm, init) in
            [(LORA, LoraInit::Kaiming), (EVEN, LoraInit::Eva), (PISSA, LoraInit::Pissa)]
        {
            let mut config = of(arm);
            assert_eq!(lora(&config).init, init);
            let own = config.params.lora.as_mut().unwrap();
            (own.init, own.eva) = (LoraInit::Eva, lora(&eva).eva);
            assert_eq!(config, eva, "{arm}");
        }
    }

    #[test]
    fn a_loss_is_reached_between_two_evaluations_or_never() {
        let losses = vec![(0.0, 4.0), (10.0, 2.0), (20.0, 2.5), (30.0, 1.0)];
        let course = Course { losses, gradient: 1.0 };
        assert_eq!(
            (course.reaches(3.0), course.reaches(2.0), course.reaches(1.75)),
            (5.0, 10.0, 25.0)
        );
        assert_eq!((course.reaches(0.5), course.reaches(4.5)), (301.0, 0.0));
        assert_eq!((course.at(20.0), course.at(25.0)), (2.5, 2.5));
    }
}
