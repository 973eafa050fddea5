//! Emulated fine-tuning (Mitchell et al. 2024, paper 43): what tuning did to a small model, on top of a
//! large one, with no training of the large one.
//!
//! Knowledge is 1500 facts, `BOS entity relation value EOS`, whose values can be written in two alphabets.
//! A large and a small decoder read them, each value in either alphabet half of the time; the small one
//! cannot hold them all. Both are tuned to write the first alphabet on the facts of 60 entities. Asked for
//! the facts of the other 440: the probability of the first alphabet, and of the right value in either,
//! where tokens are drawn at temperature 1. Arms: both models before and after; the large base with the
//! small tuning's difference (up-scaled), doubled, and kept to a nucleus; the small base with the large
//! tuning's (down-scaled); the mean of the probabilities of large base and small tuned model; and the
//! up-scaled one drawn in fact, with the small tuned model writing ahead.
//!
//! **Departures**: (1) "clearly worse" of the mean of probabilities is 0.1 of the right values and 0.05
//! of the style; (2) the warm-up of 50 steps is that of all trainings, the short ones too.

use std::sync::Arc;

use luthier_core::{Policy, Result, Row, Rows, Seed};
use luthier_decode::{
    Combine, Draft, Generate, Parts, Sampler, Source,
    combine::{Emulate, Mixture, log_z},
    generate_from,
    sources::PolicySource,
};
use luthier_train::Train;
use luthier_update::{Schedules, schedule::Linear};

use crate::{
    Estimate, Inequality, Lab, Limit, Measured, Paper, Pretraining, Sizes, Small,
    measure::{self, Silent},
    recipe,
};

/// The check.
pub const PAPER: Paper = Paper {
    number: 43,
    title: "EFT: emulated fine-tuning",
    claim: "a large base plus what tuning did to a small model has the large one's knowledge and the \
        small one's tuned style",
    recipes: &["recipes/full/sft.toml"],
    seeds: 3,
    run,
};

const ENTITIES: usize = 500;
const RELATIONS: usize = 3;
const VALUES: usize = 30;
/// Entities whose facts tuning sees.
const TUNED: usize = 60;

const BOS: u32 = 0;
const EOS: u32 = 1;
const ENTITY: u32 = 2;
const RELATION: u32 = ENTITY + ENTITIES as u32;
/// Values in the first alphabet, then in the second.
const VALUE: u32 = RELATION + RELATIONS as u32;
const VOCAB: usize = VALUE as usize + 2 * VALUES;

const LARGE: Sizes =
    Sizes { layers: 1, width: 64, heads: 4, kv_heads: 4, ffn: 172, vocab: VOCAB, tied: false };
const SMALL: Sizes =
    Sizes { layers: 1, width: 6, heads: 1, kv_heads: 1, ffn: 16, vocab: VOCAB, tied: false };

/// How often every fact stands in what is read, in both alphabets: 375 steps of 256.
const TIMES: usize = 32;

const BASE_L: &str = "large base";
const BASE_S: &str = "small base";
const TUNED_L: &str = "large tuned";
const TUNED_S: &str = "small tuned";
const UP: &str = "up-scaled";
const DOWN: &str = "down-scaled";
const TWICE: &str = "up-scaled, twice the difference";
const NUCLEUS: &str = "up-scaled, nucleus of 0.9";
const MEAN: &str = "mean of probabilities";
const DRAFTED: &str = "up-scaled, drawn with a draft";

const STYLE: &str = "first alphabet";
const RIGHT: &str = "right value";
const KL: &str = "KL from large tuned";
const STAYS: &str = "drafted tokens that stay";

