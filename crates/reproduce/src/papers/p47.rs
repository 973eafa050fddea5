//! SSF (Lian et al. 2022, paper 47): a scale and a shift after every operation, folded away in the end.
//!
//! A small decoder reads pictures of 8 × 8 points as 16 tokens, a patch of 2 × 2 each, and is pretrained
//! to name the digit or letter that it saw. Then the digits come in a new rendering (thicker, leaning,
//! dark for light) under new names: 400 pictures, 40 epochs of 32 a step. Arms: the head alone (linear
//! probe); head and biases; head and SSF; head and SSF's scales; head and SSF's shifts; all weights. A
//! seed draws pictures, order and beginnings, the head's rows for the new names too. What SSF learned
//! is folded into the weights, and the logits of a model made of them are compared.
//!
//! **Departures**: (1) a decoder that reads patches line by line and answers with a token, where the
//! paper has vision transformers; patches are tokens of an embedding, not projected, so no SSF stands
//! there; (2) pictures of 8 × 8, not 16 × 16; (3) the decoder has no biases: what folds from shifts are
//! new ones, counted apart; (4) the rate is the best of three (of the others ten times as high as of
//! all weights) for the first seed on 200 other pictures.

use std::sync::Arc;

use luthier_core::{Affine, Error, Policy, Result, Row, Rows, Seed};
use luthier_model::{Decoder, Precision, names};
use luthier_params::Params;
use luthier_train::Train;

use crate::{
    Estimate, Inequality, Lab, Limit, Measured, Paper, Pretraining, Sizes, measure, rates, recipe,
    stats::mean,
};

mod picture;

/// The check.
pub const PAPER: Paper = Paper {
    number: 47,
    title: "SSF: scaling and shifting features",
    claim: "a scale and a shift after every operation adapt better than a linear probe, as well as \
        biases, either alone or all weights, and fold into weights that compute the same",
    recipes: &[SSF_RECIPE, "recipes/adapter/bias.toml"],
    seeds: 3,
    run,
};

const SSF_RECIPE: &str = "recipes/adapter/ssf.toml";
const FULL_RECIPE: &str = "recipes/full/sft.toml";
const HEAD: &str = "train.params.full.at=logits";

const SIZES: Sizes = Sizes {
    layers: 4,
    width: 64,
    heads: 4,
    kv_heads: 4,
    ffn: 176,
    vocab: picture::VOCAB,
    tied: false,
};

/// Share of a picture's points that are wrong.
const NOISE: f64 = 0.03;
const PICTURES: usize = 8000;
const FEW: usize = 400;
/// The seed on which rates are chosen.
const FIRST: u64 = 1;

/// The design before this one, in case somebody thinks of it again.
const TRIED: &str = "tried before, one seed: 5 % of the points wrong, where pretraining named 0.940 right \
    (the published check wants 0.97), the better of two rates, the others' 5e-3 and 1e-2: all weights \
    0.887, SSF 0.829, scales 0.775, shifts 0.785, biases 0.771, linear probe 0.615; SSF missed all weights";

/// What learns besides the head.
struct Arm {
    name: &'static str,
    recipe: &'static str,
    /// In place of the recipe's own.
    set: &'static [&'static str],
    rates: [&'static str; 3],
}

const LIGHT: [&str; 3] = ["3e-3", "1e-2", "3e-2"];
const PROBE: &str = "linear probe";
const BIASES: &str = "biases";
const SSF: &str = "SSF";
const SCALES: &str = "SSF, scales alone";
const SHIFTS: &str = "SSF, shifts alone";
const ALL: &str = "all weights";
static ARMS: [Arm; 6] = [
    Arm { name: ALL, recipe: FULL_RECIPE, set: &[], rates: ["3e-4", "1e-3", "3e-3"] },
    Arm { name: PROBE, recipe: FULL_RECIPE, set: &[HEAD], rates: LIGHT },
    Arm { name: BIASES, recipe: "recipes/adapter/bias.toml", set: &[], rates: LIGHT },
    Arm { name: SSF, recipe: SSF_RECIPE, set: &[], rates: LIGHT },
    Arm { name: SCALES, recipe: SSF_RECIPE, set: &["shift=false"], rates: LIGHT },
    Arm { name: SHIFTS, recipe: SSF_RECIPE, set: &["scale=false"], rates: LIGHT },
];

