//! Per-step DPO (Setlur et al. 2024, paper 55): learning from one's own wrong solutions, at the step where
//! they go wrong.
//!
//! Running sums (`zoo::sums`): a small decoder learns 400 solutions and stops when it is right in 30 to
//! 80 % of draws at temperature 0.7. It then draws 8 solutions each to new problems of which only the
//! final sums are known, and five more after every prefix of the wrong ones. Arms, all from that
//! decoder, all with 300 steps of 64: SFT on its own right solutions beside the first ones (RFT); DPO on
//! whole right against whole wrong solutions; DPO on a right continuation against the first step after
//! which none of five is right; the same at a random step. Pairs are made by `luthier_data`'s
//! `step_pairs`, with the settings of its recipe. Measured on 600 other problems, by final sums: right
//! at temperature 0.7, and greedily; and with fewer problems, how many RFT needs for what per-step DPO
//! has of 75.
//!
//! **Departures**: (1) all weights learn, in place of the recipe's LoRA, with its schedule (linear,
//! warm-up 0.1), which the paper's check does not name; (2) up to four right solutions to a problem that
//! differ are kept for RFT, without a measure of how much they differ; (3) of a problem's wrong
//! solutions only as many are looked at as pairs are made of it, four; (4) the variant with planted
//! steps that only look harmless is not run.

use std::collections::BTreeSet;

use luthier_core::{Error, Example, Result, Row, Seed};
use luthier_data::{
    Kind,
    solution::{
        PitRule,
        step_pairs::{PairForm, Paired, StepPairs},
    },
};
use luthier_params::{Bound, Full, Params};
use luthier_recipe::{Recipe, methods::RECIPES};
use luthier_train::{Train, evaluate::refer};
use luthier_update::schedule::{Constant, Schedules};
use serde_json::json;

use crate::{
    Estimate, Inequality, Lab, Limit, Measured, Paper, Sizes, Small, recipe,
    zoo::sums::{self, Problem},
};

/// The check.
pub const PAPER: Paper = Paper {
    number: 55,
    title: "per-step DPO",
    claim: "a right continuation against the first fatal step of one's own wrong solutions teaches \
        more than right solutions do, and whole wrong against whole right solutions teach less",
    recipes: &[PAIRS, SFT],
    seeds: 3,
    run,
};

const PAIRS: &str = "recipes/steps/dpo.toml";
const SFT: &str = "recipes/full/sft.toml";

const SIZES: Sizes = Sizes {
    layers: 2,
    width: 64,
    heads: 4,
    kv_heads: 4,
    ffn: 256,
    vocab: sums::VOCAB,
    tied: false,
};

/// Problems with solutions, those with final sums alone, and those that measure.
const PROBLEMS: [usize; 3] = [400, 600, 600];
/// With how many of the new problems arms are run.
const FEWER: [usize; 4] = [75, 150, 300, 600];
const SAMPLES: usize = 8;
const TEMPERATURE: f32 = 0.7;
/// Tokens of a solution at most: a model may say more than it should.
const LONGEST: usize = sums::STEPS + 3;
/// Right solutions to a problem that RFT keeps.
const KEPT: usize = 4;

const BEFORE: &str = "SFT (the start)";
const RFT: &str = "RFT";
const WHOLE: &str = "DPO on whole solutions";
const STEP: &str = "per-step DPO";
const RANDOM: &str = "DPO at a random step";

const SAMPLED: &str = "right at 0.7";
const GREEDY: &str = "right, greedily";
const WITHOUT: &str = "problems without a pair";

fn run(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for number in lab.seeds() {
        one(lab, number, &mut measured)?;
    }
    claims(&mut measured)?;
    Ok(measured)
}

