//! Transformer Copilot (Zou et al. 2025, paper 40): a second model learns the errors of the one that is
//! tuned, beside it, and corrects its probabilities.
//!
//! The spec's first level, the mathematics of the joint loop: `x ~ N(0, I₂₀)`, ten classes drawn from
//! `softmax(6 T(x))` with `T` a random net of 32 tanh. The pilot is a linear softmax, the copilot a net of
//! two hidden layers of 128 on `x` and the pilot's logits. Step by step: the pilot's pass, its error
//! vectors as they are before the step, its own step on cross-entropy; then the copilot's step on the
//! root of the mean squared distance to these errors. 12 000 examples, six epochs, 64 at a time, Adam
//! with 3e-3 for both. On 4000 examples: the squared error `‖1[y] − p̃‖²` and the accuracy of
//! `p̃ = p̂ + λ f`; the same with the copilot shown another example's `x` (control); and with noisier
//! labels, `softmax(2 T(x))` of 5000 examples.
//!
//! **Departures**: (1) only the first level is run: the second asks for a copilot that was pretrained,
//! and that of `[train.copilot]`, made of transformer blocks, begins from scratch; (2) the weights of `T` are torch's of a linear layer,
//! times three, without biases; (3) squared error and accuracy are of `p̃` as it is, numbers below 0
//! included, as the spec's pilot has them.

use candle_core::{Tensor, Var};
use luthier_core::{Error, Param, Result, Rng, Seed, StateDict, model::gather_logp};
use luthier_loss::copilot::{distance, errors};
use luthier_update::{Start, Stepper};

use crate::{
    Inequality, Lab, Limit, Measured, Paper,
    zoo::{
        labels::{Labelled, linear, softmax},
        train::{adamw, constant},
    },
};

/// The check.
pub const PAPER: Paper = Paper {
    number: 40,
    title: "Transformer Copilot",
    claim: "a copilot that learned the pilot's errors as they came corrects its probabilities: the \
        squared error falls and accuracy rises, and with another example's input it does harm",
    recipes: &[],
    seeds: 3,
    run,
};

const INPUTS: usize = 20;
const CLASSES: usize = 10;
const HIDDEN: usize = 128;
const BATCH: usize = 64;
const EPOCHS: usize = 6;
const TEST: usize = 4000;
/// Of Adam, for both.
const RATE: f64 = 3e-3;

const PILOT: &str = "pilot (λ = 0)";
const HALF: &str = "λ = 0.5";
const WHOLE: &str = "λ = 1";
const CONTROL: &str = "λ = 0.5, another's input";
const SQUARES: &str = "squared error";
const ACCURACY: &str = "accuracy";

/// The net that labels are drawn by.
struct Truth {
    hidden: Vec<f64>,
    out: Vec<f64>,
    sharp: f64,
}

impl Truth {
    const WIDTH: usize = 32;

    fn new(sharp: f64, rng: &mut Rng) -> Self {
        let mut draw = |n: usize, inputs: usize| -> Vec<f64> {
            let bound = 3.0 / (inputs as f64).sqrt();
            (0..n).map(|_| bound * (2.0 * rng.uniform() - 1.0)).collect()
        };
        let hidden = draw(INPUTS * Self::WIDTH, INPUTS);
        Truth { hidden, out: draw(Self::WIDTH * CLASSES, Self::WIDTH), sharp }
    }

    fn draw(&self, n: usize, rng: &mut Rng) -> Labelled {
        let through = |x: &[f64], w: &[f64], o: usize| -> Vec<f64> {
            let of = |j: usize| x.iter().enumerate().map(|(i, x)| x * w[i * o + j]).sum();
            (0..o).map(of).collect()
        };
        let logits = |x: &[f64]| -> Vec<f64> {
            let h: Vec<f64> =
                through(x, &self.hidden, Self::WIDTH).iter().map(|h: &f64| h.tanh()).collect();
            through(&h, &self.out, CLASSES).iter().map(|logit| self.sharp * logit).collect()
        };
        Labelled::draw(n, INPUTS, logits, rng)
    }
}

/// A net of linear layers with relu between them, as torch begins it, and its optimizer.
struct Net {
    layers: Vec<[Var; 2]>,
    params: Vec<Param>,
    stepper: Stepper,
}

impl Net {
    fn new(sizes: &[usize], steps: u64, seed: Seed) -> Result<Self> {
        let (mut layers, mut params) = (Vec::new(), Vec::new());
        for (layer, io) in sizes.windows(2).enumerate() {
            let [w_io, b_o] = linear(io[0], io[1], &mut seed.at(layer as u64).rng())?;
            let both = [Var::from_tensor(&w_io)?, Var::from_tensor(&b_o)?];
            params.push(Param::whole(format!("{layer}.weight"), both[0].clone()));
            params.push(Param::whole(format!("{layer}.bias"), both[1].clone()));
            layers.push(both);
        }
        let stepper = Stepper::new(&adamw(RATE, 0.0, constant()), &params, &Start::steps(steps))?;
        Ok(Net { layers, params, stepper })
    }