fn run(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let facts = facts(Seed(seed));
        let rows = reading(&facts);
        let pretrained = |name: &str, sizes, rate: &str, epochs: &str, seed| {
            let set = ["batch_size=256", "micro_tokens=512", epochs, rate];
            let config = settings(&set, seed)?;
            lab.pretrained(&Pretraining { name, sizes, rows: &rows, config: &config })
        };
        let large = pretrained("large", LARGE, "learning_rate=5e-3", "epochs=4", seed)?;
        let small = pretrained("small", SMALL, "learning_rate=1e-2", "epochs=3.2", seed)?;
        let style = tuning(&facts, Seed(seed));
        let tuned = |base: &Small, rate| -> Result<Small> {
            let set = ["batch_size=64", "micro_tokens=256", "epochs=1", rate];
            let config = settings(&set, seed)?;
            let bound = base.bind(&config)?;
            lab.train(&bound, &style, &config)?;
            base.tuned(&bound)
        };
        let large_tuned = tuned(&large, "learning_rate=1e-3")?;
        let small_tuned = tuned(&small, "learning_rate=3e-3")?;
        let nets = Nets {
            base_l: large.policy()?,
            base_s: small.policy()?,
            tuned_l: large_tuned.policy()?,
            tuned_s: small_tuned.policy()?,
        };
        nets.measure(&facts[TUNED * RELATIONS..], seed, &mut measured)?;
        let value = |arm, figure| measured.values(arm, figure).map(|v| v[v.len() - 1]);
        lab.say(&format!(
            "seed {seed}, right: large {:.3}, small tuned {:.3}, up-scaled {:.3}; first alphabet \
                {:.3}, {:.3}, {:.3}",
            value(BASE_L, RIGHT)?,
            value(TUNED_S, RIGHT)?,
            value(UP, RIGHT)?,
            value(BASE_L, STYLE)?,
            value(TUNED_S, STYLE)?,
            value(UP, STYLE)?,
        ));
    }
    claims(&mut measured)?;
    Ok(measured)
}

