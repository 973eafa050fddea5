//! DeconfoundLM (Loghmani 2025, paper 26): outcomes of logs without what known confounders added, before
//! anything is learned from them.
//!
//! The generator: an instrument z (0 or 1), an unseen taste u, a confounder `c = z + 0.7u + 0.3·noise`; a
//! text holds "happy" less often where u is high (entangled) and "weekend" more often; the outcome is
//! `1·happy + 0·weekend + 2c + 0.5·noise`. Texts are the words that are on, among eight fillers, shuffled.
//!
//! First the reward: ridge on the bag of words, over 4000 texts, by what the data step `deconfound` makes
//! of the outcome, where texts are entangled with the confounder and where they are not. Then the model: a
//! small decoder learns to write such texts, and DPO tunes it on pairs of them that the reward of each arm
//! orders (a difference of 0.1 deviations at least). Measured are the shares of 500 sampled texts with
//! either word. The arm `invariant` takes the score of words that tells most of the raw outcome among
//! those that do not go with c.
//!
//! **Departures**: (1) pairs are ordered by the reward model's score, not by the single outcome, in all arms
//! alike; (2) 3000 random pairs; (3) all seeds have texts, pairs and draws of their own, and a decoder that
//! read texts of its own; (4) the learning rate of DPO is one at which
//! the arm `raw` does not say its word in all texts; (5) the paper's real logs are not looked at.

use luthier_core::{Error, Example, Policy, Result, Rng, Row, Seed, Table, Turn};
use luthier_data::{
    Step,
    transform::deconfound::{
        Deconfound,
        estimate::Estimator,
        linear::{Matrix, fit, mean},
    },
};
use luthier_decode::{Generate, Sampler, generate};
use luthier_train::evaluate::refer;

use crate::{
    Inequality, Lab, Limit, Measured, Paper, Pretraining, Sizes, Small,
    measure::{self, Silent},
    recipe,
};

/// The check.
pub const PAPER: Paper = Paper {
    number: 26,
    title: "DeconfoundLM: outcomes without their confounders",
    claim: "a model tuned on raw outcomes learns the word that goes with the confounder, tuned on \
        corrected ones it learns the word that causes the outcome",
    recipes: &["recipes/preference/deconfound.toml"],
    seeds: 3,
    run,
};

const TEXTS: usize = 4000;
const FILLERS: u32 = 20;
const FILLED: usize = 8;
const HAPPY: u32 = 0;
const WEEKEND: u32 = 1;
/// Before a text and behind it.
const BEGIN: u32 = 2 + FILLERS;
const END: u32 = 3 + FILLERS;

const SIZES: Sizes =
    Sizes { layers: 4, width: 96, heads: 4, kv_heads: 4, ffn: 256, vocab: 24, tied: false };

const PAIRS: usize = 3000;
/// Least difference of rewards, in deviations.
const MARGIN: f64 = 0.1;
const SAMPLES: usize = 500;

/// A setting before this one, in case somebody thinks of it again.
const TRIED: &str = "tried before: DPO at 1e-4, one seed: raw said weekend in 0.99 of the texts, iv and \
    invariant happy in 0.99 and 0.98, so that nothing was left for arms to differ in; the claim did not \
    hold for invariant";

const RAW: &str = "raw";
const IV: &str = "iv";
const PARTIAL: &str = "partial";
const MARGINAL: &str = "marginal";
const INVARIANT: &str = "invariant";
const BEFORE: &str = "before";

const SAYS_HAPPY: &str = "says happy";
const SAYS_WEEKEND: &str = "says weekend";

/// A log: every text's words, what came of it, and its circumstances.
struct Log {
    texts: Vec<Vec<u32>>,
    table: Table,
}

fn word(token: u32) -> String {
    match token {
        HAPPY => "happy".into(),
        WEEKEND => "weekend".into(),
        filler => format!("filler{filler}"),
    }
}

