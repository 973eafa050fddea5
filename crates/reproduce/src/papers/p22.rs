//! Steady fine-tuning on few examples (Tinn et al. 2023, paper 22): what the spread over seeds owes
//! to the optimizer, and what freezing, layer-wise rates and a new top layer do for it.
//!
//! A decoder is pretrained on a small language with number agreement, then asked on 240 examples
//! whether a sentence obeys it. Treatments: Adam without bias correction ("unrepaired"), Adam with
//! it ("vanilla"), and vanilla with the lower half frozen, with layer-wise decay 0.8, with the
//! highest block drawn anew; 400 updates of 16 rows each, warm-up 10 %, linear decay, clip 1. A seed
//! draws the answers' rows of the head and the order. A run fails at or below guessing + 2 points.
//!
//! **Departures**: (1) a decoder that answers with a token at the end of the sentence, in place of an
//! encoder with a classification head: no sentence holds the answers, and their rows of the head are
//! drawn anew by every seed; (2) no dropout; (3) the rate is that at which vanilla does best on the 40
//! development examples, and "best" of freezing and decay is that of the better one there; (4) the
//! unrepaired control makes as many updates as the others, so that bias correction alone differs;
//! (5) 240 training examples: with 60, plain fine-tuning of this decoder guessed; (6) one model; the
//! regression task and its claim about new top layers wait for a regression head, the new top layer
//! is reported without a claim.

use luthier_core::{Result, Row, Seed};
use luthier_train::Train;

use crate::{
    Estimate, Inequality, Lab, Limit, Measured, Paper, Pretraining, Sizes, Small, claim::share,
    measure, recipe, stats::mean,
};

mod language;

/// The check.
pub const PAPER: Paper = Paper {
    number: 22,
    title: "Steady fine-tuning on few examples",
    claim: "without bias correction, runs on few examples spread and fail; freezing lower layers \
        or layer-wise rates make them steadier and better than plain fine-tuning",
    recipes: &["recipes/full/freeze.toml", "recipes/full/llrd.toml", "recipes/full/reinit.toml"],
    seeds: 10,
    run,
};

const SIZES: Sizes = Sizes {
    layers: 6,
    width: 64,
    heads: 4,
    kv_heads: 4,
    ffn: 176,
    vocab: language::VOCAB,
    tied: false,
};

const TEXTS: usize = 16_000;
/// Examples to train on.
const FEW: usize = 240;
const RATES: [&str; 3] = ["1e-4", "3e-4", "1e-3"];
/// Accuracy of guessing, and what a run must be above.
const FAILED: f64 = 0.5 + 0.02;

const UNREPAIRED: &str = "unrepaired";
const VANILLA: &str = "vanilla";
const FREEZE: &str = "freeze 1/2";
const DECAY: &str = "decay 0.8";
const ANEW: &str = "top anew";
const TREATMENTS: [&str; 5] = [UNREPAIRED, VANILLA, FREEZE, DECAY, ANEW];

const LEARNED: &str = "training examples";
const DEV: &str = "development";
const TEST: &str = "test";

/// A design before this one, in case somebody thinks of it again.
const TRIED: &str = "tried before: asking at a token of its own, which pretraining never met and \
    freezing left as it was drawn, ten seeds at 1e-3: unrepaired 0.687, vanilla 0.876, freeze 1/2 \
    0.493, decay 0.8 0.895, top anew 0.956; the claim did not hold for unrepaired runs, and missed \
    its two points by 0.1";

struct Data {
    train: Vec<Row>,
    dev: Vec<Row>,
    test: Vec<Row>,
}

