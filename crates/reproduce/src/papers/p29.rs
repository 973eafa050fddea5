//! SaRA (Hu et al. 2025, paper 29): what the weights that do nothing can learn, and how little is
//! lost by it.
//!
//! A small decoder is pretrained on texts of 40 classes, each a cyclic motif with jitter, then tuned
//! on 200 texts of half of the classes in a new style (letters turned around, a stripe across).
//! Arms: SaRA; as many entries drawn; as many of the largest; a LoRA of as many numbers; all
//! weights. Style loss: on other texts in the new style. Rise of the base loss: on texts in the
//! known style of the classes that had no part in it. Three probes: the base loss when the smallest
//! entries are set to 0; the effective rank `(Σσ)² / Σσ²` of the change of a matrix (mean over
//! matrices) with the nuclear norm and without it; the entries that are chosen again half-way.
//!
//! **Departures**: (1) a decoder and texts in place of a denoiser and digits; (2) matrices of the
//! blocks alone are chosen from, as the form does by default, not embedding, head and norms; (3) each
//! arm's rate, of two, is the one with which its first seed does better on development texts: the
//! published rate follows from a threshold of Stable Diffusion's; (4) the nuclear norm and the choice
//! half-way are part of SaRA and of no other arm; (5) the style loss of full tuning may be above
//! SaRA's, for it may overfit 200 texts: that it is not, is an aside.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use candle_core::{Device, Tensor};
use luthier_core::{At, Error, Hook, Mask, Param, Result, Row, Seed};
use luthier_kernels::svd::Svd;
use luthier_params::{
    Bound, Full, Lora, Params, Sparse,
    form::sparse::{Random, Sara},
};
use luthier_train::Train;

use crate::{
    Inequality, Lab, Limit, Measured, Paper, Pretraining, Sizes, Small, measure, rates::Chosen,
    recipe, stats::mean,
};

mod motifs;

use motifs::{OTHERS, STYLED, Style, rows};

/// The check.
pub const PAPER: Paper = Paper {
    number: 29,
    title: "SaRA: the weights that do nothing",
    claim: "the smallest weights can be set to 0 unnoticed, and training them alone learns a style \
        about as well as LoRA and spoils less of what was known than training all or the largest",
    recipes: &[RECIPE],
    seeds: 3,
    run,
};

const RECIPE: &str = "recipes/sparse/sara.toml";

const SIZES: Sizes = Sizes {
    layers: 4,
    width: 96,
    heads: 4,
    kv_heads: 4,
    ffn: 256,
    vocab: motifs::VOCAB,
    tied: false,
};

const TEXTS: usize = 4000;
const EXAMPLES: usize = 200;
const STEPS: u64 = 600;
/// As many entries as a LoRA of rank 9 has numbers.
const DENSITY: f64 = 19.0 / 128.0;
const RANK: usize = 9;
const RATES: [&str; 2] = ["3e-4", "1e-3"];

const SARA: &str = "SaRA";
const FREE: &str = "SaRA, λ 0";
const STRONG: &str = "SaRA, λ 5e-3";
const RANDOM: &str = "random";
const LARGEST: &str = "largest";
const LORA: &str = "LoRA";
const FULL: &str = "full";
/// SaRA before those that learn at its rate.
const ARMS: [&str; 7] = [SARA, FREE, STRONG, RANDOM, LARGEST, LORA, FULL];

const STYLE: &str = "style loss";
const RISE: &str = "rise of the base loss";
const EFFECTIVE: &str = "effective rank of the change";
const COUNT: &str = "numbers that learn";
const SECOND: &str = "of them in the second half";