fn one(lab: &Lab, number: u64, measured: &mut Measured) -> Result<()> {
    let seed = Seed(number).split("sums");
    let [known, new, exam] = [("known", 0), ("new", 1), ("exam", 2)]
        .map(|(name, i)| sums::problems(PROBLEMS[i], seed.split(name)));
    let first = sums::clean_rows(&known)?;
    let start = start(lab, &first, number)?;
    let score = |bound: &Bound| -> Result<[f64; 2]> {
        let of = |t| sums::accuracy(&bound.policy, &exam, t, LONGEST, number);
        Ok([of(TEMPERATURE)?, of(0.0)?])
    };
    let mut add = |arm: &str, [sampled, greedy]: [f64; 2]| {
        measured.add(arm, SAMPLED, sampled);
        measured.add(arm, GREEDY, greedy);
        lab.say(&format!("seed {number}, {arm}: {sampled:.3} at 0.7, {greedy:.3} greedily"));
    };
    add(BEFORE, score(&start.bind(&settings(RFT, number)?)?)?);
    let written = written(&start, &new, number)?;
    let mut shares = Vec::new();
    for arm in [WHOLE, RANDOM] {
        let (pairs, _) = pairs(arm, &written, number)?;
        add(arm, score(&preferred(lab, &start, &pairs, arm, number)?)?);
    }
    for n in FEWER {
        let name = |arm: &str| match n == PROBLEMS[1] {
            true => arm.to_string(),
            false => format!("{arm}, {n} problems"),
        };
        let rows = [first.clone(), own(&written[..n])?].concat();
        let config = settings(RFT, number)?;
        let bound = start.bind(&config)?;
        lab.train(&bound, &rows, &config)?;
        add(&name(RFT), score(&bound)?);
        // Between them nothing is claimed of this arm.
        if n == FEWER[0] || n == PROBLEMS[1] {
            let (pairs, report) = pairs(STEP, &written[..n], number)?;
            add(&name(STEP), score(&preferred(lab, &start, &pairs, STEP, number)?)?);
            shares.push((name(STEP), without(&report)));
        }
    }
    for (arm, share) in shares {
        measured.add(&arm, WITHOUT, share);
    }
    Ok(())
}

/// The share of problems that give no pair.
fn without(report: &Paired) -> f64 {
    let without = report.all_right + report.all_wrong + report.no_chosen;
    without as f64 / report.problems as f64
}

/// The training settings of an arm.
fn settings(arm: &str, seed: u64) -> Result<Train> {
    let mut set = vec!["batch_size=64", "micro_tokens=2048", "epochs=1000", "max_steps=300"];
    let mut config = match arm {
        RFT => {
            set.push("learning_rate=5e-4");
            recipe(SFT, &set)?
        }
        _ => {
            set.extend(["learning_rate=2e-4", "beta=0.1"]);
            let config = recipe(PAIRS, &set)?;
            Train { params: Params { full: Some(Full::default()), ..Params::default() }, ..config }
        }
    };
    config.seed = seed;
    Ok(config)
}

/// How the first solutions are learned, for so many steps.
fn learning(steps: u64, seed: u64) -> Result<Train> {
    let steps = format!("max_steps={steps}");
    let set = ["batch_size=64", "micro_tokens=2048", "epochs=1000", "learning_rate=1e-3", &steps];
    let mut config = recipe(SFT, &set)?;
    // A longer run begins as a shorter one does.
    config.update.schedule =
        Schedules { constant: Some(Constant::default()), ..Schedules::default() };
    config.seed = seed;
    Ok(config)
}

/// A decoder that is neither sure of everything nor lost: the first of every tenth step.
fn start(lab: &Lab, rows: &[Row], seed: u64) -> Result<Small> {
    let watched = sums::problems(300, Seed(seed).split("watched"));
    let blank = Small::random(SIZES, Seed(seed).split("weights"))?;
    for steps in (100..=2000).step_by(10) {
        let config = learning(steps, seed)?;
        let bound = blank.bind(&config)?;
        lab.train(&bound, rows, &config)?;
        let right = sums::accuracy(&bound.policy, &watched, TEMPERATURE, LONGEST, seed)?;
        if right >= 0.3 {
            lab.say(&format!("seed {seed}: stopped after {steps} steps at {right:.3}"));
            return blank.tuned(&bound);
        }
    }
    Err(Error::failed("running sums", "2000 steps teach too little to draw solutions from"))
}

