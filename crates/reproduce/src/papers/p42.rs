//! Compacter (Karimi Mahabadi et al. 2021, paper 42): adapters made of Kronecker products, whose small
//! factors all layers share.
//!
//! A small decoder is pretrained to go on with `x → y → z`, where `y` is `x` sorted, reversed, rotated or
//! shuffled, and `z` is `y` after the same, and every other time with a mark that names the rule. Then it
//! is asked for the rule, `x → y → z → a`, and learns from 500, 150 or 50 examples to answer with one of
//! four letters: 16 at a step, linear decay.
//! Arms: all weights; adapters of which both maps are plain, are PHM layers (own small matrices, whole
//! large ones), are of rank one (one term, whose small matrix is a number), are Compacter's, are
//! Compacter's behind the MLP alone; norms; biases. With every adapter the norms learn too. A seed draws
//! examples, order and beginnings.
//!
//! **Departures**: (1) a small decoder, where the paper has T5; (2) adapters are 32 wide, not 8: at width
//! 128 and 8, biases and norms alone keep Compacter at a quarter of the adapter's parameters, so that
//! the claimed tenth could not be; (3) the better of two rates is that of the first seed on 300 other
//! examples with 500 to learn from, and is kept for 150 and 50.

use luthier_core::{Result, Row, Seed};
use luthier_params::Params;
use luthier_train::Train;

use crate::{
    Estimate, Inequality, Lab, Limit, Measured, Paper, Pretraining, Sizes, measure, rates, recipe,
};

mod chain;

use chain::{asked, named, read, rows};

/// The check.
pub const PAPER: Paper = Paper {
    number: 42,
    title: "Compacter",
    claim: "with a tenth of an adapter's parameters, shared Kronecker products learn as well as the \
        adapter and as all weights do, also from few examples, and better than norms alone",
    recipes: &[KRONECKER, PLAIN, "recipes/adapter/bias.toml", NORM],
    seeds: 3,
    run,
};

const KRONECKER: &str = "recipes/adapter/compacter.toml";
const PLAIN: &str = "recipes/adapter/bottleneck.toml";
const NORM: &str = "recipes/full/norms.toml";

const SIZES: Sizes = Sizes {
    layers: 4,
    width: 128,
    heads: 4,
    kv_heads: 4,
    ffn: 256,
    vocab: chain::VOCAB,
    tied: false,
};

const TEXTS: usize = 40_000;
const ITEMS: [usize; 3] = [500, 150, 50];
const STEPS: u64 = 300;
/// The seed on which rates are chosen.
const FIRST: u64 = 1;

/// Designs before this one, in case somebody thinks of them again.
const TRIED: [&str; 3] = [
    "tried before, one seed: pretrained on x → y alone, five of twelve letters: right after 500, 150, 50 \
        with all weights 0.481, 0.382, 0.314, adapter 0.463, 0.356, 0.299, Compacter 0.440, 0.355, \
        0.311, norms 0.270, 0.308, 0.258; left because all weights did not learn the task",
    "tried before, one seed, all weights alone: pretrained on x → y → z without marks, five of twelve \
        letters: 0.513, 0.488, 0.433; left for the same reason",
    "tried before, one seed, asked after x → y: marks in front of every other text: all weights 0.501, \
        0.429, 0.429, adapter 0.512, 0.418, 0.422; marks at the end of a quarter or half of 20000 or 40000 \
        texts: all weights 0.521 to 0.529 after 500; left for the same reason",
];

/// What learns.
struct Arm {
    name: &'static str,
    recipe: &'static str,
    /// In place of the recipe's own.
    set: &'static [&'static str],
    rates: [&'static str; 2],
}

const fn light(name: &'static str, recipe: &'static str, set: &'static [&'static str]) -> Arm {
    Arm { name, recipe, set, rates: ["3e-3", "1e-2"] }
}

const ALL: &str = "all weights";
const ADAPTER: &str = "adapter";
const PHM: &str = "PHM adapter";
const RANK_ONE: &str = "adapter of rank one";
const COMPACTER: &str = "Compacter";
const MLP_ALONE: &str = "Compacter++";
const NORMS: &str = "norms";
const BIASES: &str = "biases";
const WIDTH: &str = "reduction_factor=4";
static ARMS: [Arm; 8] = [
    Arm { name: ALL, recipe: "recipes/full/sft.toml", set: &[], rates: ["3e-4", "1e-3"] },
    light(ADAPTER, PLAIN, &[WIDTH, "non_linearity=gelu_new"]),
    light(PHM, KRONECKER, &[WIDTH, "phm.shared=false", "phm.factorized=false"]),
    light(RANK_ONE, KRONECKER, &[WIDTH, "phm.division=1"]),
    light(COMPACTER, KRONECKER, &[WIDTH]),
    light(MLP_ALONE, KRONECKER, &[WIDTH, "train.params.bottleneck.at=layers.*.mlp.out"]),
    light(NORMS, NORM, &[]),
    light(BIASES, "recipes/adapter/bias.toml", &[]),
];

