//! Instruction-phrasing robustness (Sun et al. 2024, paper 20): answers depend on words that ought not
//! to matter, and a soft prompt trained to make phrasings agree takes some of that away.
//!
//! A small decoder is tuned on six tasks in eight phrasings each, negated and not. Probe: eight other
//! phrasings per task, by the label with the largest product of token probabilities. Arms: ten virtual
//! tokens in front of the frozen model, trained on further phrasings, none of them among the eight:
//! `λ·KL(P_ref ‖ P_para)` with λ = 0.8 beside the answers, or the answers alone (λ = 0).
//!
//! **Departures**: (1) the model is made for this: instructions are fillers and words of the task, and
//! half of these words occur, before the eight, only in texts without instructions that stand for
//! pretraining; (2) tasks on digits, and tasks on letters, share the distribution of their inputs, so
//! that the instruction must be read; (3) negations are part of the tuning data, where else would the
//! model know them from; (4) 100 items a task instead of 200; (5) three of five instructions of the tuning
//! data come behind some words: a first look at one seed, without them and with all arms, is among the
//! notes; (6) the learning rate is the recipe's: none was sought on held-out paraphrases.

use luthier_core::{Policy, Result, Row, Seed};
use luthier_probe::phrasing::{self, Item, PhrasingReport, Robustness, Scoring, Task};
use luthier_train::Train;

use crate::{Inequality, Lab, Limit, Measured, Paper, Pretraining, Sizes, Small, recipe};

mod tasks;
mod templates;

use tasks::{Instance, TASKS};
use templates::{Template, VOCAB};

/// The check.
pub const PAPER: Paper = Paper {
    number: 20,
    title: "InstructionEval: robustness to phrasing, and soft-prompt alignment",
    claim: "a tuned model does worse, and less evenly, in phrasings that it was not tuned on; a soft \
        prompt trained to give paraphrases the distributions of known phrasings takes much of the gap \
        away, more than one that is trained on the paraphrases alone",
    recipes: &["recipes/adapter/align.toml", "recipes/full/sft.toml"],
    seeds: 3,
    run,
};

const SIZES: Sizes =
    Sizes { layers: 4, width: 64, heads: 4, kv_heads: 4, ffn: 160, vocab: VOCAB, tied: false };
/// Instructions that the model is tuned on, and texts between them.
const TUNING: usize = 24_000;
const TEXTS: usize = 6_000;
/// Share of negated instructions.
const NEGATED: f64 = 0.25;
/// Phrasings of a task that are probed, and further ones that a prefix is trained on: five for each
/// observed one.
const PROBED: usize = 8;
const PARAPHRASES: usize = 40;
const ITEMS: usize = 100;
/// Pairs of a run: 400 steps of 16.
const PAIRS: usize = 6_400;

/// The setting before this one, in case somebody thinks of it again.
const TRIED: &str = "tried before: no words in front of the instructions of the tuning data, one seed: \
    observed 1.000, gap 0.075; with λ = 0.8 observed 0.639, gap -0.022, with λ = 0 observed 0.990, gap \
    0.076; as the model had never read anything in front of an instruction, some instructions were put \
    behind other words, which was decided with these figures known";

const BEFORE: &str = "tuned";
const ALIGNED: &str = "prefix, λ = 0.8";
const PLAIN: &str = "prefix, λ = 0";
const OBSERVED: &str = "observed";
const UNOBSERVED: &str = "unobserved";
const GAP: &str = "gap";
const SPREAD_OBSERVED: &str = "deviation, observed";
const SPREAD: &str = "deviation, unobserved";
const WORST: &str = "worst phrasing";
const NEGATION: &str = "negated";

fn run(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let (base, phrasings) = (tuned(lab, seed)?, Phrasings::new(Seed(seed)));
        add(lab, &mut measured, BEFORE, seed, &phrasings.probe(&base.policy()?)?);
        for arm in [ALIGNED, PLAIN] {
            let config = settings(arm, seed)?;
            let bound = base.bind(&config)?;
            let rows = phrasings.pairs(bound.policy.hooks.virtual_tokens);
            lab.train(&bound, &rows, &config)?;
            add(lab, &mut measured, arm, seed, &phrasings.probe(&bound.policy)?);
        }
    }
    claims(&mut measured)?;
    measured.note(TRIED);
    Ok(measured)
}

fn add(lab: &Lab, measured: &mut Measured, arm: &str, seed: u64, report: &PhrasingReport) {
    let Robustness { observed, unobserved, gap, worst, controls } = &report.all;
    measured.add(arm, OBSERVED, observed.mean);
    measured.add(arm, UNOBSERVED, unobserved.mean);
    measured.add(arm, GAP, *gap);
    measured.add(arm, SPREAD_OBSERVED, observed.deviation);
    measured.add(arm, SPREAD, unobserved.deviation);
    measured.add(arm, WORST, *worst);
    for (kind, spread) in controls {
        measured.add(arm, kind, spread.mean);
    }
    let [low, high] = report.gap_ci95;
    lab.say(&format!(
        "seed {seed}, {arm}: observed {:.3} ± {:.3}, unobserved {:.3} ± {:.3}, gap {low:.3} to {high:.3}",
        observed.mean, observed.deviation, unobserved.mean, unobserved.deviation
    ));
}