fn log(entangled: f64, seed: Seed) -> Log {
    let mut rng = seed.rng();
    let (mut texts, mut examples) = (Vec::with_capacity(TEXTS), Vec::with_capacity(TEXTS));
    for i in 0..TEXTS {
        let z = f64::from(u8::from(rng.uniform() < 0.5));
        let u = rng.normal();
        let c = z + 0.7 * u + 0.3 * rng.normal();
        let happy = rng.normal() - 0.8 * entangled * u > 0.0;
        let weekend = rng.normal() + 1.2 * u > 0.0;
        let outcome = f64::from(u8::from(happy)) + 2.0 * c + 0.5 * rng.normal();
        let mut text: Vec<u32> =
            (0..FILLED).map(|_| 2 + rng.below(FILLERS as usize) as u32).collect();
        text.extend(happy.then_some(HAPPY));
        text.extend(weekend.then_some(WEEKEND));
        rng.shuffle(&mut text);
        let words: Vec<String> = text.iter().map(|token| word(*token)).collect();
        let answer = Some(Turn::new("assistant", words.join(" ")));
        let mut example = Example::new("log", i + 1, vec![Turn::new("user", "write")], answer);
        let columns = [("z", z), ("c", c), ("outcome", outcome)];
        example.columns.extend(columns.map(|(name, value)| (name.to_string(), value.into())));
        texts.push(text);
        examples.push(example);
    }
    let (name, layout) = ("log".to_string(), "made".to_string());
    Log { texts, table: Table { name, layout, sha256: String::new(), examples } }
}

/// Which words a text holds.
fn bag(text: &[u32]) -> Vec<f64> {
    (0..BEGIN).map(|word| f64::from(u8::from(text.contains(&word)))).collect()
}

fn column(table: &Table, name: &str) -> Result<Vec<f64>> {
    let of = |example: &Example| {
        let value = example.columns.get(name).and_then(|value| value.as_f64());
        value.ok_or_else(|| Error::failed(example.origin.to_string(), format!("has no {name}")))
    };
    table.examples.iter().map(of).collect()
}

impl Log {
    /// The outcome as an arm takes it.
    fn outcome(&self, arm: &str) -> Result<Vec<f64>> {
        let estimator = match arm {
            IV => Estimator::Iv,
            PARTIAL => Estimator::Partial,
            MARGINAL => Estimator::Marginal,
            _ => return column(&self.table, "outcome"),
        };
        let instruments = if arm == IV { vec!["z".to_string()] } else { Vec::new() };
        let step = Deconfound {
            outcome: "outcome".into(),
            confounders: vec!["c".into()],
            instruments,
            estimator: Some(estimator),
            folds: 5,
            ridge: 1e-3,
            words: 64,
        };
        column(&step.apply(self.table.clone(), Seed(0))?, "outcome")
    }

    /// What each word is worth to an arm.
    fn worth(&self, arm: &str) -> Result<Vec<f64>> {
        let rows: Vec<f64> = self.texts.iter().flat_map(|text| bag(text)).collect();
        let words = Matrix { columns: BEGIN as usize, numbers: rows };
        let all: Vec<usize> = (0..TEXTS).collect();
        let ridge = 1e-3 * TEXTS as f64;
        let by_outcome = fit(&words, &self.outcome(arm)?, ridge, &all)?.slopes;
        if arm != INVARIANT {
            return Ok(by_outcome);
        }
        // Least squares under the condition that the score does not go with c: the part along what c
        // alone would be scored by is taken off.
        let c = column(&self.table, "c")?;
        let by_c = fit(&words, &c, ridge, &all)?.slopes;
        let middle = mean(&c);
        let goes = |slopes: &[f64]| -> f64 {
            let score = |i: usize| words.row(i).iter().zip(slopes).map(|(w, s)| w * s).sum::<f64>();
            (0..TEXTS).map(|i| score(i) * (c[i] - middle)).sum()
        };
        let share = goes(&by_outcome) / goes(&by_c);
        Ok(by_outcome.iter().zip(&by_c).map(|(y, c)| y - share * c).collect())
    }