fn run(lab: &Lab) -> Result<Measured> {
    let seed = Seed(22);
    let rows = language::text(TEXTS, seed.split("text"));
    let set = ["batch_size=32", "micro_tokens=1024", "epochs=4", "learning_rate=2e-3"];
    let config = recipe("recipes/full/sft.toml", &set)?;
    let how = Pretraining { name: "sentences", sizes: SIZES, rows: &rows, config: &config };
    let base = lab.pretrained(&how)?;
    let data = Data {
        train: language::task(FEW, seed.split("train")),
        dev: language::task(40, seed.split("dev")),
        test: language::task(1000, seed.split("test")),
    };

    // Every run is kept under treatment and rate; only some of them are needed.
    let mut runs = Measured::default();
    let ask = |treatment: &str, rate: &str, runs: &mut Measured| -> Result<()> {
        if runs.values(&at(treatment, rate), TEST).is_ok() {
            return Ok(());
        }
        for seed in lab.seeds() {
            let figures = one(lab, &base, treatment, rate, seed, &data)?;
            for (figure, value) in [LEARNED, DEV, TEST].into_iter().zip(figures) {
                runs.add(&at(treatment, rate), figure, value);
            }
        }
        let found = Estimate::of(runs.values(&at(treatment, rate), TEST)?);
        lab.say(&format!("{treatment} at {rate}: {found} right"));
        Ok(())
    };
    for rate in RATES {
        ask(VANILLA, rate, &mut runs)?;
    }
    let chosen = best(&runs, RATES.map(|rate| (VANILLA, rate)))?.1;
    let highest = RATES[RATES.len() - 1];
    for rate in [chosen, highest] {
        for treatment in TREATMENTS {
            ask(treatment, rate, &mut runs)?;
        }
    }
    summary(&runs, chosen, highest)
}

fn at(treatment: &str, rate: &str) -> String {
    format!("{treatment}, {rate}")
}

/// The first of those with the best mean on the development examples.
fn best<const N: usize>(
    runs: &Measured,
    candidates: [(&'static str, &'static str); N],
) -> Result<(&'static str, &'static str)> {
    let mut best = (f64::NEG_INFINITY, candidates[0]);
    for (treatment, rate) in candidates {
        let dev = mean(runs.values(&at(treatment, rate), DEV)?);
        if dev > best.0 {
            best = (dev, (treatment, rate));
        }
    }
    Ok(best.1)
}

fn settings(treatment: &str, rate: &str, seed: u64) -> Result<Train> {
    let rate = format!("learning_rate={rate}");
    let mut set = vec!["batch_size=16", "micro_tokens=512", "epochs=1000", "max_steps=400", &rate];
    let path = match treatment {
        DECAY => {
            set.push("layer_decay=0.8");
            "recipes/full/llrd.toml"
        }
        ANEW => "recipes/full/reinit.toml",
        FREEZE => {
            set.push("freeze_layers=3");
            "recipes/full/freeze.toml"
        }
        _ => {
            set.push("freeze_layers=0");
            "recipes/full/freeze.toml"
        }
    };
    if treatment == UNREPAIRED {
        set.push("bias_correction=false");
    }
    Ok(Train { seed, ..recipe(path, &set)? })
}

/// Accuracy on training, development and test examples after one run.
fn one(
    lab: &Lab,
    base: &Small,
    treatment: &str,
    rate: &str,
    seed: u64,
    data: &Data,
) -> Result<[f64; 3]> {
    let config = settings(treatment, rate, seed)?;
    let head = Seed(seed).split("head");
    let start = base.with_new_rows("lm_head.weight", &language::ANSWERS, head)?;
    let bound = start.bind(&config)?;
    lab.train(&bound, &data.train, &config)?;
    let exact = |rows| measure::exact(&bound.policy, rows);
    Ok([exact(&data.train)?, exact(&data.dev)?, exact(&data.test)?])
}