fn run(lab: &Lab) -> Result<Measured> {
    let texts = motifs::pretraining_rows(TEXTS);
    let set = ["batch_size=64", "micro_tokens=1200", "epochs=24", "weight_decay=0.1"];
    let config = recipe("recipes/full/sft.toml", &[&set[..], &["learning_rate=2e-3"]].concat())?;
    let how = Pretraining { name: "motifs", sizes: SIZES, rows: &texts, config: &config };
    let base = lab.pretrained(&how)?;

    let mut measured = Measured::default();
    let mut chosen = Chosen::default();
    for seed in lab.seeds() {
        let data = Data::new(Seed(seed));
        let before = measure::loss(&base.policy()?, &data.base)?;
        let style = measure::loss(&base.policy()?, &data.test)?;
        lab.say(&format!("seed {seed}, before: base loss {before:.3}, style loss {style:.3}"));
        measured.add("before", STYLE, style);
        for (share, name) in ZEROED {
            let loss = measure::loss(&zeroed(&base, share)?.policy()?, &data.base)?;
            measured.add(name, RISE, loss - before);
            measured.add(name, RELATIVE, loss / before - 1.0);
        }
        for arm in ARMS {
            let at = |rate| Run::of(lab, &base, arm, rate, seed, &data);
            let of = if matches!(arm, FREE | STRONG) { SARA } else { arm };
            let run = chosen.run(of, &RATES, |run: &Run| -run.dev, at)?;
            lab.say(&format!(
                "seed {seed}, {arm} at {}: style loss {:.3}, base loss {:.3}",
                run.rate, run.style, run.base
            ));
            measured.add(arm, STYLE, run.style);
            measured.add(arm, RISE, run.base - before);
            measured.add(arm, COUNT, run.count as f64);
            run.rank.into_iter().for_each(|rank| measured.add(arm, EFFECTIVE, rank));
            run.second.into_iter().for_each(|n| measured.add(arm, SECOND, n as f64));
        }
    }
    claims(&mut measured)?;
    measured.note(chosen.note());
    Ok(measured)
}

/// Shares of the entries that are set to 0.
const ZEROED: [(f64, &str); 2] = [(0.1, TENTH), (0.5, HALF)];
const TENTH: &str = "smallest 10 % at 0";
const HALF: &str = "smallest 50 % at 0";
const RELATIVE: &str = "relative";