fn claims(measured: &mut Measured) -> Result<()> {
    let of = |arm, figure| measured.values(arm, figure);
    let times = |values: &[f64], by: f64| values.iter().map(|v| by * v).collect::<Vec<f64>>();
    let (gap, spread) = (of(BEFORE, GAP)?, of(BEFORE, SPREAD)?);
    let none = vec![0.0; gap.len()];
    let moved = of(ALIGNED, OBSERVED)?.iter().zip(of(BEFORE, OBSERVED)?);
    let moved: Vec<f64> = moved.map(|(after, before)| (after - before).abs()).collect();
    let at_least = |what: &str, of: &[f64], minus: &[f64], limit| {
        Inequality::paired(what, of, minus, Limit::AtLeast(limit))
    };
    let above = |what: &str, of: &[f64], minus: &[f64]| {
        Inequality::paired(what, of, minus, Limit::Above(0.0))
    };
    let claims = [
        at_least("accuracy before, observed − unobserved", gap, &none, 0.05),
        at_least(
            "deviation before, unobserved − 1.5 × observed",
            spread,
            &times(of(BEFORE, SPREAD_OBSERVED)?, 1.5),
            0.0,
        ),
        at_least("0.7 × gap before − gap with λ = 0.8", &times(gap, 0.7), of(ALIGNED, GAP)?, 0.0),
        above("deviation, unobserved, before − with λ = 0.8", spread, of(ALIGNED, SPREAD)?),
        above("gap with λ = 0 − gap with λ = 0.8", of(PLAIN, GAP)?, of(ALIGNED, GAP)?),
        Inequality::paired(
            "change of the observed phrasings' accuracy with λ = 0.8",
            &moved,
            &none,
            Limit::AtMost(0.02),
        ),
        at_least(
            "half of the observed accuracy − that of negated instructions, λ = 0.8",
            &times(of(ALIGNED, OBSERVED)?, 0.5),
            of(ALIGNED, NEGATION)?,
            0.0,
        ),
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

/// A decoder tuned on the observed phrasings.
fn tuned(lab: &Lab, seed: u64) -> Result<Small> {
    let set = ["batch_size=64", "micro_tokens=1024", "epochs=5", "learning_rate=2e-3"];
    let mut config = recipe("recipes/full/sft.toml", &set)?;
    config.seed = seed;
    let rows = tuning_rows(Seed(seed));
    let name = format!("instructions, seed {seed}");
    lab.pretrained(&Pretraining { name: &name, sizes: SIZES, rows: &rows, config: &config })
}

fn tuning_rows(seed: Seed) -> Vec<Row> {
    let mut rng = seed.split("tuning").rng();
    let observed: Vec<Vec<Template>> = (0..TASKS.len()).map(Template::observed).collect();
    let mut row = |example| {
        let task = rng.below(TASKS.len());
        let instance = Instance::new(task, &mut rng);
        let template = &observed[task][rng.below(observed[task].len())];
        let negated = rng.uniform() < NEGATED;
        let before = templates::words(&mut rng);
        template.row_behind(&before, &instance, negated, example)
    };
    let mut rows: Vec<Row> = (0..TUNING).map(&mut row).collect();
    let mut rng = seed.split("texts").rng();
    rows.extend((0..TEXTS).map(|_| templates::text(rng.below(TASKS.len()), &mut rng)));
    rows
}

/// The training settings of an arm.
fn settings(arm: &str, seed: u64) -> Result<Train> {
    let lambda = if arm == PLAIN { "lambda_kl=0.0" } else { "lambda_kl=0.8" };
    let set = ["batch_size=16", "micro_tokens=2048", "epochs=1", "learning_rate=3e-2", lambda];
    let mut config = recipe("recipes/adapter/align.toml", &set)?;
    config.seed = seed;
    Ok(config)
}

/// What a seed draws: phrasings of every task, and what is asked in them.
struct Phrasings {
    seed: Seed,
    probed: Vec<Vec<Template>>,
    paraphrases: Vec<Vec<Template>>,
    /// The instances of every task.
    items: Vec<Vec<Asked>>,
}

/// An instance with its labels and the place of the right one.
type Asked = (Instance, Vec<Vec<u32>>, usize);

impl Phrasings {
    fn new(seed: Seed) -> Self {
        let mut phrasings =
            Phrasings { seed, probed: Vec::new(), paraphrases: Vec::new(), items: Vec::new() };
        let mut rng = seed.split("phrasings").rng();
        for task in 0..TASKS.len() {
            let mut others: Vec<Template> = Vec::new();
            while others.len() < PROBED + PARAPHRASES {
                let other = Template::other(task, &mut rng);
                if !others.iter().any(|known| known.says(&other)) {
                    others.push(other);
                }
            }
            phrasings.paraphrases.push(others.split_off(PROBED));
            phrasings.probed.push(others);
            let mut item = || {
                let instance = Instance::new(task, &mut rng);
                let (labels, answer) = instance.labels(&mut rng);
                (instance, labels, answer)
            };
            phrasings.items.push((0..ITEMS).map(|_| item()).collect());
        }
        phrasings
    }

    /// Accuracies over phrasings: observed ones, others, and observed ones negated.
    fn probe(&self, policy: &Policy) -> Result<PhrasingReport> {
        let accuracy = |task: usize, template: &Template, negated: bool| -> Result<f64> {
            let item = |(instance, labels, answer): &Asked| Item {
                prompt: template.prompt(&instance.input, negated),
                labels: labels.clone(),
                answer: *answer,
            };
            let items: Vec<Item> = self.items[task].iter().map(item).collect();
            Ok(phrasing::answers(policy, &items, Scoring::PrefixProduct)?.accuracy)
        };
        let task = |(task, name): (usize, &&str)| -> Result<Task> {
            let observed = Template::observed(task);
            let all = |templates: &[Template], negated: bool| -> Result<Vec<f64>> {
                templates.iter().map(|template| accuracy(task, template, negated)).collect()
            };
            Ok(Task {
                name: name.to_string(),
                observed: all(&observed, false)?,
                unobserved: all(&self.probed[task], false)?,
                controls: [(NEGATION.to_string(), all(&observed, true)?)].into(),
            })
        };
        let tasks: Vec<Task> = TASKS.iter().enumerate().map(task).collect::<Result<_>>()?;
        PhrasingReport::of(&tasks, &PhrasingReport::BOOTSTRAP)
    }

    /// Pairs of rows behind placeholders: an instance in an observed phrasing, then in another.
    fn pairs(&self, placeholders: usize) -> Vec<Row> {
        let mut rng = self.seed.split("pairs").rng();
        let mut rows = Vec::with_capacity(2 * PAIRS);
        for example in 0..PAIRS {
            let task = rng.below(TASKS.len());
            let instance = Instance::new(task, &mut rng);
            let reference = &Template::observed(task)[rng.below(PROBED)];
            let paraphrase = &self.paraphrases[task][rng.below(PARAPHRASES)];
            for template in [reference, paraphrase] {
                rows.push(template.row(&instance, false, example).behind(placeholders));
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_probed_phrasing_is_one_that_anything_is_trained_on() {
        let phrasings = Phrasings::new(Seed(1));
        let blank = [0; 3];
        for task in 0..TASKS.len() {
            let said = |templates: &[Template]| -> BTreeSet<Vec<u32>> {
                templates.iter().map(|template| template.prompt(&blank, false)).collect()
            };
            let (observed, probed) =
                (said(&Template::observed(task)), said(&phrasings.probed[task]));
            let paraphrases = said(&phrasings.paraphrases[task]);
            assert_eq!((probed.len(), paraphrases.len()), (PROBED, PARAPHRASES));
            assert!(probed.is_disjoint(&observed) && probed.is_disjoint(&paraphrases));
        }
        assert_ne!(phrasings.probed, Phrasings::new(Seed(2)).probed);
    }

    #[test]
    fn both_rows_of_a_pair_have_one_answer_behind_ten_placeholders() {
        let config = settings(ALIGNED, 1).unwrap();
        let small = Small::random(SIZES, Seed(1)).unwrap();
        let bound = small.bind(&config).unwrap();
        // n·d numbers.
        assert_eq!(bound.count(), 10 * SIZES.width as u64);
        let rows = Phrasings::new(Seed(1)).pairs(bound.policy.hooks.virtual_tokens);
        let told = |row: &Row| -> Vec<u32> {
            let all = row.targets.iter().zip(&row.weights);
            all.filter(|(_, w)| **w > 0.0).map(|(t, _)| *t).collect()
        };
        assert_eq!(rows.len(), 2 * PAIRS);
        for pair in rows.chunks(2) {
            assert_eq!((told(&pair[0]), pair[0].example), (told(&pair[1]), pair[1].example));
            assert!(pair.iter().all(|row| row.ids[..10] == [0; 10] && row.trained() > 0));
        }
    }

    #[test]
    fn arms_differ_in_the_share_of_agreement_and_in_nothing_else() {
        let (aligned, plain) = (settings(ALIGNED, 4).unwrap(), settings(PLAIN, 4).unwrap());
        let share = |config: &Train| config.loss.align.as_ref().unwrap().lambda_kl;
        assert_eq!((share(&aligned), share(&plain)), (0.8, 0.0));
        let mut same = plain;
        same.loss.align.as_mut().unwrap().lambda_kl = 0.8;
        assert_eq!(same, aligned);
    }
}