    fn read(&self, x_ni: &Tensor) -> Result<Tensor> {
        let mut h = x_ni.clone();
        for (i, [w_io, b_o]) in self.layers.iter().enumerate() {
            h = h.matmul(w_io)?.broadcast_add(b_o)?;
            if i + 1 < self.layers.len() {
                h = h.relu()?;
            }
        }
        Ok(h)
    }

    fn learn(&mut self, loss: &Tensor) -> Result<()> {
        let store = loss.backward()?;
        let found: StateDict = self
            .params
            .iter()
            .filter_map(|p| Some((p.name.clone(), store.get(p.var.as_tensor())?.clone())))
            .collect();
        self.stepper.step(&|name, _| found.get(name).cloned())?;
        Ok(())
    }
}

/// Both after the joint loop; without a copilot the pilot alone.
fn joint(examples: &Labelled, seed: Seed, with_copilot: bool) -> Result<(Net, Net)> {
    let n = examples.labels.len();
    let steps = n.div_ceil(BATCH);
    let all = (EPOCHS * steps) as u64;
    let mut pilot = Net::new(&[INPUTS, CLASSES], all, seed.split("pilot"))?;
    let sizes = [INPUTS + CLASSES, HIDDEN, HIDDEN, CLASSES];
    let mut copilot = Net::new(&sizes, all, seed.split("copilot"))?;
    for epoch in 0..EPOCHS {
        let mut order: Vec<usize> = (0..n).collect();
        seed.split("order").at(epoch as u64).rng().shuffle(&mut order);
        for chosen in order.chunks(BATCH) {
            let labels: Vec<u32> = chosen.iter().map(|i| examples.labels[*i]).collect();
            let x_ni = examples.rows(chosen)?;
            let logits_nv = pilot.read(&x_ni)?;
            // The mistake log: what the pilot read and said before it learned from it.
            let (context, log) = (context(&x_ni, &logits_nv)?, errors(&logits_nv, &labels)?);
            pilot.learn(&gather_logp(&logits_nv, &labels)?.mean_all()?.neg()?)?;
            if with_copilot {
                copilot.learn(&distance(&copilot.read(&context)?, &log)?)?;
            }
        }
    }
    Ok((pilot, copilot))
}

/// What a copilot reads: a constant.
fn context(x_ni: &Tensor, logits_nv: &Tensor) -> Result<Tensor> {
    Ok(Tensor::cat(&[x_ni, &logits_nv.detach()], 1)?)
}

/// Mean squared error and accuracy of `p̂ + λ f`.
fn judged(p_nv: &[Vec<f64>], f_nv: &[Vec<f32>], labels: &[u32], lambda: f64) -> [f64; 2] {
    let (mut squares, mut right) = (0.0, 0.0);
    for ((p, f), label) in p_nv.iter().zip(f_nv).zip(labels) {
        let moved: Vec<f64> = p.iter().zip(f).map(|(p, f)| p + lambda * f64::from(*f)).collect();
        let gold = |v: usize| f64::from(u8::from(v == *label as usize));
        squares += moved.iter().enumerate().map(|(v, p)| (gold(v) - p).powi(2)).sum::<f64>();
        let top = moved.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        right += f64::from(u8::from(moved.iter().position(|p| *p == top) == Some(*label as usize)));
    }
    [squares, right].map(|sum| sum / labels.len() as f64)
}

/// Softmax of rows.
fn probabilities(logits_nv: &Tensor) -> Result<Vec<Vec<f64>>> {
    let all = |row: Vec<f32>| softmax(&row.into_iter().map(f64::from).collect::<Vec<f64>>());
    Ok(logits_nv.to_vec2::<f32>()?.into_iter().map(all).collect())
}

/// What a pilot and its copilot make of test examples.
struct Exam {
    p_nv: Vec<Vec<f64>>,
    f_nv: Vec<Vec<f32>>,
    /// With the input of the example after.
    other_nv: Vec<Vec<f32>>,
    labels: Vec<u32>,
}

impl Exam {
    fn of(pilot: &Net, copilot: &Net, test: Labelled) -> Result<Self> {
        let n = test.labels.len();
        let own = test.rows(&(0..n).collect::<Vec<_>>())?;
        let others = test.rows(&(1..n).chain([0]).collect::<Vec<_>>())?;
        let logits_nv = pilot.read(&own)?;
        let said = |x_ni: &Tensor| -> Result<Vec<Vec<f32>>> {
            Ok(copilot.read(&context(x_ni, &logits_nv)?)?.to_vec2()?)
        };
        let (f_nv, other_nv) = (said(&own)?, said(&others)?);
        Ok(Exam { p_nv: probabilities(&logits_nv)?, f_nv, other_nv, labels: test.labels })
    }

