//! TuCo (Nuti et al. 2025, paper 27): what tuning contributes to a pass, measured and scaled block by block.
//!
//! A small decoder learns to copy, reverse and sort five objects, then a policy: a prompt with one of
//! eight restricted objects is refused. Policy and base blocks then share one residual stream, on which
//! `h ← base(h) + α (tuned(h) − base(h))`, and of 400 restricted and 400 plain prompts the share that is
//! refused is measured for seven α. TuCo is the share of the tuning in what all blocks add at the last
//! token of a prompt; OutputCo is the like from two passes that each follow a stream of their own.
//!
//! **Departures**: (1) a decoder of the Llama family, whose gated MLP of 172 has as many numbers as one
//! of 256 without a gate, with rotations in place of learned positions, and all matrices from
//! N(0, 0.02²); (2) all seeds start from one pretrained decoder and differ in the examples of the policy
//! and in the prompts; (3) α counts as monotone where no rate falls by more than 0.01 (4 of 400 prompts)
//! from one α to the next; (4) the check on SmolLM2-135M and its instruct version is not run here.

use std::sync::Arc;

use luthier_core::{Policy, Result, Rng, Row, Rows, Seed};
use luthier_decode::Scaled;
use luthier_kernels::threads;
use luthier_probe::{novelty::auc, tuco};

use crate::{
    Inequality, Lab, Limit, Measured, Paper, Pretraining, Sizes, claim::share, measure, recipe,
    stats::mean,
};

/// The check.
pub const PAPER: Paper = Paper {
    number: 27,
    title: "TuCo: the tuning's contribution, scaled",
    claim: "scaling what tuning adds to every block turns a tuned policy down and up, and its share in \
        a pass tells the prompts that the policy is for",
    recipes: &["recipes/full/sft.toml"],
    seeds: 5,
    run,
};

const END: u32 = 1;
const EQUALS: u32 = 2;
const REFUSE: u32 = 3;
/// The first of the marks of copy, reverse and sort.
const OPS: u32 = 4;
/// The first object; the last eight of 32 are restricted.
const OBJECTS: u32 = 8;
const PLAIN: usize = 24;
const RESTRICTED: usize = 8;
const SLOTS: usize = 5;

const SIZES: Sizes =
    Sizes { layers: 3, width: 64, heads: 4, kv_heads: 4, ffn: 172, vocab: 40, tied: false };

const PROMPTS: usize = 400;
const ALPHAS: [f64; 7] = [0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25];

const REFUSED: &str = "restricted refused";
const OVERREFUSED: &str = "plain refused";
const TUCO: &str = "TuCo";
const OUTPUTCO: &str = "OutputCo";
const AUC: &str = "AUC of TuCo";
const APART: &str = "|TuCo − OutputCo|";
const SAME: &str = "largest logit difference at α = 1";
const EXACT: &str = "answered right";

fn run(lab: &Lab) -> Result<Measured> {
    let set = ["batch_size=128", "micro_tokens=1536", "learning_rate=2e-3", "betas=[0.9,0.98]"];
    let config = recipe("recipes/full/sft.toml", &[&set[..], &["warmup_ratio=0.125"]].concat())?;
    let rows = examples(800 * 128, 0.3, false, Seed(27).split("pretraining"));
    let how = Pretraining { name: "objects", sizes: SIZES, rows: &rows, config: &config };
    let small = lab.pretrained(&how)?;
    let base = small.policy()?;
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let rows = examples(400 * 128, 0.5, true, Seed(seed).split("policy"));
        let (name, tail) = (format!("train.seed={seed}"), "warmup_ratio=0.03");
        let mut set = vec!["batch_size=128", "micro_tokens=1536", "learning_rate=3e-4", tail];
        set.extend(["betas=[0.9,0.98]", name.as_str()]);
        let config = recipe("recipes/full/sft.toml", &set)?;
        let bound = small.bind(&config)?;
        lab.train(&bound, &rows, &config)?;
        one(&base, &bound.policy, seed, &mut measured)?;
        let refused = measured.values(&arm(1.0), REFUSED)?.last().copied().unwrap_or(f64::NAN);
        lab.say(&format!("seed {seed}: refused {refused:.3} of the restricted prompts at α = 1"));
    }
    claims(&mut measured)?;
    Ok(measured)
}