/// What `start` writes to each problem, with rewards, and with continuations of what is wrong.
fn written(start: &Small, problems: &[Problem], seed: u64) -> Result<Vec<Vec<Example>>> {
    let policy = start.policy()?;
    let prompts: Vec<Vec<u32>> =
        problems.iter().flat_map(|p| std::iter::repeat_n(sums::prompt(p), SAMPLES)).collect();
    let said = sums::said(&policy, &prompts, TEMPERATURE, LONGEST, seed)?;
    let step = step_pairs()?;
    let reward = |p: &Problem, said: &[u32]| u8::from(sums::right(p, said));
    let mut all: Vec<Vec<Example>> = Vec::with_capacity(problems.len());
    // Which example each prefix belongs to, and the prefix.
    let mut prefixes: Vec<([usize; 2], Vec<u32>)> = Vec::new();
    for (i, (p, said)) in problems.iter().zip(said.chunks(SAMPLES)).enumerate() {
        let ended: Vec<&Vec<u32>> = said.iter().flatten().filter(|s| !s.is_empty()).collect();
        let wholes: Vec<_> = ended
            .iter()
            .map(|said| json!({"text": sums::text(said), "reward": reward(p, said)}))
            .collect();
        let mut of_one: Vec<Example> = Vec::new();
        let mut wrong = 0;
        for said in ended {
            let mut example = sums::example(p, said, i * SAMPLES + of_one.len());
            let right = reward(p, said);
            example.columns.insert("reward".into(), json!(right));
            if right == 0 {
                wrong += 1;
                if wrong > step.max_pairs_per_problem {
                    continue;
                }
                example.columns.insert("rollouts".into(), json!([wholes]));
                for n in 1..said.len() {
                    prefixes.push(([i, of_one.len()], said[..n].to_vec()));
                }
            }
            of_one.push(example);
        }
        all.push(of_one);
    }
    let prompts: Vec<Vec<u32>> = prefixes
        .iter()
        .flat_map(|([i, _], prefix)| {
            let prompt = [&sums::prompt(&problems[*i])[..], prefix].concat();
            std::iter::repeat_n(prompt, step.k)
        })
        .collect();
    let tries = sums::said(&policy, &prompts, TEMPERATURE, LONGEST, seed + 1000)?;
    for (([i, j], prefix), tries) in prefixes.iter().zip(tries.chunks(step.k)) {
        let one = |said: &Option<Vec<u32>>| {
            let said = said.as_deref().unwrap_or_default();
            let whole = [prefix, said].concat();
            // What never ended, or ended at once, reached nothing.
            let right = if said.is_empty() { 0 } else { reward(&problems[*i], &whole) };
            json!({"text": sums::text(said), "reward": right})
        };
        let tries: Vec<_> = tries.iter().map(one).collect();
        let column = all[*i][*j].columns.get_mut("rollouts").and_then(|v| v.as_array_mut());
        column.into_iter().for_each(|lists| lists.push(json!(tries)));
    }
    Ok(all)
}

/// The recipe's own step.
fn step_pairs() -> Result<StepPairs> {
    let text = RECIPES.iter().find(|(path, _)| *path == PAIRS).map(|(_, text)| *text);
    let recipe = Recipe::parse(text.unwrap_or_default(), PAIRS)?;
    let found = recipe.data.steps.into_iter().find_map(|step| match step {
        Kind::StepPairs(step) => Some(step),
        _ => None,
    });
    found.ok_or_else(|| Error::failed(PAIRS, "has no step_pairs"))
}

/// An arm's pairs.
fn pairs(arm: &str, written: &[Vec<Example>], seed: u64) -> Result<(Vec<Row>, Paired)> {
    let mut step = step_pairs()?;
    match arm {
        WHOLE => step.pair_form = PairForm::Full,
        RANDOM => step.pit_rule = PitRule::Random,
        _ => {}
    }
    let table = sums::table(written.concat());
    let (pairs, report) = step.pairs(&table, Seed(seed).split("pairs"))?;
    Ok((sums::all_rows(&pairs)?, report))
}

/// The right solutions of the model itself, up to four different ones to a problem.
fn own(written: &[Vec<Example>]) -> Result<Vec<Row>> {
    let mut kept = Vec::new();
    for examples in written {
        let mut known = BTreeSet::new();
        let right = examples.iter().filter(|e| e.columns.get("reward") == Some(&json!(1)));
        kept.extend(
            right.filter(|e| known.insert(e.completions[0].text().to_string())).take(KEPT).cloned(),
        );
    }
    sums::all_rows(&kept)
}

/// `start` after DPO on pairs, with itself as the reference.
fn preferred(lab: &Lab, start: &Small, pairs: &[Row], arm: &str, seed: u64) -> Result<Bound> {
    let config = settings(arm, seed)?;
    let bound = start.bind(&config)?;
    let mut rows = pairs.to_vec();
    refer(&bound.policy, &mut rows, 4096)?;
    lab.train(&bound, &rows, &config)?;
    Ok(bound)
}

