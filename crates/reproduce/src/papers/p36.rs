//! FIRST (Shum et al. 2024, paper 36): the few likeliest tokens of a teacher, recalibrated.
//!
//! The spec's synthetic classification stands in for answer tokens: 20 classes, `x ~ N(0, I₂₀)`, labels
//! drawn from `softmax(0.8 x W)` with `W ~ 0.9 N(0, 1)`, so that nobody can be sure. A net of two hidden
//! layers of 512 learns 12 000 labels for 12 epochs and is too sure; students of two layers of 256 read
//! the first 3000 inputs for 25 epochs. A class is a token, an example a row of one token, and the loss
//! is the recipe's. Arms: the teacher; a student of the labels; students of the teacher's five likeliest
//! classes as they are, smoothed, and recalibrated with the `c` that `luthier teach --fit` finds on 1500
//! other examples; and recalibrated, with the student's five shares made to sum to 1, or made a softmax
//! like the teacher's. Accuracy and ECE of the whole distribution on 4000 examples, in percent.
//!
//! **Departures**: (1) the spec's net is of torch's layers: weights and biases here begin as those do;
//! (2) its second stage, a language model on questions with wrong labels, is not run.

use candle_core::{Tensor, Var};
use luthier_core::{Batch, Error, Result, Rng, Row, Seed, StateDict, batch::Told};
use luthier_loss::{Given, Objective, Seen, Totals};
use luthier_probe::Calibration;
use luthier_recipe::teacher::{Calib, Fitted, Spoken, fit, likeliest};

use std::sync::Arc;

use crate::{
    Inequality, Lab, Limit, Measured, Paper, recipe,
    zoo::{
        labels::{Labelled, linear},
        train::{adamw, constant, descend},
    },
};

const PUBLISHED: &str = "recipes/distil/first.toml";
const LABELS: &str = "recipes/full/sft.toml";

/// The check.
pub const PAPER: Paper = Paper {
    number: 36,
    title: "FIRST",
    claim: "a student of a teacher's five likeliest tokens, recalibrated, is as accurate as one of the \
        labels, with half its calibration error, and better calibrated than without recalibration",
    recipes: &[PUBLISHED],
    seeds: 3,
    run,
};

const CLASSES: usize = 20;
const INPUTS: usize = 20;
const TOP: usize = 5;
const BATCH: usize = 64;
/// Of Adam, for all nets.
const RATE: f64 = 1e-3;

const TEACHER: &str = "teacher";
const SFT: &str = "labels";
const RAW: &str = "top five as they are";
const FIRST: &str = "FIRST";

/// Students of the teacher by their settings.
const STUDENTS: [(&str, &[&str]); 5] = [
    (RAW, &["calib=none"]),
    ("smoothed", &["calib=label_smoothing"]),
    (FIRST, &[]),
    ("FIRST, five shares", &["student_norm=linear"]),
    ("FIRST, softmax on both sides", &["student_norm=softmax"]),
];

const ACCURACY: &str = "accuracy";
const ECE: &str = "ECE";

/// Examples with a label that nobody can be sure of.
fn examples(n: usize, weights: &[f64], rng: &mut Rng) -> Labelled {
    let logits = |x: &[f64]| -> Vec<f64> {
        let logit = |class: usize| {
            let of = |(i, x): (usize, &f64)| x * weights[i * CLASSES + class];
            0.8 * x.iter().enumerate().map(of).sum::<f64>()
        };
        (0..CLASSES).map(logit).collect()
    };
    Labelled::draw(n, INPUTS, logits, rng)
}

/// An example as a row of one token.
fn row(examples: &Labelled, i: usize) -> Row {
    let (targets, weights) = (vec![examples.labels[i]], vec![1.0]);
    Row { ids: vec![0], targets, weights, example: i, ..Row::default() }
}

/// A net with two hidden layers, as torch begins it: all between `±1/√inputs`.
fn net(width: usize, seed: Seed) -> Result<StateDict> {
    let sizes = [INPUTS, width, width, CLASSES];
    let mut state = StateDict::default();
    for (layer, io) in sizes.windows(2).enumerate() {
        let [w_io, b_o] = linear(io[0], io[1], &mut seed.at(layer as u64).rng())?;
        state.insert(format!("{layer}.weight"), w_io);
        state.insert(format!("{layer}.bias"), b_o);
    }
    Ok(state)
}

