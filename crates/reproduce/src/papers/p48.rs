//! BANG and spurious feature diversification (Lin et al. 2024, paper 48): why averages of models are
//! better where they were not tuned, and how to tune so that they are.
//!
//! (1) The paper's theory, counted, against 20,000 draws. (2) Digits with 32 patches of colour that name
//! the answer in training and lie with chance `p` in testing; four nets that each see ten patches: one,
//! two averaged, four averaged, and two that see all patches and differ in their start. (3) A net that
//! knows digits in eight domains (`zoo::domains`) is tuned to one of them, plainly, with label smoothing
//! 0.1, with Mixup 0.4, and with both (BANG); base and tuned weights are averaged at eleven shares. OOD is
//! the mean accuracy over the seven other domains.
//!
//! **Departures**: (1) the gelu is its tanh form; (2) nets of (2) are trained by AdamW without decay, which
//! is Adam; (3) "equal accuracy on the domain" is that of plain averaging at a share of 0.7, which BANG's
//! curve reaches on a line between two shares.

use luthier_core::{Result, Seed, StateDict};
use luthier_probe::diversity::{Average, BINS, Cells, Pair, calibration};

use crate::{
    Estimate, Inequality, Lab, Limit, Measured, Paper,
    stats::mean,
    zoo::{
        digits::Images,
        domains::{Setting, World},
        edit::between,
        net::{hits, likelihoods},
        train::side_by_side,
    },
};

mod colors;

/// The check.
pub const PAPER: Paper = Paper {
    number: 48,
    title: "BANG and spurious feature diversification",
    claim: "models that lean on different cues are right together where each is wrong; and a base \
        averaged with a tuning that is not over-confident keeps more of what it knew",
    recipes: &["recipes/merge/wise_ft.yaml"],
    seeds: 10,
    run,
};

const ONE: &str = "better of two";
const TWO: &str = "two averaged";
const FOUR: &str = "four averaged";
const STARTS: &str = "two averaged, starts alone";

const PLAIN: &str = "plain";
const BANG: &str = "BANG";
/// Arm, label smoothing, Mixup.
const TUNINGS: [(&str, f64, f64); 4] = [
    (PLAIN, 0.0, 0.0),
    ("BANG, smoothing alone", 0.1, 0.0),
    ("BANG, Mixup alone", 0.0, 0.4),
    (BANG, 0.1, 0.4),
];
/// The share of the tuned weights at which plain averaging is compared.
const LEVEL: usize = 7;
const STEPS: usize = 10;

const DRAWS: &str = "furthest from the count";
const INSIDE: &str = "domain, tuned";
const OUTSIDE: &str = "OOD, tuned";
const CONFIDENCE: &str = "OOD confidence, tuned";
const EQUAL: &str = "OOD at equal accuracy";
const HALF_INSIDE: &str = "domain, half";
const HALF_OUTSIDE: &str = "OOD, half";

fn run(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        theory(seed, &mut measured)?;
        colored(seed, &mut measured)?;
        tuned(lab, seed, &mut measured)?;
        lab.say(&format!("seed {seed}: {}", told(&measured)?));
    }
    claims(&mut measured)?;
    measured.note(
        "BANG is not tried on (2): with no error left from a few patches, smoothing makes a lone net use \
        fewer cues, says the spec",
    );
    Ok(measured)
}

fn told(measured: &Measured) -> Result<String> {
    let last = |arm: &str, figure: &str| -> Result<f64> {
        let all = measured.values(arm, figure)?;
        Ok(all[all.len() - 1])
    };
    let color = |arm: &'static str| -> Result<String> {
        Ok(format!("{arm} {:.3}", last(arm, &right(0.8))?))
    };
    let bang = |arm: &'static str| -> Result<String> {
        Ok(format!(
            "{arm} {:.3}/{:.3}, equal {:.3}",
            last(arm, INSIDE)?,
            last(arm, OUTSIDE)?,
            last(arm, EQUAL)?
        ))
    };
    let mut all = [ONE, TWO, FOUR].map(color).into_iter().collect::<Result<Vec<String>>>()?;
    all.extend([PLAIN, BANG].map(bang).into_iter().collect::<Result<Vec<String>>>()?);
    Ok(all.join(", "))
}