    fn with(&self, lambda: f64) -> [f64; 2] {
        judged(&self.p_nv, &self.f_nv, &self.labels, lambda)
    }
}

fn run(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let seeds = Seed(seed).split("copilot");
        for (sharp, n, after) in [(6.0, 12_000, ""), (2.0, 5000, ", noisier labels")] {
            let truth = Truth::new(sharp, &mut seeds.split("truth").rng());
            let examples = truth.draw(n, &mut seeds.split("train").rng());
            let (pilot, copilot) = joint(&examples, seeds, true)?;
            let (alone, _) = joint(&examples, seeds, false)?;
            same(&pilot, &alone)?;
            let exam =
                Exam::of(&pilot, &copilot, truth.draw(TEST, &mut seeds.split("test").rng()))?;
            let arms = [
                (PILOT, exam.with(0.0)),
                ("λ = 0.3", exam.with(0.3)),
                (HALF, exam.with(0.5)),
                ("λ = 0.8", exam.with(0.8)),
                (WHOLE, exam.with(1.0)),
                (CONTROL, judged(&exam.p_nv, &exam.other_nv, &exam.labels, 0.5)),
            ];
            for (arm, [squares, accuracy]) in arms {
                let arm = format!("{arm}{after}");
                measured.add(&arm, SQUARES, squares);
                measured.add(&arm, ACCURACY, accuracy);
                lab.say(&format!("seed {seed}: {arm}: {squares:.3}, {accuracy:.3}"));
            }
        }
    }
    claims(&mut measured)?;
    Ok(measured)
}

/// The pilot never hears of its copilot.
fn same(pilot: &Net, alone: &Net) -> Result<()> {
    for (one, other) in pilot.params.iter().zip(&alone.params) {
        let flat = |p: &Param| p.var.flatten_all()?.to_vec1::<f32>();
        if flat(one)? != flat(other)? {
            return Err(Error::failed("pilot", "a copilot beside it has changed its weights"));
        }
    }
    Ok(())
}

fn claims(measured: &mut Measured) -> Result<()> {
    // In all seeds: the worst of them decides.
    let worst = |of: &str, minus: &str, figure: &str, sign: f64| -> Result<Vec<f64>> {
        let (of, minus) = (measured.values(of, figure)?, measured.values(minus, figure)?);
        let least = of.iter().zip(minus).map(|(a, b)| sign * (a - b)).fold(f64::INFINITY, f64::min);
        Ok(vec![least])
    };
    let none = [0.0];
    let essential =
        |what: &str, of: Vec<f64>| Inequality::paired(what, &of, &none, Limit::Above(0.0));
    let claims = vec![
        essential("squared error, pilot − λ = 0.5, worst seed", worst(PILOT, HALF, SQUARES, 1.0)?),
        essential("accuracy, λ = 0.5 − pilot, worst seed", worst(HALF, PILOT, ACCURACY, 1.0)?),
        essential(
            "accuracy, pilot − another's input, worst seed",
            worst(PILOT, CONTROL, ACCURACY, 1.0)?,
        ),
        essential("accuracy, λ = 1 − pilot, worst seed", worst(WHOLE, PILOT, ACCURACY, 1.0)?)
            .aside(),
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_perfect_copilot_gives_the_answers_and_none_the_pilot() {
        let logits = Tensor::new(&[[0.3f32, -1.0, 0.2], [0.0, 2.0, 1.0]], &Device::Cpu).unwrap();
        let labels = [1, 2];
        let l_nv = errors(&logits, &labels).unwrap().to_vec2::<f32>().unwrap();
        let p_nv = probabilities(&logits).unwrap();
        let [squares, accuracy] = judged(&p_nv, &l_nv, &labels, 1.0);
        assert!(squares < 1e-12 && accuracy == 1.0, "{squares} {accuracy}");
        let [squares, accuracy] = judged(&p_nv, &l_nv, &labels, 0.0);
        let own: f64 = l_nv.iter().flatten().map(|l| f64::from(*l).powi(2)).sum::<f64>() / 2.0;
        assert!((squares - own).abs() < 1e-6 && accuracy == 0.0);
    }

    #[test]
    fn the_pilot_is_the_same_with_and_without() {
        let truth = Truth::new(6.0, &mut Seed(1).rng());
        let examples = truth.draw(200, &mut Seed(2).rng());
        let (pilot, copilot) = joint(&examples, Seed(3), true).unwrap();
        let (alone, untrained) = joint(&examples, Seed(3), false).unwrap();
        same(&pilot, &alone).unwrap();
        assert!(same(&copilot, &untrained).is_err());
    }
}
