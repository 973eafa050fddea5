//! Implicit instruction tuning (Hewitt et al. 2024, paper 45): what little makes a pretrained model answer.
//!
//! A decoder reads documents `BOS U question S second third` in which the second part is the answer to the
//! question in 15 % of them and another question otherwise, so that it knows answers and hardly gives
//! any. A question is `Q op a b` (the first, the second or the larger of two digits), an answer `A v EOS`.
//! Arms: instruction tuning; response tuning (the prompt is `BOS U S`); tuning on the larger digit alone;
//! and three rules in place of tuning, all of them and one left out at a time. Success: the greedy answer
//! to one of 400 questions is right to its end. Probe: the share of comparisons that the true answer wins
//! against another question's, before any tuning. Control: a decoder whose documents have the answers to
//! other questions.
//!
//! **Departures**: (1) there are the three operations of the spec's set-up and no fourth that is never
//! learned, so the ceiling is 1, not 0.77; (2) one decoder of each kind, pretrained once; seeds differ in
//! the rows and the order of tuning, in the test questions and in the answers that are compared; (3) "at
//! chance" is 0.2 of the answers, as 0.1 is what one digit for all would get.

use luthier_core::{Policy, Result, Row, Seed};
use luthier_decode::{
    Constrain, Generate, Parts, Sampler,
    combine::Identity,
    constrain::{LogitBias, RisingEnd, Seen},
    generate_from,
    sources::PolicySource,
};
use luthier_recipe::evaluate::{Pair, ranking};
use luthier_train::Train;

use crate::{
    Inequality, Lab, Limit, Measured, Paper, Pretraining, Sizes, Small,
    measure::{self, Silent},
    recipe,
};

/// The check.
pub const PAPER: Paper = Paper {
    number: 45,
    title: "implicit instruction tuning",
    claim: "tuning on answers without questions, on one task, or three rules without tuning make a \
        pretrained model answer, if it ranks true answers above others",
    recipes: &["recipes/full/sft.toml", "recipes/full/response.toml"],
    seeds: 3,
    run,
};

const BOS: u32 = 0;
const USER: u32 = 1;
const SAYS: u32 = 2;
const QUESTION: u32 = 3;
const ANSWER: u32 = 4;
const EOS: u32 = 5;
const OPERATIONS: u32 = 6;
const DIGITS: u32 = 9;
const LARGER: u32 = 2;

const SIZES: Sizes =
    Sizes { layers: 2, width: 64, heads: 4, kv_heads: 4, ffn: 172, vocab: 19, tied: false };

/// Documents of an epoch; four epochs of 500 steps of 128.
const DOCUMENTS: usize = 64_000;
/// Of how many documents the second part answers.
const ANSWERED: f64 = 0.15;
const TESTS: usize = 400;
const NEGATIVES: usize = 5;

const BASE: &str = "base";
const INSTRUCTION: &str = "instruction tuning";
const RESPONSE: &str = "response tuning";
const SINGLE: &str = "one task";
const RULES: &str = "three rules";
const NO_SHIFT: &str = "rules without the shift";
const NO_END: &str = "rules without the rising end";
const NO_SEEN: &str = "rules without repetition";
const CONTROL: &str = "control, base";
const CONTROL_RESPONSE: &str = "control, response tuning";
const CONTROL_RULES: &str = "control, three rules";

const RIGHT: &str = "right";
const FORM: &str = "an answer at all";
const SAMPLED: &str = "right when sampled";
const RANKED: &str = "ranking";

