//! The world of single digits in eight domains: a base trained on all of them, and many tunings of it
//! to one, by settings that are drawn.

use luthier_core::{Result, Seed, StateDict};
use serde::Serialize;

use super::{
    digits::{DOMAINS, Images, TURNED, domain},
    net::{Shape, hits, likelihoods},
    train::{Course, adamw, cosine, side_by_side},
};
use crate::{Lab, stats::mean};

/// Images of each domain that the base is trained on.
const READ: usize = 6000;
/// Images of the domain that is tuned to.
const TUNE: usize = 1500;
const VALID: usize = 1500;
const TEST: usize = 3000;
/// Test images of each other domain.
const OTHERS: usize = 500;

/// Images and the base.
pub struct World {
    /// Sizes of all nets.
    pub shape: Shape,
    /// The base.
    pub base: StateDict,
    /// To tune on: digits that are turned.
    pub train: Images,
    /// To choose by, of the same domain.
    pub valid: Images,
    /// To judge by, of the same domain.
    pub test: Images,
    /// Those of the seven other domains.
    pub others: Vec<Images>,
}

/// The settings of a tuning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    /// Peak of AdamW's rate.
    pub learning_rate: f64,
    /// AdamW's decay.
    pub weight_decay: f64,
    /// Steps of 64 images.
    pub steps: u64,
    /// Label smoothing.
    pub smoothing: f64,
    /// Mixup's `a`.
    pub mixup: f64,
    /// Of the order of the images.
    pub seed: Seed,
}

/// Sizes of the nets of this world.
pub fn shape() -> Shape {
    Shape { input: 144, width: 96, hidden: 192, blocks: 6, heads: vec![10] }
}

/// How the base is made, for the name it is kept under.
#[derive(Serialize)]
struct Made<'a> {
    shape: &'a Shape,
    read: usize,
    seed: u64,
    steps: u64,
}

impl World {
    /// The world of a seed; its base is made now, or kept from an earlier time.
    pub fn of(lab: &Lab, seed: u64) -> Result<World> {
        let (shape, from) = (shape(), Seed(seed).split("domains"));
        let made = Made { shape: &shape, read: READ, seed, steps: 900 };
        let base = lab.kept(&format!("domains {seed}"), &made, || {
            let of = |number: usize| domain(number, READ, from.split("read").at(number as u64));
            let images = Images::join(&(0..DOMAINS).map(of).collect::<Vec<_>>());
            from_scratch(&shape, &images, from.split("base"))
        })?;
        let others = (0..DOMAINS).filter(|number| *number != TURNED);
        let others = others.map(|n| domain(n, OTHERS, from.split("others").at(n as u64)));
        Ok(World {
            base,
            train: domain(TURNED, TUNE, from.split("train")),
            valid: domain(TURNED, VALID, from.split("valid")),
            test: domain(TURNED, TEST, from.split("test")),
            others: others.collect(),
            shape,
        })
    }

    /// The base after a tuning.
    pub fn tuned(&self, setting: &Setting) -> Result<StateDict> {
        let course = Course {
            shape: &self.shape,
            images: &self.train,
            questions: &[0],
            steps: setting.steps,
            batch: 64,
            smoothing: setting.smoothing,
            mixup: setting.mixup,
            seed: setting.seed,
        };
        let update = adamw(setting.learning_rate, setting.weight_decay, cosine(20));
        course.run(&update, &self.base, &|_| true)
    }

    /// The base after each of several tunings, side by side.
    pub fn sweep(&self, settings: &[Setting]) -> Result<Vec<StateDict>> {
        side_by_side(settings, |setting| self.tuned(setting))
    }

    /// The share of images of one set that a net answers right.
    pub fn right(&self, weights: &StateDict, images: &Images) -> Result<f64> {
        Ok(self.shape.accuracies(weights, images, &[0])?[0])
    }

    /// The mean over the seven other domains of the share that a net answers right.
    pub fn outside(&self, weights: &StateDict) -> Result<f64> {
        let shares = self.others.iter().map(|images| self.right(weights, images));
        Ok(mean(&shares.collect::<Result<Vec<f64>>>()?))
    }

    /// The same for the mean of the likelihoods or of the logits of several nets.
    pub fn ensemble(&self, nets: &[&StateDict], images: &Images, of: Mean) -> Result<f64> {
        let mut sum = Vec::new();
        for net in nets {
            let mut logits = self.shape.logits(net, images, &[0])?.remove(0);
            if of == Mean::Likelihoods {
                likelihoods(&mut logits, self.shape.heads[0]);
            }
            sum.resize(logits.len(), 0f32);
            sum.iter_mut().zip(&logits).for_each(|(sum, x)| *sum += x);
        }
        let hits = hits(&sum, &images.answers[0]);
        Ok(hits.iter().filter(|hit| **hit).count() as f64 / hits.len() as f64)
    }
}

/// What an ensemble takes the mean of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mean {
    /// What goes into the softmax.
    Logits,
    /// What comes out of it.
    Likelihoods,
}

/// A net trained from a random start: 900 steps of 128 images.
pub fn from_scratch(shape: &Shape, images: &Images, seed: Seed) -> Result<StateDict> {
    let course = Course {
        shape,
        images,
        questions: &[0],
        steps: 900,
        batch: 128,
        smoothing: 0.0,
        mixup: 0.0,
        seed: seed.split("order"),
    };
    course.run(&adamw(2e-3, 0.01, cosine(20)), &shape.random(seed.split("weights"))?, &|_| true)
}

/// Settings as one would try them: the rate from 2e-4 to 4e-3 and the decay from 1e-4 to 0.1 by their
/// logarithms, one of three numbers of steps, smoothing and Mixup in a third of all.
pub fn drawn(n: usize, steps: [u64; 3], seed: Seed) -> Vec<Setting> {
    let one = |i: usize| {
        let mut rng = seed.at(i as u64).rng();
        let mut between = |from: f64, to: f64| (from.ln() + rng.uniform() * (to / from).ln()).exp();
        let (learning_rate, weight_decay) = (between(2e-4, 4e-3), between(1e-4, 0.1));
        Setting {
            learning_rate,
            weight_decay,
            steps: steps[rng.below(3)],
            smoothing: [0.0, 0.0, 0.1][rng.below(3)],
            mixup: [0.0, 0.0, 0.4][rng.below(3)],
            seed: seed.split("order").at(i as u64),
        }
    };
    (0..n).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_drawn_from_where_they_should_be() {
        let all = drawn(300, [100, 200, 300], Seed(1));
        assert!(all.iter().all(|s| (2e-4..=4e-3).contains(&s.learning_rate)));
        assert!(all.iter().all(|s| (1e-4..=0.1).contains(&s.weight_decay)));
        let low = all.iter().filter(|s| s.learning_rate < 8.944e-4).count();
        assert!((120..180).contains(&low), "half below the geometric mean: {low}");
        let smoothed = all.iter().filter(|s| s.smoothing > 0.0).count();
        assert!((70..130).contains(&smoothed), "{smoothed}");
        assert!([100, 200, 300].iter().all(|n| all.iter().any(|s| s.steps == *n)));
        assert_eq!(all, drawn(300, [100, 200, 300], Seed(1)));
        assert_ne!(all[0].seed, all[1].seed);
    }
}