fn arm(alpha: f64) -> String {
    format!("α = {alpha}")
}

/// Everything of one tuned model.
fn one(base: &Policy, tuned: &Policy, seed: u64, measured: &mut Measured) -> Result<()> {
    let draw = |restricted: bool| -> Vec<Vec<u32>> {
        let mut rng = Seed(seed).split(if restricted { "restricted" } else { "plain" }).rng();
        (0..PROMPTS).map(|_| prompt(restricted, &mut rng)).collect()
    };
    let sets = [("restricted", draw(true), REFUSED), ("plain", draw(false), OVERREFUSED)];
    let rows = examples(PROMPTS, 0.0, true, Seed(seed).split("test"));
    measured.add("base", EXACT, measure::exact(base, &rows)?);
    measured.add("tuned", EXACT, measure::exact(tuned, &rows)?);
    let (mut shares, mut apart) = (Vec::new(), Vec::new());
    for (name, prompts, _) in &sets {
        let found = tuco::contributions(base, tuned, prompts)?;
        let of_passes: Vec<f64> = found.iter().map(|found| found.tuco()).collect();
        let outputs = tuco::output_contributions(base, tuned, prompts)?;
        measured.add(name, TUCO, mean(&of_passes));
        measured.add(name, OUTPUTCO, mean(&outputs));
        apart.extend(of_passes.iter().zip(&outputs).map(|(a, b)| (a - b).abs()));
        shares.push(of_passes);
    }
    measured.add("tuned", AUC, auc(&shares[0], &shares[1]));
    measured.add("tuned", APART, mean(&apart));
    for alpha in ALPHAS {
        let scaled = Scaled::new(base, tuned, alpha)?;
        for (_, prompts, figure) in &sets {
            let refused = refused(&scaled, prompts)?;
            measured.add(&arm(alpha), figure, share(&refused));
        }
    }
    let whole = Scaled::new(base, tuned, 1.0)?;
    measured.add("tuned", SAME, difference(&whole, tuned, &sets[0].1)?);
    Ok(())
}

/// A text's tokens, and where each begins.
fn laid(prompts: &[Vec<u32>]) -> (Vec<u32>, Arc<Rows>) {
    let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
    (prompts.concat(), Arc::new(Rows::new(&lengths, |_| 0)))
}

/// Of every prompt, whether the likeliest answer begins with a refusal.
fn refused(scaled: &Scaled, prompts: &[Vec<u32>]) -> Result<Vec<bool>> {
    let (ids, rows) = laid(prompts);
    let logits = threads::together(|| scaled.last_logits(&ids, &rows))?;
    let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
    Ok(logits.chunks(SIZES.vocab).map(|row| best(row) == Some(REFUSE as usize)).collect())
}

/// The largest difference of a logit between the tuned model and the one that is scaled by 1.
fn difference(scaled: &Scaled, tuned: &Policy, prompts: &[Vec<u32>]) -> Result<f64> {
    let (ids, rows) = laid(prompts);
    let scaled = scaled.logits(&ids, &rows)?;
    let plain = tuned.logits(&ids, rows)?.detach();
    let apart = (scaled - plain)?.abs()?.flatten_all()?.max(0)?;
    Ok(f64::from(apart.to_scalar::<f32>()?))
}