fn run(lab: &Lab) -> Result<Measured> {
    let set = ["batch_size=128", "micro_tokens=1024", "epochs=4", "learning_rate=2e-3"];
    let config = recipe("recipes/full/sft.toml", &set)?;
    let read = |name, linked| {
        let rows = documents(linked);
        lab.pretrained(&Pretraining { name, sizes: SIZES, rows: &rows, config: &config })
    };
    let (base, control) = (read("questions and answers", true)?, read("unlinked answers", false)?);
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let tests = Tests::new(Seed(seed));
        let mut arm = |name: &str, policy: &Policy, rules: Rules, sampled: bool| -> Result<()> {
            let (right, form) = tests.right(policy, rules, 0.0)?;
            measured.add(name, RIGHT, right);
            measured.add(name, FORM, form);
            if sampled {
                measured.add(name, SAMPLED, tests.right(policy, rules, 1.0)?.0);
            }
            Ok(())
        };
        for (name, model) in [(BASE, &base), (CONTROL, &control)] {
            arm(name, &model.policy()?, Rules::NONE, true)?;
        }
        for (name, model, shape, rate) in [
            (INSTRUCTION, &base, INSTRUCTION, "learning_rate=1e-3"),
            (RESPONSE, &base, RESPONSE, "learning_rate=3e-4"),
            (SINGLE, &base, SINGLE, "learning_rate=3e-4"),
            (CONTROL_RESPONSE, &control, RESPONSE, "learning_rate=3e-4"),
        ] {
            arm(name, &tuned(lab, model, shape, rate, seed)?, Rules::NONE, true)?;
        }
        for (name, model, rules) in [
            (RULES, &base, Rules::ALL),
            (NO_SHIFT, &base, Rules { shift: false, ..Rules::ALL }),
            (NO_END, &base, Rules { end: false, ..Rules::ALL }),
            (NO_SEEN, &base, Rules { seen: false, ..Rules::ALL }),
            (CONTROL_RULES, &control, Rules::ALL),
        ] {
            arm(name, &model.policy()?, rules, false)?;
        }
        for (name, model) in [(BASE, &base), (CONTROL, &control)] {
            let seed = Seed(seed).split("negatives");
            let ranked = ranking(&model.policy()?, &tests.pairs, NEGATIVES, seed, &mut |_, _| ())?;
            measured.add(name, RANKED, ranked.value);
        }
        let value = |arm, figure| measured.values(arm, figure).map(|v| v[v.len() - 1]);
        lab.say(&format!(
            "seed {seed}, right: base {:.3}, instruction {:.3}, response {:.3}, one task {:.3}, \
                rules {:.3}; ranking {:.3}",
            value(BASE, RIGHT)?,
            value(INSTRUCTION, RIGHT)?,
            value(RESPONSE, RIGHT)?,
            value(SINGLE, RIGHT)?,
            value(RULES, RIGHT)?,
            value(BASE, RANKED)?,
        ));
    }
    claims(&mut measured)?;
    measured.note(
        "the right digit always stands in the question, so that the rule on repetition keeps the \
            control, which does not know it, below chance",
    );
    Ok(measured)
}