fn claims(measured: &mut Measured) -> Result<()> {
    let of = |arm, figure| measured.values(arm, figure);
    let apart: Vec<f64> = (of(UP, STYLE)?.iter().zip(of(TUNED_S, STYLE)?))
        .map(|(up, tuned)| (up - tuned).abs())
        .collect();
    let share: Vec<f64> = of(BASE_L, KL)?.iter().map(|kl| 0.6 * kl).collect();
    let drawn: Vec<f64> = ([RIGHT, STYLE].into_iter())
        .map(|figure| Ok(Estimate::difference(of(DRAFTED, figure)?, of(UP, figure)?).mean.abs()))
        .collect::<Result<_>>()?;
    let claims = vec![
        Inequality::paired(
            "right values, up-scaled − large base",
            of(UP, RIGHT)?,
            of(BASE_L, RIGHT)?,
            Limit::AtLeast(-0.02),
        ),
        Inequality::paired(
            "right values, up-scaled − small tuned",
            of(UP, RIGHT)?,
            of(TUNED_S, RIGHT)?,
            Limit::AtLeast(0.3),
        ),
        Inequality::new(
            "first alphabet, how far up-scaled is from small tuned",
            Estimate::of(&apart),
            Limit::AtMost(0.03),
        ),
        Inequality::paired(
            "right values, down-scaled − small tuned",
            of(DOWN, RIGHT)?,
            of(TUNED_S, RIGHT)?,
            Limit::AtMost(0.05),
        ),
        Inequality::paired(
            "KL from large tuned, up-scaled − 0.6 × large base",
            of(UP, KL)?,
            &share,
            Limit::AtMost(0.0),
        ),
        Inequality::paired(
            "right values, up-scaled − mean of probabilities",
            of(UP, RIGHT)?,
            of(MEAN, RIGHT)?,
            Limit::AtLeast(0.1),
        ),
        Inequality::paired(
            "first alphabet, up-scaled − mean of probabilities",
            of(UP, STYLE)?,
            of(MEAN, STYLE)?,
            Limit::AtLeast(0.05),
        ),
        Inequality::new(
            "how far what is drawn with a draft is from what it should be, on average",
            Estimate::of(&drawn),
            Limit::AtMost(0.02),
        )
        .aside(),
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

/// AdamW with 50 steps of warm-up and a straight way down.
fn settings(set: &[&str], seed: u64) -> Result<Train> {
    let mut config = recipe("recipes/full/sft.toml", set)?;
    let linear = Linear { warmup_steps: 50, ..Linear::default() };
    config.update.schedule = Schedules { linear: Some(linear), ..Schedules::default() };
    config.seed = seed;
    Ok(config)
}

/// A fact: what is asked, and the number of its value.
type Fact = ([u32; 3], u32);

fn facts(seed: Seed) -> Vec<Fact> {
    let mut rng = seed.split("facts").rng();
    let pairs = (0..ENTITIES as u32).flat_map(|e| (0..RELATIONS as u32).map(move |r| (e, r)));
    pairs.map(|(e, r)| ([BOS, ENTITY + e, RELATION + r], rng.below(VALUES) as u32)).collect()
}

/// The token of a value in one of the alphabets.
fn written(value: u32, second: bool) -> u32 {
    VALUE + value + if second { VALUES as u32 } else { 0 }
}

/// Every fact in both alphabets, several times over.
fn reading(facts: &[Fact]) -> Vec<Row> {
    let both = |(asked, value): &Fact| {
        [false, true].map(|second| measure::row(asked, &[written(*value, second), EOS], 0))
    };
    (0..TIMES).flat_map(|_| facts.iter().flat_map(both)).collect()
}

/// Facts of the first entities in the first alphabet: 60 steps of 64.
fn tuning(facts: &[Fact], seed: Seed) -> Vec<Row> {
    let mut rng = seed.split("tuning").rng();
    let row = |example| {
        let (asked, value) = &facts[rng.below(TUNED * RELATIONS)];
        measure::row(asked, &[written(*value, false), EOS], example)
    };
    (0..60 * 64).map(row).collect()
}

/// The four models of a seed.
struct Nets {
    base_l: Policy,
    base_s: Policy,
    tuned_l: Policy,
    tuned_s: Policy,
}

impl Nets {
    fn measure(&self, asked: &[Fact], seed: u64, measured: &mut Measured) -> Result<()> {
        let [base_l, base_s, tuned_l, tuned_s] =
            [&self.base_l, &self.base_s, &self.tuned_l, &self.tuned_s]
                .map(|policy| next(policy, asked));
        let (base_l, base_s, tuned_l, tuned_s) = (base_l?, base_s?, tuned_l?, tuned_s?);
        let plain = Emulate::default();
        let mut twice = plain.clone();
        twice.deltas[0].beta = 2.0;
        let nucleus = Emulate { top_p: 0.9, ..plain.clone() };
        let mean = Mixture { weights: vec![1.0, 1.0], ..Mixture::default() };
        let up = combined(&plain, &[&base_l, &tuned_s, &base_s]);
        let arms = [
            (TWICE, combined(&twice, &[&base_l, &tuned_s, &base_s])),
            (NUCLEUS, combined(&nucleus, &[&base_l, &tuned_s, &base_s])),
            (DOWN, combined(&plain, &[&base_s, &tuned_l, &base_l])),
            (MEAN, combined(&mean, &[&base_l, &tuned_s])),
        ];
        let plain_arms = [(BASE_L, &base_l), (BASE_S, &base_s), (TUNED_L, &tuned_l)];
        let all = plain_arms.into_iter().chain([(TUNED_S, &tuned_s), (UP, &up)]);
        for (arm, logits) in all.chain(arms.iter().map(|(arm, logits)| (*arm, logits))) {
            let (mut style, mut right, mut kl) = (0.0, 0.0, 0.0);
            for ((logits_v, want_v), (_, value)) in logits.iter().zip(&tuned_l).zip(asked) {
                let (p, want) = (probabilities(logits_v), probabilities(want_v));
                style += p[VALUE as usize..][..VALUES].iter().sum::<f64>();
                right += [false, true].map(|s| p[written(*value, s) as usize]).iter().sum::<f64>();
                let bits = want.iter().zip(&p).filter(|(w, _)| **w > 0.0);
                kl += bits.map(|(w, p)| w * (w / p).ln()).sum::<f64>();
            }
            let n = asked.len() as f64;
            measured.add(arm, STYLE, style / n);
            measured.add(arm, RIGHT, right / n);
            if arm != NUCLEUS {
                measured.add(arm, KL, kl / n);
            }
        }
        let overlap = up.iter().zip(&tuned_s).map(|(up, drafts)| {
            let (p, q) = (probabilities(up), probabilities(drafts));
            p.iter().zip(q).map(|(p, q)| p.min(q)).sum::<f64>()
        });
        measured.add(DRAFTED, STAYS, overlap.sum::<f64>() / asked.len() as f64);
        self.draw(asked, seed, measured)
    }

    /// Draws with the decoder itself, all three models in lock step.
    fn draw(&self, asked: &[Fact], seed: u64, measured: &mut Measured) -> Result<()> {
        let sampler = Sampler { temperature: 1.0, seed, ..Sampler::default() };
        let options = Generate {
            max_new_tokens: 2,
            max_batch: 64,
            eos: vec![EOS],
            draft: Some(Draft { source: 1, tokens: 2 }),
            sampler,
            ..Generate::default()
        };
        let policies = [&self.base_l, &self.tuned_s, &self.base_s];
        let source = |policy| Box::new(PolicySource::new(policy, 64)) as Box<dyn Source>;
        let rule = Emulate::default();
        let sources = policies.into_iter().map(source).collect();
        let parts = Parts { sources, combine: &rule, constrain: vec![] };
        let prompts: Vec<Vec<u32>> = asked.iter().map(|(asked, _)| asked.to_vec()).collect();
        let all = generate_from(parts, &prompts, &options, &Silent, &mut |_, _, _| ())?;
        let share = |fits: &dyn Fn(u32, u32) -> bool| {
            let said = all.iter().zip(asked).filter(|(g, (_, value))| fits(g.tokens[0], *value));
            said.count() as f64 / asked.len() as f64
        };
        let first = |token, _| (VALUE..VALUE + VALUES as u32).contains(&token);
        let right = |token, value| [false, true].map(|s| written(value, s)).contains(&token);
        measured.add(DRAFTED, STYLE, share(&first));
        measured.add(DRAFTED, RIGHT, share(&right));
        Ok(())
    }
}

/// Logits of the value, one row for each fact.
fn next(policy: &Policy, asked: &[Fact]) -> Result<Vec<Vec<f32>>> {
    let ids_n: Vec<u32> = asked.iter().flat_map(|(asked, _)| *asked).collect();
    let rows = Arc::new(Rows::new(&vec![3; asked.len()], |_| 0));
    let all = policy.logits(&ids_n, rows)?.to_vec2::<f32>()?;
    Ok(all.into_iter().skip(2).step_by(3).collect())
}

fn combined(rule: &dyn Combine, sources: &[&Vec<Vec<f32>>]) -> Vec<Vec<f32>> {
    let of = |row: usize| {
        let all: Vec<&[f32]> = sources.iter().map(|source| source[row].as_slice()).collect();
        let mut logits_v = vec![0.0; VOCAB];
        rule.combine(&all, &mut logits_v);
        logits_v
    };
    (0..sources[0].len()).map(of).collect()
}

fn probabilities(logits_v: &[f32]) -> Vec<f64> {
    let z = log_z(logits_v);
    logits_v.iter().map(|l| (f64::from(*l) - z).exp()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_in_both_alphabets_and_tuned_in_one() {
        let facts = facts(Seed(1));
        assert_eq!((facts.len(), VOCAB), (1500, 565));
        let rows = reading(&facts);
        assert_eq!(rows.len(), 375 * 256);
        let first = |row: &Row| row.targets[2] < VALUE + VALUES as u32;
        assert_eq!(rows.iter().filter(|row| first(row)).count() * 2, rows.len());
        assert!(rows.iter().all(|row| row.weights == [0.0, 0.0, 1.0, 1.0]));
        let tuned = tuning(&facts, Seed(1));
        let known = |row: &Row| row.ids[1] < ENTITY + TUNED as u32;
        assert!(tuned.iter().all(|row| first(row) && known(row)));
        assert_ne!(facts, super::facts(Seed(2)));
    }

    #[test]
    fn trainings_differ_in_their_length_and_rate_alone() {
        let of = |set: &[&str]| settings(set, 3).unwrap();
        let (a, b) = (of(&["batch_size=64", "learning_rate=1e-3"]), of(&["batch_size=64"]));
        assert_eq!(a.update.schedule, b.update.schedule);
        assert_eq!(a.update.schedule.linear.unwrap().warmup_steps, 50);
        assert!(a.update.schedule.cosine.is_none());
    }
}