fn claims(measured: &mut Measured) -> Result<()> {
    let of = |arm: &str, figure: &str| measured.values(arm, figure);
    let pair = |one: &str, other: &str, figure: &str, limit: Limit| -> Result<Inequality> {
        let what = format!("{figure}, {one} − {other}");
        Ok(Inequality::paired(what, of(one, figure)?, of(other, figure)?, limit))
    };
    // Problems that RFT needs for what per-step DPO has of the fewest; twice as many as there are where
    // none are enough.
    let wanted = of(&format!("{STEP}, {} problems", FEWER[0]), SAMPLED)?;
    let mut times = Vec::new();
    for (i, wanted) in wanted.iter().enumerate() {
        let mut needs = 2 * FEWER[FEWER.len() - 1];
        for n in FEWER.into_iter().rev() {
            let arm =
                if n == PROBLEMS[1] { RFT.to_string() } else { format!("{RFT}, {n} problems") };
            if of(&arm, SAMPLED)?[i] >= *wanted {
                needs = n;
            }
        }
        times.push(needs as f64 / FEWER[0] as f64);
    }
    let claims = [
        pair(STEP, BEFORE, SAMPLED, Limit::AtLeast(0.1))?,
        pair(STEP, BEFORE, GREEDY, Limit::AtLeast(-0.03))?,
        pair(STEP, WHOLE, SAMPLED, Limit::AtLeast(0.1))?,
        pair(STEP, RANDOM, SAMPLED, Limit::Above(0.0))?,
        pair(RANDOM, WHOLE, SAMPLED, Limit::Above(0.0))?,
        Inequality::new(
            format!("problems that {RFT} needs for what {STEP} has of {}, times", FEWER[0]),
            Estimate::of(&times),
            Limit::AtLeast(2.0),
        ),
        pair(STEP, RFT, SAMPLED, Limit::Above(0.0))?.aside(),
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_differ_in_their_pairs_and_in_nothing_else() {
        let dpo = settings(STEP, 3).unwrap();
        for arm in [WHOLE, RANDOM] {
            assert_eq!(settings(arm, 3).unwrap(), dpo);
        }
        let rft = settings(RFT, 3).unwrap();
        assert_eq!((dpo.max_steps, dpo.batch_size, dpo.seed), (Some(300), Some(64), 3));
        assert_eq!((rft.max_steps, rft.batch_size, rft.seed), (Some(300), Some(64), 3));
        assert_eq!((dpo.params.clone(), dpo.loss.dpo.clone().unwrap().beta), (rft.params, 0.1));
        let step = step_pairs().unwrap();
        assert_eq!((step.k, step.max_pairs_per_problem, step.neg_per_problem), (5, 4, 8));
        assert_eq!(learning(40, 1).unwrap().update, learning(80, 1).unwrap().update);
    }

    #[test]
    fn a_pair_is_read_up_to_the_fatal_step() {
        let p = [3, 1, 4, 1, 5, 9];
        let mut wrong = sums::example(&p, &[4, 8, 0, 5, 4], 0);
        let said = |said: &[u32], reward: u8| json!({"text": sums::text(said), "reward": reward});
        let lists = json!([
            [said(&[4, 8, 9, 4, 3], 1)],
            [said(&[8, 9, 4, 3], 1)],
            [said(&[9, 4, 3], 1), said(&[0, 5, 4], 0)],
            [said(&[5, 4], 0)],
        ]);
        wrong.columns.insert("reward".into(), json!(0));
        wrong.columns.insert("rollouts".into(), lists);
        let (rows, report) = pairs(STEP, &[vec![wrong.clone()]], 1).unwrap();
        assert_eq!((rows.len(), report.pairs, report.problems), (2, 1, 1));
        let learned = |row: &Row| -> Vec<u32> {
            let of = row.targets.iter().zip(&row.weights);
            of.filter(|(_, w)| **w != 0.0).map(|(t, _)| *t).collect()
        };
        assert_eq!(learned(&rows[0]), [9, 4, 3, sums::END]);
        assert_eq!(learned(&rows[1]), [0]);
        assert_eq!(rows[0].ids[..9], rows[1].ids[..9]);
        let (rows, _) = pairs(WHOLE, &[vec![wrong]], 1).unwrap();
        assert_eq!(learned(&rows[1]), [4, 8, 0, 5, 4, sums::END]);
    }
}
