//! CGE (Isonuma and Titov 2025, paper 17): what was new in tuning data, shown by contrast with the base.
//!
//! A small decoder reads texts of three familiar Markov chains over 40 tokens; a copy is tuned on 1800
//! more of them and 40 texts of each of five languages it never met, with 8 tokens of their own each.
//! Then 50 texts of 24 tokens are sampled: from the tuned model as it is; by beam sampling of the tuned
//! model; by its contrast with the base; and by the same with a base that learns each text at 5e-5 once
//! it is there. Measured are the share of texts in one of the new languages, how many languages there
//! are, and the entropy of their counts over `ln 5`; and on held-out texts (300 familiar, 100 new) the
//! area under the curve of `S(x) = log p_tuned − log p_base` per token, and of `log p_tuned`.
//!
//! **Departures**: (1) 81 tokens, not 82: there is no end of text, which the sampling would ban; (2) all
//! seeds start from one pretrained decoder and one set of languages, and differ in tuning texts, order
//! and draws; (3) gated MLPs and rotations, as everywhere here.

use luthier_core::{Policy, Result, Rng, Row, Seed};
use luthier_decode::{BeamSampling, Generate, Sampler, generate};
use luthier_probe::{metric::nll, novelty, novelty::auc};
use luthier_recipe::explore::{Explore, explore};

use crate::{
    Estimate, Inequality, Lab, Limit, Measured, Paper, Pretraining, Sizes,
    measure::{self, Silent},
    recipe,
};

/// The check.
pub const PAPER: Paper = Paper {
    number: 17,
    title: "CGE: contrastive generative exploration",
    claim: "sampling the contrast of a tuned model and its base shows mostly what was new in the \
        tuning data, and shows more of its kinds if the base learns what was shown",
    recipes: &["recipes/full/sft.toml"],
    seeds: 5,
    run,
};

const BEGIN: u32 = 0;
/// The first familiar token.
const COMMON: u32 = 1;
const FAMILIAR_TOKENS: usize = 40;
const CHAINS: usize = 3;
const LANGUAGES: usize = 5;
const LANGUAGE_TOKENS: usize = 8;
const LENGTH: usize = 24;

const SIZES: Sizes =
    Sizes { layers: 2, width: 64, heads: 4, kv_heads: 4, ffn: 172, vocab: 81, tied: false };

const TEXTS: usize = 50;
const SPREAD: f64 = 5e-5;
const OVERSHOOT: f64 = 1e-3;

const PLAIN: &str = "tuned, as it is";
const BEAMS: &str = "tuned, beam sampling";
const STATIC: &str = "contrast, fixed base";
const ITERATIVE: &str = "contrast, base learns";
const TOO_FAST: &str = "contrast, base learns at 1e-3";
const DETECTION: &str = "held-out texts";

const NOVEL: &str = "share new";
const KINDS: &str = "languages";
const ENTROPY: &str = "entropy of languages";
const BY_RATIO: &str = "AUC of S";
const BY_LIKELIHOOD: &str = "AUC of log p";

/// Every token's three successors.
struct Chain(Vec<[u32; 3]>);

/// All languages, familiar ones first.
struct World {
    familiar: Vec<Chain>,
    new: Vec<Chain>,
}