fn claims(measured: &mut Measured) -> Result<()> {
    let of = |arm, figure| measured.values(arm, figure);
    let share = |by: f64| -> Result<Vec<f64>> {
        Ok(of(INSTRUCTION, RIGHT)?.iter().map(|right| by * right).collect())
    };
    let mean = |arm, figure| of(arm, figure).map(crate::Estimate::of);
    let claims = vec![
        Inequality::paired(
            "right, response tuning − 0.9 × instruction tuning",
            of(RESPONSE, RIGHT)?,
            &share(0.9)?,
            Limit::AtLeast(0.0),
        ),
        Inequality::paired(
            "right, one task − 0.9 × instruction tuning",
            of(SINGLE, RIGHT)?,
            &share(0.9)?,
            Limit::AtLeast(0.0),
        ),
        Inequality::paired(
            "right, three rules − 0.8 × instruction tuning",
            of(RULES, RIGHT)?,
            &share(0.8)?,
            Limit::AtLeast(0.0),
        ),
        Inequality::new("right, base", mean(BASE, RIGHT)?, Limit::AtMost(0.05)),
        Inequality::new("ranking, base", mean(BASE, RANKED)?, Limit::AtLeast(0.8)),
        Inequality::new("ranking, control", mean(CONTROL, RANKED)?, Limit::AtLeast(0.45)),
        Inequality::new("ranking, control", mean(CONTROL, RANKED)?, Limit::AtMost(0.55)),
        Inequality::new(
            "right, response tuning of the control",
            mean(CONTROL_RESPONSE, RIGHT)?,
            Limit::AtMost(0.2),
        ),
        Inequality::new(
            "right, rules without the shift",
            mean(NO_SHIFT, RIGHT)?,
            Limit::AtMost(0.05),
        )
        .aside(),
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

/// `op a b`.
type Asked = [u32; 3];

fn asked(rng: &mut luthier_core::Rng, operation: Option<u32>) -> Asked {
    let op = operation.unwrap_or_else(|| rng.below(3) as u32);
    [op, rng.below(10) as u32, rng.below(10) as u32]
}

fn question([op, a, b]: Asked) -> [u32; 4] {
    [QUESTION, OPERATIONS + op, DIGITS + a, DIGITS + b]
}

fn value([op, a, b]: Asked) -> u32 {
    match op {
        0 => a,
        1 => b,
        _ => a.max(b),
    }
}

fn answer(value: u32) -> [u32; 3] {
    [ANSWER, DIGITS + value, EOS]
}

/// `BOS U question S second third`, every token to be read.
fn documents(linked: bool) -> Vec<Row> {
    let mut rng = Seed(45).split("documents").rng();
    let document = |example| {
        let first = asked(&mut rng, None);
        let mut tokens = vec![BOS, USER];
        tokens.extend(question(first));
        tokens.push(SAYS);
        if rng.uniform() < ANSWERED {
            let other = rng.below(10) as u32;
            tokens.extend(answer(if linked { value(first) } else { other }));
        } else {
            tokens.extend(question(asked(&mut rng, None)));
        }
        match rng.below(2) {
            0 => tokens.extend(question(asked(&mut rng, None))),
            _ => tokens.push(EOS),
        }
        Row::from_tokens(&tokens, &vec![1.0; tokens.len()], example)
    };
    (0..DOCUMENTS).map(document).collect()
}

fn settings(rate: &str, seed: u64) -> Result<Train> {
    let set = ["batch_size=32", "micro_tokens=512", "epochs=1", rate];
    Ok(Train { seed, ..recipe("recipes/full/sft.toml", &set)? })
}

/// What an arm is tuned on: 60 steps of 32, the answer alone to be learned.
fn rows(arm: &str, seed: u64) -> Vec<Row> {
    let mut rng = Seed(seed).split("tuning").rng();
    let row = |example| {
        let asked = asked(&mut rng, (arm == SINGLE).then_some(LARGER));
        let prompt = match arm {
            RESPONSE => vec![BOS, USER, SAYS],
            _ => prompt(asked),
        };
        measure::row(&prompt, &answer(value(asked)), example)
    };
    (0..60 * 32).map(row).collect()
}

fn prompt(asked: Asked) -> Vec<u32> {
    [&[BOS, USER], &question(asked)[..], &[SAYS]].concat()
}

fn tuned(lab: &Lab, base: &Small, arm: &str, rate: &str, seed: u64) -> Result<Policy> {
    let config = settings(rate, seed)?;
    let bound = base.bind(&config)?;
    lab.train(&bound, &rows(arm, seed), &config)?;
    Ok(bound.policy)
}

/// Which rules hold.
#[derive(Clone, Copy)]
struct Rules {
    shift: bool,
    end: bool,
    seen: bool,
}

impl Rules {
    const NONE: Rules = Rules { shift: false, end: false, seen: false };
    const ALL: Rules = Rules { shift: true, end: true, seen: true };

    fn constraints(self) -> Vec<Box<dyn Constrain>> {
        let mut all: Vec<Box<dyn Constrain>> = Vec::new();
        if self.shift {
            all.push(Box::new(LogitBias { bias: [(QUESTION, -4.0)].into_iter().collect() }));
        }
        if self.end {
            all.push(Box::new(RisingEnd { over: 4, eos: vec![EOS], ..RisingEnd::default() }));
        }
        if self.seen {
            all.push(Box::new(Seen { mark: vec![USER], eos: vec![EOS], ..Seen::default() }));
        }
        all
    }
}

/// Questions with their answers.
struct Tests {
    seed: u64,
    pairs: Vec<Pair>,
}

impl Tests {
    fn new(seed: Seed) -> Self {
        let mut rng = seed.split("tests").rng();
        let pair = |_| {
            let asked = asked(&mut rng, None);
            Pair { prompt: prompt(asked), response: answer(value(asked)).to_vec() }
        };
        Tests { seed: seed.0, pairs: (0..TESTS).map(pair).collect() }
    }

    /// The share that is answered right, to the end, and the share that has the form of an answer.
    fn right(&self, policy: &Policy, rules: Rules, temperature: f32) -> Result<(f64, f64)> {
        let sampler = Sampler { temperature, seed: self.seed, ..Sampler::default() };
        let options = Generate {
            max_new_tokens: 8,
            max_batch: 64,
            eos: vec![EOS],
            sampler,
            ..Generate::default()
        };
        let source = Box::new(PolicySource::new(policy, options.max_batch));
        let constrain = rules.constraints();
        let parts = Parts { sources: vec![source], combine: &Identity {}, constrain };
        let prompts: Vec<Vec<u32>> = self.pairs.iter().map(|pair| pair.prompt.clone()).collect();
        let all = generate_from(parts, &prompts, &options, &Silent, &mut |_, _, _| ())?;
        let right = all.iter().zip(&self.pairs).filter(|(said, pair)| said.tokens == pair.response);
        let form = all.iter().filter(|said| match said.tokens.as_slice() {
            [mark, digit, end] => *mark == ANSWER && *digit >= DIGITS && *end == EOS,
            _ => false,
        });
        let share = |n: usize| n as f64 / TESTS as f64;
        Ok((share(right.count()), share(form.count())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_those_to_the_questions() {
        assert_eq!([0, 1, 2].map(|op| value([op, 3, 7])), [3, 7, 7]);
        assert_eq!(value([LARGER, 8, 2]), 8);
        assert_eq!(prompt([1, 3, 7]), [BOS, USER, QUESTION, 7, 12, 16, SAYS]);
        assert_eq!(answer(9), [ANSWER, 18, EOS]);
    }

    #[test]
    fn documents_answer_seldom_and_the_control_never_knows() {
        let share = |linked: bool| {
            let all = documents(linked);
            let answers: Vec<&Row> = all.iter().filter(|row| row.targets[6] == ANSWER).collect();
            let asked =
                |row: &Row| [row.ids[3] - OPERATIONS, row.ids[4] - DIGITS, row.ids[5] - DIGITS];
            let right = answers.iter().filter(|r| r.targets[7] == DIGITS + value(asked(r))).count();
            let n = answers.len() as f64;
            (n / DOCUMENTS as f64, right as f64 / n)
        };
        let (answered, right) = share(true);
        assert!((answered - ANSWERED).abs() < 0.01 && right == 1.0, "{answered} {right}");
        let (answered, right) = share(false);
        assert!((answered - ANSWERED).abs() < 0.01 && (right - 0.1).abs() < 0.02, "{right}");
    }

    #[test]
    fn arms_differ_in_what_their_prompts_hold() {
        let (instruction, response) = (rows(INSTRUCTION, 4), rows(RESPONSE, 4));
        for (one, other) in instruction.iter().zip(&response) {
            assert_eq!(one.targets[one.len() - 3..], other.targets[other.len() - 3..]);
            assert_eq!(other.ids[..3], [BOS, USER, SAYS]);
            assert_eq!(one.trained(), 3);
        }
        assert!(rows(SINGLE, 4).iter().all(|row| row.ids[3] == OPERATIONS + LARGER));
        assert_eq!(settings("learning_rate=3e-4", 4).unwrap().seed, 4);
    }

    #[test]
    fn each_rule_can_be_left_out() {
        assert_eq!(Rules::ALL.constraints().len(), 3);
        assert_eq!(Rules { end: false, ..Rules::ALL }.constraints().len(), 2);
        assert!(Rules::NONE.constraints().is_empty());
        // Four tokens on, the end is as likely as it gets.
        let end = RisingEnd { over: 4, ..RisingEnd::default() };
        assert_eq!([0, 1, 4, 9].map(|n| end.bias_at(n)), [0.0, 3.75, 15.0, 15.0]);
    }
}