    /// Pairs of texts as rows, the better one by `worth` first.
    fn pairs(&self, worth: &[f64], seed: Seed) -> Vec<Row> {
        let score = |text: &[u32]| bag(text).iter().zip(worth).map(|(on, w)| on * w).sum::<f64>();
        let scores: Vec<f64> = self.texts.iter().map(|text| score(text)).collect();
        let middle = mean(&scores);
        let squares: Vec<f64> = scores.iter().map(|s| (s - middle) * (s - middle)).collect();
        let least = MARGIN * mean(&squares).sqrt();
        let (mut rng, mut rows): (Rng, Vec<Row>) = (seed.rng(), Vec::with_capacity(2 * PAIRS));
        while rows.len() < 2 * PAIRS {
            let (a, b) = (rng.below(TEXTS), rng.below(TEXTS));
            if (scores[a] - scores[b]).abs() < least || a == b {
                continue;
            }
            let (better, worse) = if scores[a] > scores[b] { (a, b) } else { (b, a) };
            let pair = rows.len() / 2;
            rows.extend([better, worse].map(|i| row(&self.texts[i], pair)));
        }
        rows
    }
}

fn row(text: &[u32], example: usize) -> Row {
    measure::row(&[BEGIN], &[text, &[END]].concat(), example)
}

/// The shares of texts with either word.
fn says(policy: &Policy, seed: u64) -> Result<[f64; 2]> {
    let sampler = Sampler { temperature: 1.0, seed, ..Sampler::default() };
    let options = Generate {
        max_new_tokens: 32,
        max_batch: 256,
        prefill_tokens: 4096,
        eos: vec![END],
        sampler,
        ..Generate::default()
    };
    let prompts = vec![vec![BEGIN]; SAMPLES];
    let texts = generate(policy, &prompts, &options, &Silent, &mut |_, _, _| ())?;
    let share = |word: u32| {
        texts.iter().filter(|text| text.tokens.contains(&word)).count() as f64 / SAMPLES as f64
    };
    Ok([HAPPY, WEEKEND].map(share))
}

fn run(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let own = Seed(seed).split("p26");
        for (entangled, kind) in [(0.0, "apart"), (1.0, "entangled")] {
            let log = log(entangled, own.split(kind));
            for arm in [RAW, MARGINAL, PARTIAL, IV, INVARIANT] {
                let worth = log.worth(arm)?;
                for (name, of) in [("happy", HAPPY), ("weekend", WEEKEND)] {
                    measured.add(arm, &format!("{name}, {kind}"), worth[of as usize]);
                }
            }
        }
        let log = log(1.0, own.split("entangled"));
        let base = base(lab, &log, seed)?;
        let before = says(&base.policy()?, seed)?;
        add(&mut measured, BEFORE, before);
        for arm in [RAW, INVARIANT, IV] {
            let mut rows = log.pairs(&log.worth(arm)?, own.split("pairs"));
            let after = tune(lab, &base, &mut rows, seed)?;
            add(&mut measured, arm, after);
            lab.say(&format!(
                "seed {seed}, {arm}: happy {:.2} to {:.2}, weekend {:.2} to {:.2}",
                before[0], after[0], before[1], after[1]
            ));
        }
    }
    claims(&mut measured)?;
    measured.note(TRIED);
    Ok(measured)
}

fn add(measured: &mut Measured, arm: &str, [happy, weekend]: [f64; 2]) {
    measured.add(arm, SAYS_HAPPY, happy);
    measured.add(arm, SAYS_WEEKEND, weekend);
}

/// A decoder that writes texts as the log does.
fn base(lab: &Lab, log: &Log, seed: u64) -> Result<Small> {
    let own = format!("train.seed={seed}");
    let set = ["batch_size=64", "micro_tokens=1024", "epochs=6", "learning_rate=1e-3", &own];
    let config = recipe("recipes/full/sft.toml", &set)?;
    let rows: Vec<Row> = log.texts.iter().enumerate().map(|(i, text)| row(text, i)).collect();
    lab.pretrained(&Pretraining { name: "texts", sizes: SIZES, rows: &rows, config: &config })
}