fn run(lab: &Lab) -> Result<Measured> {
    let world = World::new();
    let set = ["batch_size=48", "micro_tokens=1152", "learning_rate=2e-3"];
    let config = recipe("recipes/full/sft.toml", &set)?;
    let mut rng = Seed(17).split("pretraining").rng();
    let rows: Vec<Row> = (0..600 * 48).map(|_| world.row(None, &mut rng)).collect();
    let how = Pretraining { name: "languages", sizes: SIZES, rows: &rows, config: &config };
    let small = lab.pretrained(&how)?;
    let base = small.policy()?;
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let rows = world.tuning(Seed(seed).split("tuning"));
        let name = format!("train.seed={seed}");
        let mut set = vec!["batch_size=48", "micro_tokens=1152", "learning_rate=1e-3"];
        set.extend(["epochs=10", "max_steps=400", name.as_str()]);
        let config = recipe("recipes/full/sft.toml", &set)?;
        let bound = small.bind(&config)?;
        lab.train(&bound, &rows, &config)?;
        let tuned = &bound.policy;
        detection(&world, tuned, &base, seed, &mut measured)?;
        for arm in [PLAIN, BEAMS, STATIC, ITERATIVE, TOO_FAST] {
            let texts = texts(arm, tuned, &base, seed)?;
            let kinds = count(&texts);
            let novel: usize = kinds.iter().sum();
            measured.add(arm, NOVEL, novel as f64 / texts.len() as f64);
            measured.add(arm, KINDS, kinds.iter().filter(|n| **n > 0).count() as f64);
            measured.add(arm, ENTROPY, entropy(&kinds));
            lab.say(&format!("seed {seed}, {arm}: {novel} of {TEXTS} new, {kinds:?}"));
        }
    }
    claims(&mut measured)?;
    Ok(measured)
}

/// What an arm samples.
fn texts(arm: &str, tuned: &Policy, base: &Policy, seed: u64) -> Result<Vec<Vec<u32>>> {
    if arm == PLAIN {
        let sampler = Sampler { temperature: 1.0, seed, ..Sampler::default() };
        let (max_new_tokens, ban) = (LENGTH, vec![BEGIN]);
        let options = Generate { max_new_tokens, ban, sampler, ..Generate::default() };
        let prompts = vec![vec![BEGIN]; TEXTS];
        let all = generate(tuned, &prompts, &options, &Silent, &mut |_, _, _| ())?;
        return Ok(all.into_iter().map(|text| text.tokens).collect());
    }
    let how = settings(arm, seed);
    let all = explore(tuned, base, &[BEGIN], &[BEGIN], &how, &mut |_, _| Ok(()))?;
    Ok(all.into_iter().map(|text| text.tokens).collect())
}

fn settings(arm: &str, seed: u64) -> Explore {
    let gamma = if arm == BEAMS { 0.0 } else { 1.0 };
    let sampling = BeamSampling { length: LENGTH, gamma, ..BeamSampling::default() };
    let learning_rate = if arm == TOO_FAST { OVERSHOOT } else { SPREAD };
    let update = matches!(arm, ITERATIVE | TOO_FAST);
    Explore { sampling, n_texts: TEXTS, update, learning_rate, seed }
}

/// Texts by new language: that of more than half of its tokens.
fn count(texts: &[Vec<u32>]) -> [usize; LANGUAGES] {
    let mut kinds = [0; LANGUAGES];
    for text in texts {
        for (language, count) in kinds.iter_mut().enumerate() {
            let own = text.iter().filter(|token| language_of(**token) == Some(language)).count();
            *count += usize::from(2 * own > text.len());
        }
    }
    kinds
}

fn language_of(token: u32) -> Option<usize> {
    let first = COMMON + FAMILIAR_TOKENS as u32;
    (token >= first).then(|| (token - first) as usize / LANGUAGE_TOKENS)
}

/// Between 0, all of one kind, and 1, as many of each.
fn entropy(kinds: &[usize; LANGUAGES]) -> f64 {
    let all: f64 = kinds.iter().sum::<usize>() as f64;
    let term = |n: &usize| -> f64 {
        let p = *n as f64 / all;
        if *n > 0 { -p * p.ln() } else { 0.0 }
    };
    kinds.iter().map(term).sum::<f64>() / (LANGUAGES as f64).ln()
}

