//! MORepair (Yang et al. 2025, paper 41): to mend a program and to explain the mending, as two objectives.
//!
//! Level 1 of the check, which is about the mechanism: a decoder from scratch is shown an arithmetic progression
//! mod 11 of eight numbers, one of them wrong, and learns to write the right one (`x → y`), and to write it and
//! then the difference of the progression, where the mistake was, the wrong and the right number (`x → y e`).
//! 6400 programs, 2500 steps of 32 examples; tests on 250 others. Arms: fine-tuning on `x → y`; the objective
//! with α = ½, with α = 1, and, for 200 steps, with α = 0.
//!
//! **Departures**: (1) the decoder is this program's, with rotary positions and gated MLPs; (2) no noise on the
//! embedded tokens: at this size it is one more thing to learn; (3) more programs and steps than the spec's 800 and
//! 900, after which explaining was not learned at all (see the notes): as many as the arm that always
//! explains needs; (4) level 2, SmolLM2-135M on broken functions with
//! their tests, is not run: five arms of three seeds take hours on two cores.

use luthier_core::{Policy, Result, Rng, Row, Seed};
use luthier_decode::{Generate, Sampler, generate};
use luthier_params::{Bound, Full, Params};
use luthier_train::Train;
use luthier_update::{Schedules, schedule::Constant};

use crate::{
    Inequality, Lab, Limit, Measured, Paper, Sizes, Small,
    measure::{self, Silent},
    recipe,
    stats::mean,
};

/// The check.
pub const PAPER: Paper = Paper {
    number: 41,
    title: "MORepair",
    claim: "with two objectives one model both mends a program and, asked to go on, says where the mistake was; \
        the explanation stays out of the answer, and without its share training is what it was",
    recipes: &[BOTH],
    seeds: 3,
    run,
};

const BOTH: &str = "recipes/tasks/rationale.toml";

/// Numbers of the progression, and its length.
const MODULUS: usize = 11;
const LENGTH: usize = 8;
const ARROW: u32 = 11;
const END: u32 = 12;
/// The first of the places.
const PLACE: u32 = 13;

const SIZES: Sizes =
    Sizes { layers: 3, width: 64, heads: 4, kv_heads: 4, ffn: 176, vocab: 21, tied: false };

const PROGRAMS: usize = 6400;
const TESTS: usize = 250;
const STEPS: u64 = 2500;
/// Steps after which weights that must be the same are compared.
const COMPARED: u64 = 200;

/// What the spec's pilot says of the gain that this cannot show.
const PILOT: &str = "the published gain in repairs is not claimed at this level: in the spec's pilot, and from scratch \
    there is no knowledge of language that an explanation could draw on, repairs got fewer with it (mod 11: \
    0.58 and 0.53 without, 0.47 and 0.39 with)";

/// A design before this one, in case somebody thinks of it again.
const TRIED: &str = "tried before, one seed: 800 programs and 900 steps: mended 0.70 by x → y, 0.71 with α = ½, 0.52 with \
    α = 1; place named 0.12 and 0.34 after α = ½ and 1; then, with α = 1 alone, 6400 programs and 2500 steps: \
    0.96 and 0.86";

const PLAIN: &str = "fine-tuning on x → y";
const NOTHING: &str = "α = 0";
const HALF: &str = "α = ½";
const ALL: &str = "α = 1 (explained always)";
const ARMS: [(&str, f64); 3] = [(PLAIN, 0.0), (HALF, 0.5), (ALL, 1.0)];

const MENDED: &str = "mended (top-1)";
const NAMED: &str = "says where, asked to go on";
const MASS: &str = "probability of the place";
const CLEAN: &str = "ends or explains after y";
const DIFFERENT: &str = "bytes that differ from x → y";

fn run(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let start = Small::random(SIZES, Seed(seed).split("weights"))?;
        let programs = draw(PROGRAMS, Seed(seed).split("train"));
        let tests = draw(TESTS, Seed(seed).split("test"));
        let trained = |config: &Train, alpha: f64| -> Result<(Bound, Vec<u8>)> {
            let bound = start.bind(config)?;
            let of = |(i, program): (usize, &Program)| program.rows(alpha, i);
            let rows: Vec<Row> = programs.iter().enumerate().flat_map(of).collect();
            lab.train(&bound, &rows, config)?;
            let weights = start.tuned(&bound)?.weights.to_safetensors(&[])?;
            Ok((bound, weights))
        };
        let short = |arm: &str| -> Result<Vec<u8>> {
            let config = Train { max_steps: Some(COMPARED), ..settings(arm, 0.0, seed)? };
            Ok(trained(&config, 0.0)?.1)
        };
        let (plain, nothing) = (short(PLAIN)?, short(NOTHING)?);
        let bytes = plain.iter().zip(&nothing).filter(|(a, b)| a != b).count();
        measured.add(NOTHING, DIFFERENT, bytes as f64);
        for (arm, alpha) in ARMS {
            let (bound, _) = trained(&settings(arm, alpha, seed)?, alpha)?;
            let found = Found::of(&bound.policy, &tests)?;
            lab.say(&format!(
                "seed {seed}, {arm}: mended {:.3}, place named {:.3}, mass {:.4}, clean {:.3}",
                found.mended, found.named, found.mass, found.clean
            ));
            measured.add(arm, MENDED, found.mended);
            measured.add(arm, NAMED, found.named);
            measured.add(arm, MASS, found.mass);
            measured.add(arm, CLEAN, found.clean);
        }
    }
    claims(&mut measured)?;
    measured.note(PILOT);
    measured.note(TRIED);
    Ok(measured)
}