fn summary(runs: &Measured, chosen: &'static str, highest: &str) -> Result<Measured> {
    let mut measured = Measured::default();
    let failed = |treatment: &str, rate: &str| -> Result<Vec<bool>> {
        Ok(runs.values(&at(treatment, rate), TEST)?.iter().map(|x| *x <= FAILED).collect())
    };
    for treatment in TREATMENTS {
        let test = runs.values(&at(treatment, chosen), TEST)?;
        let high = runs.values(&at(treatment, highest), TEST)?;
        let learned = runs.values(&at(treatment, chosen), LEARNED)?;
        for ((test, high), learned) in test.iter().zip(high).zip(learned) {
            measured.add(treatment, &format!("right at {chosen}"), *test);
            measured.add(treatment, "of the training examples", *learned);
            if chosen != highest {
                measured.add(treatment, &format!("right at {highest}"), *high);
            }
        }
    }
    let test = |treatment: &str| runs.values(&at(treatment, chosen), TEST);
    let (winner, _) = best(runs, [(FREEZE, chosen), (DECAY, chosen)])?;
    let (unrepaired, vanilla, steady) = (test(UNREPAIRED)?, test(VANILLA)?, test(winner)?);
    let spread = |of: &str| format!("deviation over seeds at {chosen}, {of}");
    let what = spread(&format!("{UNREPAIRED} − {VANILLA}"));
    measured.claim(Inequality::spreads(what, unrepaired, vanilla, Limit::Above(0.0)));
    let what = spread(&format!("{VANILLA} − {winner}"));
    measured.claim(Inequality::spreads(what, vanilla, steady, Limit::AtLeast(0.0)));
    let what = format!("accuracy at {chosen}, {winner} − {VANILLA}");
    measured.claim(Inequality::paired(what, steady, vanilla, Limit::AtLeast(0.02)));
    for (treatment, limit) in [(UNREPAIRED, Limit::AtLeast(0.2)), (winner, Limit::AtMost(0.0))] {
        let failed = share(&failed(treatment, highest)?);
        let found = Estimate { mean: failed, standard_error: None };
        let what = format!("share of failed runs at {highest}, {treatment}");
        measured.claim(Inequality::new(what, found, limit));
    }
    for treatment in TREATMENTS {
        let spread = Estimate::spread(test(treatment)?);
        let failed = share(&failed(treatment, highest)?);
        measured.note(format!(
            "{treatment}: deviation {spread} at {chosen}, {:.0} % of runs failed at {highest}",
            100.0 * failed
        ));
    }
    measured.note(format!("{chosen} is where {VANILLA} did best on the development examples"));
    measured.note(TRIED);
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn treatments_differ_in_what_they_are_called_after_alone() {
        let of = |treatment| settings(treatment, "3e-4", 5).unwrap();
        let vanilla = of(VANILLA);
        assert_eq!((vanilla.seed, vanilla.max_steps, vanilla.batch_size), (5, Some(400), Some(16)));
        let adamw = vanilla.update.adamw.clone().unwrap();
        assert!(adamw.bias_correction && adamw.learning_rate == 3e-4 && adamw.weight_decay == 0.0);

        let mut unrepaired = of(UNREPAIRED);
        let bare = unrepaired.update.adamw.as_mut().unwrap();
        assert!(!std::mem::replace(&mut bare.bias_correction, true));
        assert_eq!(unrepaired, vanilla);
        let mut decay = of(DECAY);
        assert_eq!(decay.update.layer_decay.take(), Some(0.8));
        assert_eq!(decay, vanilla);
        let full = |config: &Train| config.params.full.clone().unwrap();
        assert_eq!((full(&of(FREEZE)).freeze_layers, full(&of(ANEW)).reinit_layers), (3, 1));
        assert_eq!((full(&vanilla).freeze_layers, full(&vanilla).reinit_layers), (0, 0));
        for treatment in [FREEZE, ANEW] {
            let mut config = of(treatment);
            config.params = vanilla.params.clone();
            assert_eq!(config, vanilla, "{treatment}");
        }
    }

    #[test]
    fn the_best_is_that_of_the_development_examples() {
        let mut runs = Measured::default();
        for (rate, dev, test) in [("1e-4", 0.6, 0.9), ("3e-4", 0.8, 0.5), ("1e-3", 0.8, 0.7)] {
            runs.add(&at(VANILLA, rate), DEV, dev);
            runs.add(&at(VANILLA, rate), TEST, test);
        }
        let chosen = best(&runs, RATES.map(|rate| (VANILLA, rate))).unwrap();
        assert_eq!(chosen, (VANILLA, "3e-4"));
    }
}