const RIGHT: &str = "right";
const COUNT: &str = "parameters learned";
const APART: &str = "largest difference of a folded logit";
const WEIGHTS: &str = "folded weights beyond the original's";
const NEW_BIASES: &str = "biases from folding";

/// What came of one run.
struct Run {
    dev: f64,
    test: f64,
    count: u64,
    fold: Option<Fold>,
}

fn run(lab: &Lab) -> Result<Measured> {
    let seed = Seed(47);
    let rows = picture::known(PICTURES, NOISE, seed.split("pictures"));
    let set = ["batch_size=32", "micro_tokens=512", "epochs=10", "learning_rate=2e-3"];
    let config = recipe(FULL_RECIPE, &set)?;
    let how = Pretraining { name: "pictures", sizes: SIZES, rows: &rows, config: &config };
    let base = lab.pretrained(&how)?;
    let unseen = picture::known(1000, NOISE, seed.split("unseen"));
    let known = measure::exact(&base.policy()?, &unseen)?;
    lab.say(&format!("named right before tuning: {known:.3} of 20 known glyphs"));
    let dev = picture::new(200, NOISE, seed.split("development"));
    let test = picture::new(1000, NOISE, seed.split("test"));

    let mut measured = Measured::default();
    for arm in &ARMS {
        let one = |rate: &str, seed| -> Result<Run> {
            let train = picture::new(FEW, NOISE, Seed(47).split("train").at(seed));
            let head = Seed(seed).split("head");
            let start = base.with_new_rows("lm_head.weight", &picture::new_names(), head)?;
            let config = settings(arm, rate, seed)?;
            let bound = start.bind(&config)?;
            lab.train(&bound, &train, &config)?;
            let right = |of: &[Row]| measure::exact(&bound.policy, of);
            let fold = match config.params.ssf {
                Some(_) => Some(Fold::new(SIZES, &bound.policy, &test[..50])?),
                None => None,
            };
            Ok(Run { dev: right(&dev)?, test: right(&test)?, count: bound.count(), fold })
        };
        let (rate, first) = rates::best(&arm.rates, |run: &Run| run.dev, |rate| one(rate, FIRST))?;
        let mut first = Some(first);
        for seed in lab.seeds() {
            let run = match first.take() {
                Some(first) => first,
                None => one(rate, seed)?,
            };
            measured.add(arm.name, RIGHT, run.test);
            measured.add(arm.name, COUNT, run.count as f64);
            if let Some(fold) = run.fold {
                let beyond = fold.weights as f64 - base.parameters() as f64;
                measured.add(arm.name, APART, fold.apart);
                measured.add(arm.name, WEIGHTS, beyond);
                measured.add(arm.name, NEW_BIASES, fold.biases as f64);
            }
        }
        let found = Estimate::of(measured.values(arm.name, RIGHT)?);
        lab.say(&format!("{} at {rate}: {found} right", arm.name));
        measured.note(format!("{} learned at {rate}", arm.name));
    }
    claims(&mut measured)?;
    measured.note(format!("before tuning, {known:.3} of the 20 known glyphs were named right"));
    measured.note(TRIED);
    Ok(measured)
}