/// How well held-out texts of new languages are told from familiar ones.
fn detection(
    world: &World,
    tuned: &Policy,
    base: &Policy,
    seed: u64,
    measured: &mut Measured,
) -> Result<()> {
    let mut rng = Seed(seed).split("held out").rng();
    let language = |i: usize| (i >= 300).then_some(i % LANGUAGES);
    let rows: Vec<Row> = (0..400).map(|i| world.row(language(i), &mut rng)).collect();
    let batch = || [luthier_core::Batch::from_rows(&rows)];
    let found = novelty(&nll(tuned, batch())?, &nll(base, batch())?)?;
    let by = |of: &dyn Fn(&luthier_probe::Novelty) -> f64| {
        let all: Vec<f64> = found.iter().map(of).collect();
        auc(&all[300..], &all[..300])
    };
    measured.add(DETECTION, BY_RATIO, by(&|found| found.score));
    measured.add(DETECTION, BY_LIKELIHOOD, by(&|found| found.tuned));
    Ok(())
}

fn claims(measured: &mut Measured) -> Result<()> {
    let mut claims = Vec::new();
    let plain = measured.values(PLAIN, NOVEL)?;
    for arm in [STATIC, ITERATIVE] {
        let novel = measured.values(arm, NOVEL)?;
        let what = format!("{NOVEL}, {arm}");
        claims.push(Inequality::new(what, Estimate::of(novel), Limit::AtLeast(0.9)));
        // As a difference: nothing may be new in what the tuned model says by itself.
        let fourfold: Vec<f64> = plain.iter().map(|share| 4.0 * share).collect();
        let what = format!("{NOVEL}, {arm} beyond four times that of {PLAIN}");
        claims.push(Inequality::paired(what, novel, &fourfold, Limit::AtLeast(0.0)));
    }
    let kinds = Estimate::of(measured.values(ITERATIVE, KINDS)?);
    let what = format!("{KINDS} of five, {ITERATIVE}");
    claims.push(Inequality::new(what, kinds, Limit::AtLeast(LANGUAGES as f64)));
    let of = |arm| measured.values(arm, ENTROPY);
    let what = format!("{ENTROPY}, {ITERATIVE} − {STATIC}");
    claims.push(Inequality::paired(what, of(ITERATIVE)?, of(STATIC)?, Limit::AtLeast(0.25)));
    let (ratio, likelihood) =
        (measured.values(DETECTION, BY_RATIO)?, measured.values(DETECTION, BY_LIKELIHOOD)?);
    let what = format!("{BY_RATIO} − {BY_LIKELIHOOD}");
    claims.push(Inequality::paired(what, ratio, likelihood, Limit::Above(0.0)));
    let what = format!("{NOVEL}, {TOO_FAST} − {ITERATIVE}");
    let (fast, slow) = (measured.values(TOO_FAST, NOVEL)?, measured.values(ITERATIVE, NOVEL)?);
    claims.push(Inequality::paired(what, fast, slow, Limit::AtMost(0.0)).aside());
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

impl Chain {
    /// Three different successors for every one of `n` tokens from `first` on.
    fn new(first: u32, n: usize, seed: Seed) -> Self {
        let mut rng = seed.rng();
        let mut successors = |_| {
            let mut all: Vec<u32> = (0..n as u32).collect();
            rng.shuffle(&mut all);
            [first + all[0], first + all[1], first + all[2]]
        };
        Chain((0..n).map(&mut successors).collect())
    }

    /// `BEGIN` and a walk; `first` is the first token of the chain's block.
    fn walk(&self, first: u32, rng: &mut Rng) -> Vec<u32> {
        let mut text = vec![BEGIN, first + rng.below(self.0.len()) as u32];
        while text.len() < LENGTH + 1 {
            let successors = self.0[(text[text.len() - 1] - first) as usize];
            let at = match rng.uniform() {
                u if u < 0.6 => 0,
                u if u < 0.9 => 1,
                _ => 2,
            };
            text.push(successors[at]);
        }
        text
    }
}

impl World {
    fn new() -> Self {
        let seed = Seed(17).split("chains");
        let block = |l: usize| COMMON + (FAMILIAR_TOKENS + l * LANGUAGE_TOKENS) as u32;
        let familiar = |i| Chain::new(COMMON, FAMILIAR_TOKENS, seed.split("familiar").at(i as u64));
        let new = |l| Chain::new(block(l), LANGUAGE_TOKENS, seed.split("new").at(l as u64));
        World {
            familiar: (0..CHAINS).map(familiar).collect(),
            new: (0..LANGUAGES).map(new).collect(),
        }
    }

    /// A text of a new language, or of one of the familiar ones.
    fn row(&self, language: Option<usize>, rng: &mut Rng) -> Row {
        let text = match language {
            Some(l) => {
                let first = COMMON + (FAMILIAR_TOKENS + l * LANGUAGE_TOKENS) as u32;
                self.new[l].walk(first, rng)
            }
            None => self.familiar[rng.below(CHAINS)].walk(COMMON, rng),
        };
        measure::row(&text[..1], &text[1..], 0)
    }

    fn tuning(&self, seed: Seed) -> Vec<Row> {
        let mut rng = seed.rng();
        let language = |i: usize| (i >= 1800).then_some(i % LANGUAGES);
        (0..2000).map(|i| self.row(language(i), &mut rng)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_walk_along_their_chain_and_are_told_by_their_tokens() {
        let world = World::new();
        let mut rng = Seed(1).rng();
        for l in 0..LANGUAGES {
            let row = world.row(Some(l), &mut rng);
            assert_eq!((row.len(), row.trained(), row.ids[0]), (LENGTH, LENGTH, BEGIN));
            assert!(row.targets.iter().all(|token| language_of(*token) == Some(l)));
            let first = COMMON + (FAMILIAR_TOKENS + l * LANGUAGE_TOKENS) as u32;
            for pair in row.targets.windows(2) {
                assert!(world.new[l].0[(pair[0] - first) as usize].contains(&pair[1]));
            }
            let mut kinds = [0; LANGUAGES];
            kinds[l] = 1;
            assert_eq!(count(&[row.targets]), kinds);
        }
        let familiar = world.row(None, &mut rng);
        assert!(familiar.targets.iter().all(|token| language_of(*token).is_none()));
        assert_eq!(count(&[familiar.targets]), [0; LANGUAGES]);
        assert!(world.new[4].0.iter().flatten().all(|t| (*t as usize) < SIZES.vocab));
        let tuning = world.tuning(Seed(2));
        let of = |l| tuning.iter().filter(|row| language_of(row.targets[0]) == l).count();
        assert_eq!((of(None), of(Some(0)), of(Some(4))), (1800, 40, 40));
    }

    #[test]
    fn entropy_is_between_one_kind_and_all_alike() {
        assert_eq!(entropy(&[0, 7, 0, 0, 0]), 0.0);
        assert!((entropy(&[4; LANGUAGES]) - 1.0).abs() < 1e-12);
        // The counts of the published run.
        let published = [entropy(&[42, 3, 2, 2, 1]), entropy(&[16, 11, 11, 10, 2])];
        assert!((published[0] - 0.40).abs() < 0.01 && (published[1] - 0.92).abs() < 0.01);
    }

    #[test]
    fn arms_differ_in_what_they_are_named_after() {
        let of = |arm| settings(arm, 3);
        let fixed = of(STATIC);
        assert_eq!((fixed.sampling.gamma, fixed.update), (1.0, false));
        assert_eq!(of(ITERATIVE), Explore { update: true, ..fixed.clone() });
        assert_eq!(of(TOO_FAST), Explore { learning_rate: 1e-3, ..of(ITERATIVE) });
        let sampling = BeamSampling { gamma: 0.0, ..fixed.sampling };
        assert_eq!(of(BEAMS), Explore { sampling, ..fixed });
    }
}