fn claims(measured: &mut Measured) -> Result<()> {
    let values = |arm: &str, figure: &str| measured.values(arm, figure);
    let times = |by: f64, values: &[f64]| values.iter().map(|x| by * x).collect::<Vec<f64>>();
    let gap =
        |what: &str, of: &[f64], minus: &[f64], limit| Inequality::paired(what, of, minus, limit);
    let none = |values: &[f64]| vec![0.0; values.len()];
    let (tenth, half) = (values(TENTH, RELATIVE)?, values(HALF, RELATIVE)?);
    let (rise, style) = (values(SARA, RISE)?, values(SARA, STYLE)?);
    let (full, lora) = (times(0.7, values(FULL, RISE)?), times(1.05, values(LORA, STYLE)?));
    let (free, second) = (values(FREE, EFFECTIVE)?, values(SARA, SECOND)?);
    let most = Limit::AtMost(0.0);
    let all = [
        gap(
            "base loss with the smallest 10 % at 0, relative rise",
            tenth,
            &none(tenth),
            Limit::AtMost(0.02),
        ),
        gap(
            "its rise with 50 % at 0 less five times that with 10 %",
            half,
            &times(5.0, tenth),
            Limit::AtLeast(0.0),
        ),
        gap("rise of the base loss, SaRA − 0.7 · full", rise, &full, most),
        gap("rise of the base loss, SaRA − largest", rise, values(LARGEST, RISE)?, most),
        gap("style loss, SaRA − 1.05 · LoRA", style, &lora, most),
        gap("style loss, SaRA − full", style, values(FULL, STYLE)?, Limit::AtLeast(0.0)).aside(),
        gap("effective rank, λ 0 − λ 5e-4", free, values(SARA, EFFECTIVE)?, Limit::Above(0.0)),
        gap("effective rank, λ 0 − λ 5e-3", free, values(STRONG, EFFECTIVE)?, Limit::Above(0.0)),
        gap(
            "entries that no longer learn in the second half",
            values(SARA, COUNT)?,
            second,
            Limit::Above(0.0),
        ),
        gap("entries that learn in the second half", second, &none(second), Limit::Above(0.0)),
    ];
    all.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

/// The training settings of an arm.
fn settings(arm: &str, rate: &str, seed: u64) -> Result<Train> {
    let (rate, steps) = (format!("learning_rate={rate}"), format!("max_steps={STEPS}"));
    let density = format!("density={DENSITY}");
    let lambda = if arm == STRONG { "lambda=5e-3" } else { "lambda=5e-4" };
    let set = ["batch_size=16", "micro_tokens=512", "epochs=1000", lambda, &density, &rate, &steps];
    let mut config = recipe(RECIPE, &set)?;
    if !matches!(arm, SARA | STRONG) {
        config.update.nuclear = None;
    }
    if !matches!(arm, SARA | STRONG | FREE) {
        config.params = params(arm);
    }
    config.seed = seed;
    Ok(config)
}

/// What learns in the arms to compare with.
fn params(arm: &str) -> Params {
    let none = Params::default();
    let random = Some(Random { density: DENSITY });
    match arm {
        RANDOM => Params { sparse: Some(Sparse { random, ..Sparse::default() }), ..none },
        LARGEST => Params { sparse: Some(smallest(1.0 - DENSITY)), ..none },
        LORA => {
            let lora = Lora { r: RANK, alpha: 2.0 * RANK as f64, ..Lora::default() };
            Params { lora: Some(lora), ..none }
        }
        _ => Params { full: Some(Full::default()), ..none },
    }
}

/// So large a share of the smallest entries, chosen once.
fn smallest(density: f64) -> Sparse {
    let sara = Sara { density, progressive: 0.0, ..Sara::default() };
    Sparse { sara: Some(sara), ..Sparse::default() }
}

/// What learns of an arm. No form chooses the largest entries: they are those that are not among
/// the smallest.
fn bind(base: &Small, arm: &str, config: &Train) -> Result<Bound> {
    let mut bound = base.bind(config)?;
    if arm == LARGEST {
        for param in &mut bound.params {
            let rest = Mask::new(outside(param).collect())?;
            *param = Param::whole(&param.name, param.var.clone()).masked(rest)?;
        }
    }
    Ok(bound)
}

/// The entries that are not in a variable's mask.
fn outside(param: &Param) -> impl Iterator<Item = u32> {
    let chosen = param.mask.as_ref().map_or(&[][..], Mask::positions);
    (0..param.var.elem_count() as u32).filter(move |i| chosen.binary_search(i).is_err())
}

fn numbers(param: &Param) -> Result<Vec<f32>> {
    Ok(param.var.flatten_all()?.to_vec1::<f32>()?)
}

/// The model with a share of its entries, the smallest, at 0.
fn zeroed(base: &Small, share: f64) -> Result<Small> {
    let params = Params { sparse: Some(smallest(share)), ..Params::default() };
    let bound = base.bind(&Train { params, ..Train::default() })?;
    let mut zeroed = base.clone();
    for param in &bound.params {
        let mut numbers = numbers(param)?;
        if let Some(mask) = &param.mask {
            mask.scatter(&vec![0.0; mask.len()], &mut numbers);
        }
        let tensor = Tensor::from_vec(numbers, param.var.dims(), &Device::Cpu)?;
        zeroed.weights.insert(&param.name, tensor);
    }
    Ok(zeroed)
}

/// What one arm does with one seed.
struct Run {
    rate: &'static str,
    dev: f64,
    style: f64,
    base: f64,
    count: u64,
    /// Of SaRA: the effective rank of the change, and how many entries go on half-way.
    rank: Option<f64>,
    second: Option<usize>,
}

impl Run {
    fn of(
        lab: &Lab,
        base: &Small,
        arm: &str,
        rate: &'static str,
        seed: u64,
        data: &Data,
    ) -> Result<Self> {
        let config = settings(arm, rate, seed)?;
        let mut bound = bind(base, arm, &config)?;
        let sara = matches!(arm, SARA | STRONG | FREE);
        let census = if sara { Some(Census::take(&mut bound, STEPS as usize / 2)?) } else { None };
        lab.train(&bound, &data.train, &config)?;
        let loss = |rows| measure::loss(&bound.policy, rows);
        Ok(Run {
            rate,
            dev: loss(&data.dev)?,
            style: loss(&data.test)?,
            base: loss(&data.base)?,
            count: bound.count(),
            rank: if sara { Some(effective_rank(base, &bound)?) } else { None },
            second: census.map(|census| census.idle.load(Ordering::Relaxed)),
        })
    }
}

/// `(Σσ)² / Σσ²` of the change of a matrix, in the mean over matrices that changed.
fn effective_rank(base: &Small, bound: &Bound) -> Result<f64> {
    let mut ranks = Vec::new();
    for Param { name, var, .. } in &bound.params {
        let missing = || Error::failed(name, "the base has no such weight");
        let before = base.weights.get(name).ok_or_else(missing)?;
        let (o, i) = var.dims2()?;
        let svd = Svd::dense(name, &(var.as_tensor() - before)?, o.min(i))?;
        let (sum, squares) = (svd.sigma().iter().sum::<f64>(), svd.norm().powi(2));
        if squares > 0.0 {
            ranks.push(sum * sum / squares);
        }
    }
    Ok(mean(&ranks))
}

/// Counts the entries that are idle when a run is half-way: in the pass that follows the choice
/// between them, before the step that moves them.
struct Census {
    params: Vec<Param>,
    threshold: f32,
    due: usize,
    passes: AtomicUsize,
    idle: AtomicUsize,
}

impl Census {
    /// Watches the embedding, which every pass reads once; a step here is one pass.
    fn take(bound: &mut Bound, due: usize) -> Result<Arc<Self>> {
        // The smallest of those that were not chosen is where entries stop being idle.
        let mut threshold = f32::INFINITY;
        for param in &bound.params {
            let numbers = numbers(param)?;
            threshold = outside(param).fold(threshold, |t, i| t.min(numbers[i as usize].abs()));
        }
        let (passes, idle) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let census = Census { params: bound.params.clone(), threshold, due, passes, idle };
        let census = Arc::new(census);
        let embed = bound.policy.model.sites().get("embed").map(|site| site.id);
        let embed = embed.ok_or_else(|| Error::failed("embed", "the model has no such site"))?;
        bound.policy.hooks.bind(embed, census.clone());
        Ok(census)
    }

    fn count(&self) -> Result<usize> {
        let mut idle = 0;
        for param in &self.params {
            let (numbers, chosen) = (numbers(param)?, param.mask.as_ref());
            let below = |i: &&u32| numbers[**i as usize].abs() < self.threshold;
            idle += chosen.map_or(0, |mask| mask.positions().iter().filter(below).count());
        }
        Ok(idle)
    }
}

impl Hook for Census {
    fn after(&self, _at: &At, _x: &Tensor, y: Tensor) -> Result<Tensor> {
        if self.passes.fetch_add(1, Ordering::Relaxed) == self.due {
            self.idle.store(self.count()?, Ordering::Relaxed);
        }
        Ok(y)
    }
}

/// Texts of one seed.
struct Data {
    train: Vec<Row>,
    dev: Vec<Row>,
    test: Vec<Row>,
    /// In the known style, of the other classes.
    base: Vec<Row>,
}

impl Data {
    fn new(seed: Seed) -> Self {
        let styled = |name: &str, n| rows(STYLED, n, Style::New, seed.split(name));
        Data {
            train: styled("train", EXAMPLES),
            dev: styled("development", 200),
            test: styled("test", 400),
            base: rows(OTHERS, 400, Style::Known, seed.split("base")),
        }
    }
}

#[cfg(test)]
mod tests;