fn logits(net: &StateDict, x_ni: &Tensor) -> Result<Tensor> {
    let part = |name: String| {
        net.get(&name).ok_or_else(|| Error::failed(name.clone(), "the net has no such tensor"))
    };
    let mut h = x_ni.clone();
    for layer in 0..3 {
        let (w_io, b_o) = (part(format!("{layer}.weight"))?, part(format!("{layer}.bias"))?);
        h = h.matmul(w_io)?.broadcast_add(b_o)?;
        if layer < 2 {
            h = h.relu()?;
        }
    }
    Ok(h)
}

/// Learns `objective` on rows that stand for `examples`.
fn train(
    start: &StateDict,
    examples: &Labelled,
    rows: &[Row],
    epochs: usize,
    objective: &dyn Objective,
    seed: Seed,
) -> Result<StateDict> {
    let steps = rows.len().div_ceil(BATCH);
    let orders: Vec<Vec<usize>> = (0..epochs)
        .map(|epoch| {
            let mut order: Vec<usize> = (0..rows.len()).collect();
            seed.at(epoch as u64).rng().shuffle(&mut order);
            order
        })
        .collect();
    let gradient = |step: u64, now: &StateDict| {
        let (epoch, at) = (step as usize / steps, step as usize % steps);
        let chosen = &orders[epoch][at * BATCH..rows.len().min((at + 1) * BATCH)];
        let mut vars = StateDict::default();
        let mut learned = Vec::new();
        for (name, tensor) in now.iter() {
            let var = Var::from_tensor(tensor)?;
            vars.insert(name, var.as_tensor().clone());
            learned.push((name.to_string(), var));
        }
        let mut out = Given(logits(&vars, &examples.rows(chosen)?)?);
        let batch = Batch::from_rows(chosen.iter().map(|i| &rows[*i]));
        let step = Totals::of([&batch]);
        let seen = Seen { out: &mut out, teacher: None, batch: &batch, step: &step };
        let loss = (objective.terms(seen)?.sum / objective.normaliser(&[&batch]))?;
        let store = loss.backward()?;
        let found = learned.iter().filter_map(|(name, var)| {
            store.get(var.as_tensor()).map(|g| (name.clone(), g.clone()))
        });
        Ok(found.collect())
    };
    let update = adamw(RATE, 0.0, constant());
    descend(&update, (epochs * steps) as u64, start, gradient, |_, _| Ok(()))
}

/// The logits of all examples, row by row.
fn read(net: &StateDict, examples: &Labelled) -> Result<Vec<Vec<f32>>> {
    let all: Vec<usize> = (0..examples.labels.len()).collect();
    Ok(logits(net, &examples.rows(&all)?)?.to_vec2::<f32>()?)
}

/// What a teacher says of every example.
fn speak(net: &StateDict, examples: &Labelled) -> Result<Vec<Spoken>> {
    let said = read(net, examples)?.into_iter().zip(&examples.labels).map(|(logits, label)| {
        let (best, target) = likeliest(logits, *label, TOP);
        let (logps, ids) = best.into_iter().unzip();
        Spoken { told: Told { k: TOP, ids, logps }, targets: vec![target] }
    });
    Ok(said.collect())
}

fn judge(net: &StateDict, examples: &Labelled) -> Result<Calibration> {
    let answers = read(net, examples)?.into_iter().zip(&examples.labels).map(|(logits, label)| {
        let (best, _) = likeliest(logits, *label, 1);
        (f64::from(best[0].0).exp(), best[0].1 == *label)
    });
    Calibration::of(&answers.collect::<Vec<(f64, bool)>>())
}