fn claims(measured: &mut Measured) -> Result<()> {
    let of = |arm, figure| measured.values(arm, figure);
    let none = vec![0.0; of(HALF, MENDED)?.len()];
    let claim = |what: &str, of: &[f64], limit| Inequality::paired(what, of, &none, limit);
    let claims = [
        claim(
            "bytes of the weights that differ, α = 0 against x → y",
            of(NOTHING, DIFFERENT)?,
            Limit::AtMost(0.0),
        ),
        claim("place named after a right y, α = ½", of(HALF, NAMED)?, Limit::AtLeast(0.8)),
        claim(
            "probability of the place without the objective",
            of(PLAIN, MASS)?,
            Limit::AtMost(0.01),
        ),
        claim("answers that end or explain after y, α = ½", of(HALF, CLEAN)?, Limit::AtLeast(0.95)),
        Inequality::paired(
            "mended, α = ½ − x → y",
            of(HALF, MENDED)?,
            of(PLAIN, MENDED)?,
            Limit::Above(0.0),
        )
        .aside(),
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

/// The training settings of an arm.
fn settings(arm: &str, alpha: f64, seed: u64) -> Result<Train> {
    let alpha = format!("loss.rationale.alpha={alpha:?}");
    let set = [
        "batch_size=32",
        "micro_tokens=2048",
        "epochs=400",
        "learning_rate=1e-3",
        "weight_decay=0",
        &alpha,
    ];
    let mut config = recipe(BOTH, &set)?;
    if arm == PLAIN {
        config.loss = Default::default();
    }
    config.max_steps = Some(STEPS);
    config.neftune_noise_alpha = None;
    config.params = Params { full: Some(Full::default()), ..Params::default() };
    config.update.max_grad_norm = 1.0;
    config.update.schedule =
        Schedules { constant: Some(Constant::default()), ..Schedules::default() };
    config.seed = seed;
    Ok(config)
}

/// A progression with a mistake, and what is right.
#[derive(Clone, Debug, PartialEq)]
struct Program {
    /// With the mistake, and the arrow.
    asked: Vec<u32>,
    right: Vec<u32>,
    /// Difference, place, wrong and right number.
    reason: [u32; 4],
}

impl Program {
    fn draw(rng: &mut Rng) -> Self {
        let (first, difference) = (rng.below(MODULUS), 1 + rng.below(MODULUS - 1));
        let right: Vec<u32> =
            (0..LENGTH).map(|i| ((first + i * difference) % MODULUS) as u32).collect();
        let place = rng.below(LENGTH);
        let wrong = (right[place] + 1 + rng.below(MODULUS - 1) as u32) % MODULUS as u32;
        let mut asked = right.clone();
        asked[place] = wrong;
        asked.push(ARROW);
        let reason = [difference as u32, PLACE + place as u32, wrong, right[place]];
        Program { asked, right, reason }
    }

    /// The rows of an objective with this share of the explanation.
    fn rows(&self, alpha: f64, example: usize) -> Vec<Row> {
        let answer = [&self.right[..], &[END]].concat();
        let explained = [&self.right[..], &self.reason, &[END]].concat();
        let row = |task: usize, answer: &[u32]| Row {
            task,
            ..measure::row(&self.asked, answer, example)
        };
        let mut rows = Vec::new();
        if alpha < 1.0 {
            rows.push(row(0, &answer));
        }
        if alpha > 0.0 {
            rows.push(row(1, &explained));
        }
        rows
    }
}

fn draw(n: usize, seed: Seed) -> Vec<Program> {
    let mut rng = seed.rng();
    (0..n).map(|_| Program::draw(&mut rng)).collect()
}

/// Greedy continuations.
fn greedy(policy: &Policy, prompts: &[Vec<u32>], n: usize, ban: &[u32]) -> Result<Vec<Vec<u32>>> {
    let options = Generate {
        max_new_tokens: n,
        eos: vec![END],
        ban: ban.to_vec(),
        sampler: Sampler { temperature: 0.0, ..Sampler::default() },
        ..Generate::default()
    };
    let all = generate(policy, prompts, &options, &Silent, &mut |_, _, _| ())?;
    Ok(all.into_iter().map(|text| text.tokens).collect())
}

/// What a model does with programs that it has not seen.
struct Found {
    mended: f64,
    named: f64,
    mass: f64,
    clean: f64,
}

impl Found {
    fn of(policy: &Policy, tests: &[Program]) -> Result<Self> {
        let share = |all: Vec<bool>| {
            mean(&all.iter().map(|b| f64::from(u8::from(*b))).collect::<Vec<f64>>())
        };
        let asked: Vec<Vec<u32>> = tests.iter().map(|test| test.asked.clone()).collect();
        let answers = greedy(policy, &asked, LENGTH + 6, &[])?;
        // Only the first eight tokens are the answer.
        let mended = tests.iter().zip(&answers);
        let mended = mended.map(|(test, answer)| answer.get(..LENGTH) == Some(&test.right[..]));
        let clean = answers.iter().map(|answer| ends_or_explains(answer));
        let told: Vec<Vec<u32>> =
            tests.iter().map(|test| [&test.asked[..], &test.right].concat()).collect();
        let forced = greedy(policy, &told, 2, &[END])?;
        let named = tests.iter().zip(&forced);
        let named = named.map(|(test, said)| said.get(1) == Some(&test.reason[1]));
        // The place, where the difference has been said.
        let rows: Vec<Row> = tests
            .iter()
            .zip(&told)
            .map(|(test, told)| {
                let prompt = [&told[..], &test.reason[..1]].concat();
                measure::row(&prompt, &test.reason[1..2], 0)
            })
            .collect();
        let mass = rows
            .iter()
            .map(|row| Ok((-measure::loss(policy, std::slice::from_ref(row))?).exp()))
            .collect::<Result<Vec<f64>>>()?;
        Ok(Found {
            mended: share(mended.collect()),
            named: share(named.collect()),
            mass: mean(&mass),
            clean: share(clean.collect()),
        })
    }
}

/// Whether nothing but the end, or an explanation and the end, follows eight numbers.
fn ends_or_explains(answer: &[u32]) -> bool {
    let number = |token: &u32| (*token as usize) < MODULUS;
    let Some((program, rest)) = answer.split_at_checked(LENGTH) else { return false };
    program.iter().all(number)
        && match rest {
            [END] => true,
            [difference, place, wrong, right, END] => {
                [difference, wrong, right].into_iter().all(number) && *place >= PLACE
            }
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_one_mistake_and_the_reason_names_it() {
        for program in draw(200, Seed(3)) {
            let differ: Vec<usize> =
                (0..LENGTH).filter(|i| program.asked[*i] != program.right[*i]).collect();
            let [difference, place, wrong, right] = program.reason;
            assert_eq!(differ, [(place - PLACE) as usize]);
            assert_eq!((program.asked[differ[0]], program.right[differ[0]]), (wrong, right));
            for pair in program.right.windows(2) {
                assert_eq!((pair[0] + difference) % MODULUS as u32, pair[1]);
            }
        }
    }

    #[test]
    fn rows_are_those_of_the_objective() {
        let program = &draw(1, Seed(1))[0];
        for (alpha, tasks) in [(0.0, vec![0]), (0.5, vec![0, 1]), (1.0, vec![1])] {
            let config = settings(HALF, alpha, 1).unwrap();
            let rows = program.rows(alpha, 7);
            assert_eq!(config.loss.objective().unwrap().unit().rows(), rows.len());
            assert_eq!(rows.iter().map(|row| row.task).collect::<Vec<_>>(), tasks);
            assert!(rows.iter().all(|row| row.targets.last() == Some(&END)));
        }
        let mut plain = settings(PLAIN, 0.0, 2).unwrap();
        plain.loss = settings(NOTHING, 0.0, 2).unwrap().loss;
        assert_eq!(plain, settings(NOTHING, 0.0, 2).unwrap());
    }

    #[test]
    fn what_follows_the_answer_is_the_end_or_a_reason() {
        let y = [1, 2, 3, 4, 5, 6, 7, 8];
        let with = |rest: &[u32]| [&y[..], rest].concat();
        assert!(ends_or_explains(&with(&[END])) && ends_or_explains(&with(&[3, PLACE, 2, 1, END])));
        for wrong in [&[][..], &[3], &[3, 4, 2, 1, END], &[3, PLACE, 2, 1]] {
            assert!(!ends_or_explains(&with(wrong)), "{wrong:?}");
        }
        assert!(!ends_or_explains(&y[..7]));
    }
}