const COUNT: &str = "parameters";

fn figure(items: usize) -> String {
    format!("right after {items}")
}

/// Shares answered right, and how many parameters learned.
struct Run {
    dev: f64,
    test: f64,
    count: u64,
}

fn run(lab: &Lab) -> Result<Measured> {
    let seed = Seed(42);
    let texts = rows(TEXTS, seed.split("texts"), read);
    let set = ["batch_size=32", "micro_tokens=512", "epochs=4", "learning_rate=2e-3"];
    let config = recipe("recipes/full/sft.toml", &set)?;
    let how = Pretraining { name: "rules", sizes: SIZES, rows: &texts, config: &config };
    let base = lab.pretrained(&how)?;
    let known = measure::exact(&base.policy()?, &rows(900, seed.split("marks"), named))?;
    lab.say(&format!("rules named right before tuning: {known:.3}"));
    let dev = rows(300, seed.split("development"), asked);
    let test = rows(1000, seed.split("test"), asked);

    let mut measured = Measured::default();
    for arm in &ARMS {
        let one = |rate: &str, seed, items| -> Result<Run> {
            let train = rows(items, Seed(42).split("train").at(seed), asked);
            let config = settings(arm, rate, seed)?;
            let bound = base.bind(&config)?;
            lab.train(&bound, &train, &config)?;
            let right = |of: &[Row]| measure::exact(&bound.policy, of);
            Ok(Run { dev: right(&dev)?, test: right(&test)?, count: bound.count() })
        };
        let (rate, first) =
            rates::best(&arm.rates, |run: &Run| run.dev, |rate| one(rate, FIRST, ITEMS[0]))?;
        measured.add(arm.name, COUNT, first.count as f64);
        for seed in lab.seeds() {
            for items in ITEMS {
                let test = match (seed, items) == (FIRST, ITEMS[0]) {
                    true => first.test,
                    false => one(rate, seed, items)?.test,
                };
                measured.add(arm.name, &figure(items), test);
            }
        }
        for figure in ITEMS.map(figure) {
            let found = Estimate::of(measured.values(arm.name, &figure)?);
            lab.say(&format!("{} at {rate}: {figure} {found}", arm.name));
        }
        measured.note(format!("{} learned at {rate}", arm.name));
    }
    claims(&mut measured)?;
    measured.note(format!("before tuning, {known:.3} of rules were named right"));
    TRIED.iter().for_each(|tried| measured.note(*tried));
    Ok(measured)
}