/// The shares after DPO.
fn tune(lab: &Lab, base: &Small, rows: &mut [Row], seed: u64) -> Result<[f64; 2]> {
    let own = format!("train.seed={seed}");
    let set = ["batch_size=32", "micro_tokens=1024", "learning_rate=3e-5", &own];
    let mut config = recipe("recipes/preference/deconfound.toml", &set)?;
    config.params = recipe("recipes/full/sft.toml", &[])?.params;
    let bound = base.bind(&config)?;
    refer(&bound.policy, rows, 4096)?;
    lab.train(&bound, rows, &config)?;
    says(&bound.policy, seed)
}

fn claims(measured: &mut Measured) -> Result<()> {
    let of = |arm: &str, figure: &str| measured.values(arm, figure).map(<[f64]>::to_vec);
    let gain = |arm: &str, figure: &str| -> Result<Vec<f64>> {
        let (after, before) = (of(arm, figure)?, of(BEFORE, figure)?);
        Ok(after.iter().zip(before).map(|(after, before)| after - before).collect())
    };
    let none = vec![0.0; of(BEFORE, SAYS_HAPPY)?.len()];
    let far: Vec<f64> = gain(IV, SAYS_WEEKEND)?.iter().map(|gain| gain.abs()).collect();
    let (happy, weekend) = (gain(RAW, SAYS_HAPPY)?, gain(RAW, SAYS_WEEKEND)?);
    let (iv, invariant) = (gain(IV, SAYS_HAPPY)?, gain(INVARIANT, SAYS_HAPPY)?);
    let mut claims = vec![
        Inequality::paired("raw: gain of weekend", &weekend, &none, Limit::AtLeast(0.3)),
        Inequality::paired("raw: gain of happy", &happy, &none, Limit::AtMost(0.1)),
        Inequality::paired("iv: gain of happy", &iv, &none, Limit::AtLeast(0.3)),
        Inequality::paired("iv: change of weekend", &far, &none, Limit::AtMost(0.1)),
        Inequality::paired("gain of happy, iv − invariant", &iv, &invariant, Limit::AtLeast(0.1)),
    ];
    let worth = [(IV, "happy", 1.0), (IV, "weekend", 0.0), (PARTIAL, "happy", 1.0)];
    for (arm, word, truth) in worth {
        let off: Vec<f64> =
            of(arm, &format!("{word}, entangled"))?.iter().map(|w| (w - truth).abs()).collect();
        let what = format!("{arm}: worth of {word}, distance from {truth}");
        claims.push(Inequality::paired(what, &off, &none, Limit::AtMost(0.1)).aside());
    }
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invariant_scores_do_not_go_with_the_confounder_and_raw_ones_do() {
        let log = log(1.0, Seed(3));
        let c = column(&log.table, "c").unwrap();
        let correlation = |worth: &[f64]| {
            let score = |text: &Vec<u32>| bag(text).iter().zip(worth).map(|(w, s)| w * s).sum();
            let scores: Vec<f64> = log.texts.iter().map(score).collect();
            let (a, b) = (mean(&scores), mean(&c));
            let of = |x: &[f64], m: f64, y: &[f64], n: f64| -> f64 {
                x.iter().zip(y).map(|(x, y)| (x - m) * (y - n)).sum()
            };
            of(&scores, a, &c, b) / (of(&scores, a, &scores, a) * of(&c, b, &c, b)).sqrt()
        };
        assert!(correlation(&log.worth(RAW).unwrap()) > 0.4);
        assert!(correlation(&log.worth(INVARIANT).unwrap()).abs() < 1e-6);
    }

    #[test]
    fn pairs_have_the_better_text_first() {
        let log = log(1.0, Seed(5));
        let mut worth = vec![0.0; BEGIN as usize];
        worth[HAPPY as usize] = 1.0;
        let rows = log.pairs(&worth, Seed(1));
        assert_eq!(rows.len(), 2 * PAIRS);
        let happy = |row: &Row| row.targets.contains(&HAPPY);
        assert!(rows.chunks(2).all(|pair| happy(&pair[0]) && !happy(&pair[1])));
    }
}
