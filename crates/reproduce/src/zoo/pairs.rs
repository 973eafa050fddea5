//! The zoo of pairs of digits: a net that reads both digits and the style, and a copy of it tuned to
//! each of eight questions.
//!
//! The net is trained on three questions. Then it rests, and heads for the other five are fitted to
//! what it computes. Heads rest from there on: copies differ from the base in their bodies alone.

use luthier_core::{Result, Seed, StateDict};
use serde::Serialize;

use super::{
    digits::{CLASSES, Images, LEFT, RIGHT, STYLE, pairs},
    net::{Shape, is_head},
    train::{Course, adamw, constant, cosine, side_by_side},
};
use crate::Lab;

/// The questions that the base is trained on.
pub const READ: [usize; 3] = [LEFT, RIGHT, STYLE];
/// Every question.
pub const ALL: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

const TRAIN: usize = 40_000;
const VALID: usize = 1500;
const TEST: usize = 3000;
/// Images that heads are fitted to.
const FIT: usize = 8000;

/// Images and the base.
pub struct Base {
    /// Sizes of all nets.
    pub shape: Shape,
    /// The base with all its heads.
    pub weights: StateDict,
    /// To train on.
    pub train: Images,
    /// To choose by.
    pub valid: Images,
    /// To judge by.
    pub test: Images,
}

/// Sizes of a net with so many blocks.
pub fn shape(blocks: usize) -> Shape {
    Shape { input: 160, width: 96, hidden: 192, blocks, heads: CLASSES.to_vec() }
}

/// How the base is made, for the name it is kept under.
#[derive(Serialize)]
struct Made<'a> {
    shape: &'a Shape,
    train: usize,
    fit: usize,
    seed: u64,
    steps: [u64; 2],
}

impl Base {
    /// The base of a seed: made now, or kept from an earlier time.
    pub fn of(lab: &Lab, seed: u64) -> Result<Base> {
        let shape = shape(8);
        let from = Seed(seed).split("pairs");
        let train = pairs(TRAIN, from.split("train"));
        let steps = [700, 400];
        let made = Made { shape: &shape, train: TRAIN, fit: FIT, seed, steps };
        let weights = lab.kept(&format!("pairs {seed}"), &made, || {
            let course = Course {
                shape: &shape,
                images: &train,
                questions: &READ,
                steps: steps[0],
                batch: 128,
                smoothing: 0.0,
                mixup: 0.0,
                seed: from.split("base"),
            };
            let start = shape.random(from.split("weights"))?;
            let read = course.run(&adamw(2e-3, 0.01, cosine(50)), &start, &|_| true)?;
            let fit = train.first(FIT);
            let others: Vec<usize> = ALL.into_iter().filter(|q| !READ.contains(q)).collect();
            let course = Course {
                images: &fit,
                questions: &others,
                steps: steps[1],
                batch: 256,
                seed: from.split("heads"),
                ..course
            };
            course.run(&adamw(3e-3, 0.01, constant()), &read, &is_head)
        })?;
        Ok(Base {
            shape,
            weights,
            train,
            valid: pairs(VALID, from.split("valid")),
            test: pairs(TEST, from.split("test")),
        })
    }

    /// A copy of the base tuned to each question: all but the heads, 250 steps of 96 images.
    pub fn tuned(&self, seed: u64) -> Result<Vec<StateDict>> {
        let update = adamw(1e-3, 0.01, cosine(20));
        side_by_side(&ALL, |question| {
            let course = Course {
                shape: &self.shape,
                images: &self.train,
                questions: &[*question],
                steps: 250,
                batch: 96,
                smoothing: 0.0,
                mixup: 0.0,
                seed: Seed(seed).split("tuned").at(*question as u64),
            };
            course.run(&update, &self.weights, &|name| !is_head(name))
        })
    }

    /// The share of test images that a net answers right, question by question.
    pub fn tested(&self, weights: &StateDict) -> Result<Vec<f64>> {
        self.shape.accuracies(weights, &self.test, &ALL)
    }

    /// The same on the images to choose by.
    pub fn validated(&self, weights: &StateDict) -> Result<Vec<f64>> {
        self.shape.accuracies(weights, &self.valid, &ALL)
    }
}