fn claims(measured: &mut Measured) -> Result<()> {
    let essential = [
        (500, ADAPTER, Limit::AtLeast(-0.02)),
        (500, ALL, Limit::AtLeast(-0.02)),
        (500, NORMS, Limit::AtLeast(0.03)),
        (50, ALL, Limit::AtLeast(-0.005)),
    ];
    let asides = [
        (150, ALL, Limit::AtLeast(-0.005)),
        (500, MLP_ALONE, Limit::AtLeast(-0.02)),
        (500, RANK_ONE, Limit::Above(0.0)),
        (500, BIASES, Limit::Above(0.0)),
    ];
    let mut claims = Vec::new();
    for (i, (items, other, limit)) in essential.into_iter().chain(asides).enumerate() {
        let right = |arm| measured.values(arm, &figure(items));
        let what = format!("right after {items}, {COMPACTER} − {other}");
        let claim = Inequality::paired(what, right(COMPACTER)?, right(other)?, limit);
        claims.push(if i < essential.len() { claim } else { claim.aside() });
    }
    let count = |arm| -> Result<f64> { Ok(measured.values(arm, COUNT)?[0]) };
    let share = Estimate::of(&[count(COMPACTER)? / count(ADAPTER)?]);
    let what = format!("parameters with norms, {COMPACTER} over {ADAPTER}");
    claims.push(Inequality::new(what, share, Limit::AtMost(0.1)));
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

fn params(arm: &Arm) -> Result<Params> {
    let mut params = recipe(arm.recipe, arm.set)?.params;
    if params.bottleneck.is_some() {
        // As published, with every adapter.
        params.full = recipe(NORM, &[])?.params.full;
    }
    Ok(params)
}

fn settings(arm: &Arm, rate: &str, seed: u64) -> Result<Train> {
    let (steps, rate) = (format!("max_steps={STEPS}"), format!("learning_rate={rate}"));
    let set = ["batch_size=16", "micro_tokens=512", "epochs=1000", &steps, &rate];
    Ok(Train { seed, params: params(arm)?, ..recipe(KRONECKER, &set)? })
}

#[cfg(test)]
mod tests {
    use luthier_params::form::bottleneck::kronecker_sum;
    use luthier_update::Start;

    use super::*;
    use crate::Small;

    fn arm(name: &str) -> &'static Arm {
        ARMS.iter().find(|arm| arm.name == name).unwrap()
    }

    #[test]
    fn arms_differ_in_what_they_are_called_after_alone() {
        let of = |name| settings(arm(name), "3e-3", 5).unwrap();
        let compacter = of(COMPACTER);
        // The published recipe at another width.
        let published = recipe(KRONECKER, &[WIDTH]).unwrap().params;
        assert_eq!(compacter.params, published);
        assert_eq!((compacter.seed, compacter.max_steps), (5, Some(STEPS)));
        for arm in &ARMS {
            let other = Train { params: compacter.params.clone(), ..of(arm.name) };
            assert_eq!(other, compacter, "{}", arm.name);
        }
        let same = |name, change: fn(&mut Params)| {
            let mut params = compacter.params.clone();
            change(&mut params);
            assert_eq!(of(name).params, params, "{name}");
        };
        fn of_adapter(params: &mut Params) -> &mut luthier_params::Bottleneck {
            params.bottleneck.as_mut().unwrap()
        }
        same(ADAPTER, |p| of_adapter(p).phm = None);
        same(MLP_ALONE, |p| of_adapter(p).at = "layers.*.mlp.out".into());
        same(NORMS, |p| p.bottleneck = None);
        same(RANK_ONE, |p| of_adapter(p).phm.as_mut().unwrap().division = 1);
        same(PHM, |p| {
            let phm = of_adapter(p).phm.as_mut().unwrap();
            (phm.shared, phm.factorized) = (false, false);
        });
    }

    /// `#adapters · (2·n·r·(d/n + b/n) + b + d) + n³`, and 9 norms of 128.
    #[test]
    fn parameters_are_those_of_the_published_count() {
        let base = Small::random(SIZES, Seed(1)).unwrap();
        let count = |name| {
            let bound = base.bind(&settings(arm(name), "3e-3", 1).unwrap()).unwrap();
            bound.count()
        };
        let norms = 9 * 128;
        assert_eq!(count(NORMS), norms);
        assert_eq!(count(COMPACTER), 8 * (2 * 4 * (32 + 8) + 32 + 128) + 64 + norms);
        assert_eq!(count(MLP_ALONE), 4 * (2 * 4 * (32 + 8) + 32 + 128) + 64 + norms);
        assert_eq!(count(RANK_ONE), 8 * (2 * (128 + 32) + 32 + 128) + 1 + norms);
        assert_eq!(count(PHM), 8 * (2 * (64 + 4 * 32 * 8) + 32 + 128) + norms);
        assert_eq!(count(ADAPTER), 8 * (2 * 128 * 32 + 32 + 128) + norms);
        assert_eq!(count(BIASES), 4 * (4 * 128 + 2 * 256 + 128));
        assert_eq!(count(ALL), base.parameters());
    }

    #[test]
    fn of_adapters_only_the_large_factors_decay() {
        let base = Small::random(SIZES, Seed(1)).unwrap();
        for (name, wanted) in [(COMPACTER, "W_"), (PHM, "W"), (ADAPTER, "weight")] {
            let mut config = settings(arm(name), "3e-3", 1).unwrap();
            config.update.adamw.as_mut().unwrap().weight_decay = 0.5;
            let bound = base.bind(&config).unwrap();
            let start = Start { n_layers: SIZES.layers, ..Start::steps(1) };
            let rates = config.update.rates(&bound.params, &start).unwrap();
            for (param, rates) in bound.params.iter().zip(rates) {
                let last = param.name.rsplit('.').next().unwrap();
                let large = param.name.contains("adapter_") && last.starts_with(wanted);
                assert_eq!(rates.weight_decay > 0.0, large, "{}", param.name);
            }
        }
    }

    /// With one term, the small matrix is a number and the sum a multiple of one product.
    #[test]
    fn one_term_is_an_adapter_of_rank_one() {
        use candle_core::{Device, Tensor};
        let a = Tensor::new(&[[[2f32]]], &Device::Cpu).unwrap();
        let s = Tensor::new(&[[[1f32], [3.0]]], &Device::Cpu).unwrap();
        let t = Tensor::new(&[[[5f32, 7.0, 11.0]]], &Device::Cpu).unwrap();
        let h = kronecker_sum(&a, &s.matmul(&t).unwrap()).unwrap();
        assert_eq!(h.to_vec2::<f32>().unwrap(), [[10.0, 14.0, 22.0], [30.0, 42.0, 66.0]]);
    }
}