fn run(lab: &Lab) -> Result<Measured> {
    let mut measured = Measured::default();
    for seed in lab.seeds() {
        let world = Seed(seed).split("first");
        let weights: Vec<f64> = {
            let mut rng = world.split("weights").rng();
            (0..INPUTS * CLASSES).map(|_| 0.9 * rng.normal()).collect()
        };
        let draw = |name: &str, n| examples(n, &weights, &mut world.split(name).rng());
        let (train_set, valid, test) =
            (draw("train", 12_000), draw("valid", 1500), draw("test", 4000));
        let few = Labelled {
            inputs: INPUTS,
            x: train_set.x[..3000 * INPUTS].to_vec(),
            labels: train_set.labels[..3000].to_vec(),
        };
        let rows = |of: &Labelled| (0..of.labels.len()).map(|i| row(of, i)).collect::<Vec<Row>>();
        let labels = recipe(LABELS, &[])?;
        let labels = labels.loss.objective()?;
        let order = world.split("order");

        let start = net(512, world.split("teacher"))?;
        let teacher = train(
            &start,
            &train_set,
            &rows(&train_set),
            12,
            labels.as_ref(),
            order.split("teacher"),
        )?;
        let found = calibrated(&teacher, &valid)?;
        let said = speak(&teacher, &few)?;
        let taught: Vec<Row> = rows(&few)
            .into_iter()
            .zip(said)
            .map(|(row, said)| Row { teacher: Some(Arc::new(said.told)), ..row })
            .collect();
        let mut add = |arm: &str, net: &StateDict| -> Result<()> {
            let judged = judge(net, &test)?;
            measured.add(arm, ACCURACY, 100.0 * judged.accuracy);
            measured.add(arm, ECE, 100.0 * judged.ece);
            lab.say(&format!(
                "seed {seed}: {arm}: accuracy {:.1}, ECE {:.1}",
                100.0 * judged.accuracy,
                100.0 * judged.ece
            ));
            Ok(())
        };
        add(TEACHER, &teacher)?;
        // All students begin alike and read in one order.
        let start = net(256, world.split("student"))?;
        let order = order.split("student");
        add(SFT, &train(&start, &few, &rows(&few), 25, labels.as_ref(), order)?)?;
        for (arm, set) in STUDENTS {
            let c = format!("c={}", found.fit.value);
            let config = recipe(PUBLISHED, &[set, &[c.as_str()]].concat())?;
            let objective = config.loss.objective()?;
            add(arm, &train(&start, &few, &taught, 25, objective.as_ref(), order)?)?;
        }
        measured.add(FIRST, "c", found.fit.value);
    }
    claims(&mut measured)?;
    Ok(measured)
}

/// `c` on examples that the teacher has not seen.
fn calibrated(teacher: &StateDict, valid: &Labelled) -> Result<Fitted> {
    let rows: Vec<Row> = (0..valid.labels.len()).map(|i| row(valid, i)).collect();
    fit(Calib::TempProb, &rows, &speak(teacher, valid)?)
}

fn claims(measured: &mut Measured) -> Result<()> {
    let half: Vec<f64> = measured.values(SFT, ECE)?.iter().map(|ece| 0.5 * ece).collect();
    let (first, raw) = (measured.values(FIRST, ECE)?, measured.values(RAW, ECE)?);
    let (right, labels) = (measured.values(FIRST, ACCURACY)?, measured.values(SFT, ACCURACY)?);
    let claims = vec![
        Inequality::paired("ECE, FIRST − half of labels", first, &half, Limit::AtMost(0.0)),
        Inequality::paired("ECE, as they are − FIRST", raw, first, Limit::Above(0.0)),
        Inequality::paired("accuracy, FIRST − labels", right, labels, Limit::AtLeast(-0.5)),
        Inequality::paired(
            "ECE, softmax on both sides − FIRST",
            measured.values("FIRST, softmax on both sides", ECE)?,
            first,
            Limit::Above(0.0),
        )
        .aside(),
        Inequality::paired(
            "ECE, smoothed − FIRST",
            measured.values("smoothed", ECE)?,
            first,
            Limit::Above(0.0),
        )
        .aside(),
    ];
    claims.into_iter().for_each(|claim| measured.claim(claim));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_differ_in_what_they_are_named_after() {
        let loss = |set: &[&str]| recipe(PUBLISHED, set).unwrap().loss.distil.unwrap();
        let published = loss(&[]);
        assert_eq!((published.calib, published.tail, published.nll), (Calib::TempProb, false, 0.0));
        let own = loss(&["calib=none"]);
        assert_eq!(own.calib, Calib::None);
        assert_eq!(luthier_loss::Distil { calib: Calib::TempProb, ..own }, published);
        for (_, set) in STUDENTS {
            loss(set).check().unwrap();
        }
    }

    #[test]
    fn labels_are_drawn_from_their_distribution() {
        // One class is certain where its weights are large.
        let mut weights = vec![0.0; INPUTS * CLASSES];
        weights[7] = 50.0;
        let all = examples(400, &weights, &mut Seed(1).rng());
        for (x, label) in all.x.chunks(INPUTS).zip(&all.labels) {
            assert!((x[0] < 0.2 || *label == 7) && (x[0] > -0.2 || *label != 7));
        }
    }
}