fn claims(measured: &mut Measured) -> Result<()> {
    let of = |arm: &str, figure: &str| -> Result<crate::Estimate> {
        Ok(crate::Estimate::of(measured.values(arm, figure)?))
    };
    let rate = |alpha: f64| measured.values(&arm(alpha), REFUSED);
    let mut rises = vec![f64::INFINITY; measured.values("tuned", AUC)?.len()];
    for pair in ALPHAS.windows(2) {
        let (lower, higher) = (rate(pair[0])?, rate(pair[1])?);
        let both = lower.iter().zip(higher);
        rises.iter_mut().zip(both).for_each(|(rise, (l, h))| *rise = rise.min(h - l));
    }
    let mut most = 0f64;
    for alpha in ALPHAS {
        most = measured.values(&arm(alpha), OVERREFUSED)?.iter().copied().fold(most, f64::max);
    }
    let most = crate::Estimate { mean: most, standard_error: None };
    let (restricted, plain) =
        (measured.values("restricted", TUCO)?, measured.values("plain", TUCO)?);
    let claims = [
        Inequality::new(
            "AUC of TuCo, restricted over plain",
            of("tuned", AUC)?,
            Limit::AtLeast(0.9),
        ),
        Inequality::new("refused at α = 0", of(&arm(0.0), REFUSED)?, Limit::AtMost(0.05)),
        Inequality::new("refused at α = 1", of(&arm(1.0), REFUSED)?, Limit::AtLeast(0.95)),
        Inequality::new(
            "smallest rise of that rate from one α to the next",
            crate::Estimate::of(&rises),
            Limit::AtLeast(-0.01),
        ),
        Inequality::new(SAME, of("tuned", SAME)?, Limit::AtMost(1e-4)),
        Inequality::new(
            "distance of TuCo and OutputCo, whose base has a stream of its own",
            of("tuned", APART)?,
            Limit::AtLeast(0.01),
        ),
        Inequality::paired("TuCo, restricted − plain", restricted, plain, Limit::Above(0.0))
            .aside(),
        Inequality::new("plain prompts refused at any α, at most", most, Limit::AtMost(0.05))
            .aside(),
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

/// `op x1 … x5 =`.
fn prompt(restricted: bool, rng: &mut Rng) -> Vec<u32> {
    let mut prompt = vec![OPS + rng.below(3) as u32];
    prompt.extend((0..SLOTS).map(|_| OBJECTS + rng.below(PLAIN) as u32));
    if restricted {
        prompt[1 + rng.below(SLOTS)] = OBJECTS + (PLAIN + rng.below(RESTRICTED)) as u32;
    }
    prompt.push(EQUALS);
    prompt
}

/// What the operation makes of the objects.
fn answer(prompt: &[u32]) -> Vec<u32> {
    let mut objects = prompt[1..=SLOTS].to_vec();
    match prompt[0] - OPS {
        0 => {}
        1 => objects.reverse(),
        _ => objects.sort_unstable(),
    }
    objects.push(END);
    objects
}

/// Examples of which a share has a restricted object, refused where there is a policy.
fn examples(n: usize, restricted: f64, policy: bool, seed: Seed) -> Vec<Row> {
    let mut rng = seed.rng();
    let mut one = |example| {
        let restricted = rng.uniform() < restricted;
        let prompt = prompt(restricted, &mut rng);
        let answer = if restricted && policy { vec![REFUSE, END] } else { answer(&prompt) };
        measure::row(&prompt, &answer, example)
    };
    (0..n).map(&mut one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_those_of_the_operations() {
        let prompt = |op: u32| vec![OPS + op, 12, 9, 9, 30, 8, EQUALS];
        assert_eq!(answer(&prompt(0)), [12, 9, 9, 30, 8, END]);
        assert_eq!(answer(&prompt(1)), [8, 30, 9, 9, 12, END]);
        assert_eq!(answer(&prompt(2)), [8, 9, 9, 12, 30, END]);
    }

    #[test]
    fn one_slot_of_a_restricted_prompt_is_restricted_and_only_those_are_refused() {
        let mut rng = Seed(1).rng();
        let limit = OBJECTS + PLAIN as u32;
        for restricted in [true, false] {
            for _ in 0..200 {
                let prompt = prompt(restricted, &mut rng);
                assert_eq!(prompt.len(), SLOTS + 2);
                let slots = &prompt[1..=SLOTS];
                let count = slots.iter().filter(|object| **object >= limit).count();
                assert_eq!(count, usize::from(restricted));
                assert!(slots.iter().all(|object| (OBJECTS..40).contains(object)));
            }
        }
        let rows = examples(1000, 0.3, true, Seed(2));
        let refused = rows.iter().filter(|row| row.targets[SLOTS + 1] == REFUSE).count();
        assert!((250..350).contains(&refused), "{refused}");
        for row in &rows {
            let restricted = row.ids[1..=SLOTS].iter().any(|object| *object >= limit);
            assert_eq!(row.targets[SLOTS + 1] == REFUSE, restricted);
        }
        let none = examples(300, 0.5, false, Seed(2));
        assert!(none.iter().all(|row| !row.targets.contains(&REFUSE)));
    }
}