fn right(p: f64) -> String {
    format!("right at p = {p}")
}

fn together(p: f64) -> String {
    format!("FFT − TTF at p = {p}")
}

fn claims(measured: &mut Measured) -> Result<()> {
    let of = |arm: &str, figure: &str| measured.values(arm, figure);
    let less = |what: &str,
                (arm, minus): (&str, &str),
                figure: &str,
                limit: Limit|
     -> Result<Inequality> {
        Ok(Inequality::paired(what, of(arm, figure)?, of(minus, figure)?, limit))
    };
    let alone = |what: &str, arm: &str, figure: &str, limit: Limit| -> Result<Inequality> {
        Ok(Inequality::new(what, Estimate::of(of(arm, figure)?), limit))
    };
    let claims = [
        alone(
            "draws of the theory, furthest from the count",
            "theory",
            DRAWS,
            Limit::AtMost(0.01),
        )?,
        less(
            "two less the better of them, p = 0.8",
            (TWO, ONE),
            &right(0.8),
            Limit::AtLeast(0.05),
        )?,
        less(
            "two less the better of them, p = 0.9",
            (TWO, ONE),
            &right(0.9),
            Limit::AtLeast(0.08),
        )?,
        less("four less two, p = 0.8", (FOUR, TWO), &right(0.8), Limit::Above(0.0))?,
        less("four less two, p = 0.9", (FOUR, TWO), &right(0.9), Limit::Above(0.0))?,
        alone("FFT − TTF of two, p = 0.9", TWO, &together(0.9), Limit::Above(0.0))?,
        less("OOD at equal accuracy, BANG − plain", (BANG, PLAIN), EQUAL, Limit::AtLeast(0.015))?,
        less("OOD confidence, BANG − plain", (BANG, PLAIN), CONFIDENCE, Limit::AtMost(-0.1))?,
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

/// The theory's counts against draws.
fn theory(seed: u64, measured: &mut Measured) -> Result<()> {
    let pair = Pair {
        invariant: [2, 2],
        spurious: [3, 3],
        shared_invariant: 0,
        shared_spurious: 0,
        scale: 1.0,
    };
    let mut votes = vec![pair.first(3, 0.9)];
    for average in [Average::Outputs, Average::Weights] {
        for pair in [
            pair,
            Pair { scale: 3.0, ..pair },
            Pair { shared_spurious: 1, ..pair },
            Pair { shared_invariant: 2, ..pair },
        ] {
            votes.push(pair.average(average, 3, 0.9)?);
        }
    }
    let mut furthest = 0f64;
    for (i, votes) in votes.iter().enumerate() {
        let drawn = votes.drawn(20_000, Seed(seed).split("votes").at(i as u64))?;
        furthest = furthest.max((votes.accuracy()? - drawn).abs());
    }
    measured.add("theory", DRAWS, furthest);
    Ok(())
}

/// Nets on colours that lie.
fn colored(seed: u64, measured: &mut Measured) -> Result<()> {
    let seed = Seed(seed).split("colors");
    let train = colors::drawn(4000, 0.0, seed.split("train"));
    let nets = side_by_side(&[0u64, 1, 2, 3, 4, 5], |i| {
        let net = seed.split("net").at(*i);
        if *i < 4 {
            colors::Net::with_patches(&train, net)
        } else {
            colors::Net::with_all(&train, net)
        }
    })?;
    for p in [0.7, 0.8, 0.9] {
        let test = colors::drawn(4000, p, seed.split("test").at((p * 10.0) as u64));
        let logits: Vec<Vec<f32>> =
            nets.iter().map(|net| net.logits(&test)).collect::<Result<_>>()?;
        let hit = |nets: &[usize]| {
            let mut sum = vec![0f32; logits[0].len()];
            for net in nets {
                sum.iter_mut().zip(&logits[*net]).for_each(|(sum, x)| *sum += x);
            }
            hits(&sum, &test.answers)
        };
        let share = |hits: &[bool]| crate::claim::share(hits);
        let (first, second, two) = (hit(&[0]), hit(&[1]), hit(&[0, 1]));
        measured.add(ONE, &right(p), share(&first).max(share(&second)));
        measured.add(TWO, &right(p), share(&two));
        measured.add(FOUR, &right(p), share(&hit(&[0, 1, 2, 3])));
        measured.add(STARTS, &right(p), share(&hit(&[4, 5])));
        let cells = Cells::of(&first, &second, &two)?;
        measured.add(TWO, &together(p), cells.net());
    }
    Ok(())
}

/// Accuracy on the domain tuned to, and on the others, by the share of the tuned weights.
type Curve = Vec<(f64, f64)>;

/// The accuracy on the others where the curve first reaches `inside`.
fn at_equal(curve: &Curve, inside: f64) -> f64 {
    for pair in curve.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        if before.0 >= inside {
            return before.1;
        }
        if after.0 >= inside {
            let share = (inside - before.0) / (after.0 - before.0);
            return before.1 + share * (after.1 - before.1);
        }
    }
    // Never: the best that it has there.
    let best = curve.iter().copied().max_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or(f64::NAN, |point| point.1)
}

fn tuned(lab: &Lab, seed: u64, measured: &mut Measured) -> Result<()> {
    let world = World::of(lab, seed)?;
    let settings = TUNINGS.map(|(_, smoothing, mixup)| Setting {
        learning_rate: 1e-3,
        weight_decay: 0.01,
        steps: 300,
        smoothing,
        mixup,
        seed: Seed(seed).split("bang"),
    });
    let nets = world.sweep(&settings)?;
    let curves = side_by_side(&nets, |net| -> Result<Curve> {
        let at = |step: usize| {
            let net = between(&world.base, net, step as f64 / STEPS as f64)?;
            Ok((world.right(&net, &world.test)?, world.outside(&net)?))
        };
        (0..=STEPS).map(at).collect()
    })?;
    let level = curves[0][LEVEL].0;
    for (((arm, ..), net), curve) in TUNINGS.iter().zip(&nets).zip(&curves) {
        measured.add(arm, INSIDE, curve[STEPS].0);
        measured.add(arm, OUTSIDE, curve[STEPS].1);
        measured.add(arm, HALF_INSIDE, curve[STEPS / 2].0);
        measured.add(arm, HALF_OUTSIDE, curve[STEPS / 2].1);
        measured.add(arm, CONFIDENCE, confidence(&world, net)?);
        measured.add(
            arm,
            EQUAL,
            if *arm == PLAIN { curve[LEVEL].1 } else { at_equal(curve, level) },
        );
    }
    measured.add("base", INSIDE, curves[0][0].0);
    measured.add("base", OUTSIDE, curves[0][0].1);
    Ok(())
}

/// The mean over the other domains of how sure a net is there.
fn confidence(world: &World, net: &StateDict) -> Result<f64> {
    let of = |images: &Images| {
        let mut likely = world.shape.logits(net, images, &[0])?.remove(0);
        likelihoods(&mut likely, world.shape.heads[0]);
        Ok(calibration(&likely, &images.answers[0], BINS)?.confidence)
    };
    Ok(mean(&world.others.iter().map(of).collect::<Result<Vec<f64>>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_are_compared_where_they_do_the_task_alike() {
        let curve = vec![(0.7, 0.8), (0.8, 0.78), (0.9, 0.6), (0.88, 0.5)];
        assert!((at_equal(&curve, 0.85) - 0.69).abs() < 1e-9);
        assert_eq!((at_equal(&curve, 0.6), at_equal(&curve, 0.95)), (0.8, 0.6));
    }
}