fn claims(measured: &mut Measured) -> Result<()> {
    let right = |arm: &str| measured.values(arm, RIGHT);
    let ahead = mean(right(SCALES)?) >= mean(right(SHIFTS)?);
    let one = if ahead { SCALES } else { SHIFTS };
    let mut claims = Vec::new();
    for (other, limit) in [(PROBE, 0.05), (ALL, -0.01), (one, -0.003), (BIASES, -0.003)] {
        let what = format!("right, {SSF} − {other}");
        claims.push(Inequality::paired(what, right(SSF)?, right(other)?, Limit::AtLeast(limit)));
    }
    let largest = |arm: &str, figure: &str| -> Result<Estimate> {
        let values = measured.values(arm, figure)?.iter();
        let mean = values.fold(0.0, |most: f64, value| most.max(value.abs()));
        Ok(Estimate { mean, standard_error: None })
    };
    let what = "largest difference of a folded logit over the largest logit";
    claims.push(Inequality::new(what, largest(SSF, APART)?, Limit::AtMost(1e-4)));
    let what = "numbers of the folded weights beyond the original's";
    claims.push(Inequality::new(what, largest(SSF, WEIGHTS)?, Limit::AtMost(0.0)));
    for arm in [SSF, SCALES] {
        let what = format!("numbers of biases that the original lacks, {arm}");
        let found = largest(arm, NEW_BIASES)?;
        claims.push(Inequality::new(what, found, Limit::AtMost(0.0)).aside());
    }
    let what = format!("right, {SCALES} − {SHIFTS}");
    let scales = Inequality::paired(what, right(SCALES)?, right(SHIFTS)?, Limit::Above(0.0));
    claims.push(scales.aside());
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

fn params(arm: &Arm) -> Result<Params> {
    let mut params = recipe(arm.recipe, arm.set)?.params;
    if params.ssf.is_some() {
        params.full = recipe(FULL_RECIPE, &[HEAD])?.params.full;
    }
    Ok(params)
}

fn settings(arm: &Arm, rate: &str, seed: u64) -> Result<Train> {
    let rate = format!("learning_rate={rate}");
    let set = ["batch_size=32", "micro_tokens=512", "epochs=40", &rate];
    Ok(Train { seed, params: params(arm)?, ..recipe(SSF_RECIPE, &set)? })
}

/// What folding a policy's hooks into its weights gives.
struct Fold {
    /// The largest difference of a logit over the largest logit.
    apart: f64,
    /// Numbers of all weights but biases.
    weights: u64,
    /// Numbers of the biases that linear maps got.
    biases: u64,
}

impl Fold {
    fn new(sizes: Sizes, policy: &Policy, rows: &[Row]) -> Result<Self> {
        let (mut weights, mut biases) = (0, 0);
        for site in policy.model.sites().iter().filter(|site| site.module.is_some()) {
            let Affine { w_oi, b_o } = folded(policy, &site.name)?;
            weights += w_oi.elem_count() as u64;
            biases += b_o.map_or(0, |b_o| b_o.elem_count() as u64);
        }
        let with = biases > 0;
        let mut config = sizes.config();
        (config.qkv_bias, config.o_bias, config.mlp_bias) = (with, with, with);
        let numbers = |name: &str| -> Result<Vec<f32>> {
            let site = name.rsplit_once('.').and_then(|(module, _)| names::site(module));
            let site = site.ok_or_else(|| Error::failed(name, "belongs to no site"))?;
            let Affine { w_oi, b_o } = folded(policy, &site)?;
            let tensor = match (name.ends_with(".bias"), b_o) {
                (false, _) => w_oi,
                (true, Some(b_o)) => b_o,
                (true, None) => return Ok(vec![0.0; w_oi.dims()[0]]),
            };
            Ok(tensor.flatten_all()?.to_vec1::<f32>()?)
        };
        let merged = Decoder::from_weights(&config, &numbers, Precision::F32)?;
        let merged = logits(&Policy::plain(Arc::new(merged)), rows)?;
        let hooked = logits(policy, rows)?;
        let largest = |all: &mut dyn Iterator<Item = f32>| all.fold(0f32, |m, x| m.max(x.abs()));
        let apart = largest(&mut merged.iter().zip(&hooked).map(|(a, b)| a - b));
        let scale = largest(&mut hooked.iter().copied());
        Ok(Fold { apart: f64::from(apart) / f64::from(scale), weights, biases })
    }
}

/// What stands at a site with the hooks in it.
fn folded(policy: &Policy, site: &str) -> Result<Affine> {
    let (model, hooks) = (policy.model.as_ref(), &policy.hooks);
    let missing = || Error::failed(site, "what is bound here cannot become a weight");
    let id = model.sites().get(site).ok_or_else(missing)?.id;
    hooks.fold(model.sites(), id, model.affine(id)?)?.ok_or_else(missing)
}

fn logits(policy: &Policy, rows: &[Row]) -> Result<Vec<f32>> {
    let ids: Vec<u32> = rows.iter().flat_map(|row| row.ids.iter().copied()).collect();
    let lengths: Vec<usize> = rows.iter().map(Row::len).collect();
    let logits_nv = policy.logits(&ids, Arc::new(Rows::new(&lengths, |_| 0)))?;
    Ok(logits_nv.flatten_all()?.to_vec1::<f32>()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Tensor;
    use luthier_core::Param;
    use luthier_update::Start;

    use super::*;
    use crate::Small;

    const TINY: Sizes = Sizes { layers: 2, width: 16, ffn: 24, ..SIZES };

    fn arm(name: &str) -> &'static Arm {
        ARMS.iter().find(|arm| arm.name == name).unwrap()
    }

    #[test]
    fn arms_differ_in_what_learns_and_in_nothing_else() {
        let of = |name| settings(arm(name), "5e-3", 3).unwrap();
        let ssf = of(SSF);
        assert_eq!((ssf.seed, ssf.batch_size, ssf.epochs), (3, Some(32), 40.0));
        for arm in &ARMS {
            let other = Train { params: ssf.params.clone(), ..of(arm.name) };
            assert_eq!(other, ssf, "{}", arm.name);
        }
        let published = recipe(SSF_RECIPE, &[]).unwrap().params;
        assert_eq!(Params { full: None, ..ssf.params.clone() }, published);
        let same = |name, change: fn(&mut Params)| {
            let mut params = ssf.params.clone();
            change(&mut params);
            assert_eq!(of(name).params, params, "{name}");
        };
        same(PROBE, |p| p.ssf = None);
        same(SCALES, |p| p.ssf.as_mut().unwrap().shift = false);
        same(SHIFTS, |p| p.ssf.as_mut().unwrap().scale = false);
        same(BIASES, |p| {
            let ssf = p.ssf.as_mut().unwrap();
            (ssf.scale, ssf.init_std) = (false, 0.0);
            ssf.at = "layers.*.{attn.{q,k,v,o},mlp.{gate,up,down}}".into();
        });
        same(ALL, |p| {
            p.ssf = None;
            p.full.as_mut().unwrap().at = "**".into();
        });
    }

    /// Every variable somewhere else than where it began.
    fn shake(params: &[Param]) {
        for Param { name, var, .. } in params {
            let mut rng = Seed(7).split(name).rng();
            let by: Vec<f32> = (0..var.elem_count()).map(|_| (0.3 * rng.normal()) as f32).collect();
            let by = Tensor::from_vec(by, var.shape(), var.device()).unwrap();
            var.set(&(var.as_detached_tensor() + by).unwrap()).unwrap();
        }
    }

    #[test]
    fn folded_weights_are_as_many_and_compute_the_same() {
        let base = Small::random(TINY, Seed(1)).unwrap();
        let rows = picture::new(20, NOISE, Seed(2));
        // Per block q, k, v, o, down of the width, gate and up of the MLP's.
        let linear = 2 * (5 * 16 + 2 * 24);
        for (name, biases) in [(SSF, linear), (SHIFTS, linear), (BIASES, linear), (SCALES, 0)] {
            let bound = base.bind(&settings(arm(name), "5e-3", 1).unwrap()).unwrap();
            shake(&bound.params);
            let fold = Fold::new(TINY, &bound.policy, &rows).unwrap();
            assert!(fold.apart < 1e-5, "{name}: {}", fold.apart);
            assert_eq!((fold.weights, fold.biases), (base.parameters(), biases), "{name}");
            let before = logits(&base.policy().unwrap(), &rows).unwrap();
            let now = logits(&bound.policy, &rows).unwrap();
            let moved = before.iter().zip(&now).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(moved > 0.1, "{name} moves the logits by {moved}");
        }
    }

    #[test]
    fn scales_and_shifts_do_not_decay_and_the_head_does() {
        let mut config = settings(arm(SSF), "5e-3", 1).unwrap();
        config.update.adamw.as_mut().unwrap().weight_decay = 0.05;
        let bound = Small::random(TINY, Seed(1)).unwrap().bind(&config).unwrap();
        let start = Start { n_layers: TINY.layers, ..Start::steps(1) };
        let rates = config.update.rates(&bound.params, &start).unwrap();
        let decays = bound.params.iter().zip(rates).filter(|(_, rates)| rates.weight_decay > 0.0);
        let names: Vec<&str> = decays.map(|(param, _)| param.name.as_str()).collect();
        assert_eq!(names, ["lm_head.weight"]);
    }
}
