//! Up while a metric improves, down while it does not (GreedyLR, arXiv 2512.14527).
//!
//! More than `patience` improvements in a row: `lr ← min(lr / factor, max_lr)`; as many failures:
//! `lr ← max(lr · factor, min_lr)`. After `reset_start` vain reductions at the floor it starts over.
//! **Departures**: (1) one factor for all groups, as in [`super::ReduceLrOnPlateau`]. (2) transformers bounds
//! the rate by 0.001 and 1, which suits no fine-tuning; here the bounds default to a hundredth and to
//! ten times the learning rate.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Memory, Mode, Now, Schedule, ThresholdMode, check_positive};

/// `[train.update.schedule.greedy]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Greedy {
    /// Whether lower or higher is better.
    pub mode: Mode,
    /// What the rate is multiplied or divided by.
    pub factor: f64,
    /// Observations of one kind in a row that are borne.
    pub patience: u64,
    /// How much better an improvement must be.
    pub threshold: f64,
    /// Whether the threshold is a share or a difference.
    pub threshold_mode: ThresholdMode,
    /// Observations after a reduction that do not count.
    pub cooldown: u64,
    /// Observations after an increase that do not count.
    pub warmup: u64,
    /// The lowest learning rate.
    pub min_lr: Option<f64>,
    /// The highest learning rate.
    pub max_lr: Option<f64>,
    /// Changes of the learning rate up to this size are not made.
    pub eps: f64,
    /// Whether to judge the mean of the latest metrics instead of the latest.
    pub smooth: bool,
    /// How many metrics that mean covers.
    pub window_size: usize,
    /// Reductions at the floor before everything starts over.
    pub reset_start: u64,
}

impl Default for Greedy {
    fn default() -> Self {
        Greedy {
            mode: Mode::Min,
            factor: 0.95,
            patience: 10,
            threshold: 1e-6,
            threshold_mode: ThresholdMode::Abs,
            cooldown: 0,
            warmup: 0,
            min_lr: None,
            max_lr: None,
            eps: 1e-8,
            smooth: false,
            window_size: 50,
            reset_start: 500,
        }
    }
}

impl Schedule for Greedy {
    fn check(&self, at: &str, learning_rate: f64) -> Result<()> {
        if !(0.0..1.0).contains(&self.factor) || self.factor == 0.0 {
            let what = format!("expected above 0 and below 1, got {}", self.factor);
            return Err(Error::input(format!("{at}.factor"), what));
        }
        check_positive(at, "window_size", self.window_size as f64)?;
        let (low, high) = self.bounds(learning_rate);
        if 0.0 <= low && low <= learning_rate && learning_rate <= high {
            return Ok(());
        }
        let what = format!("expected min_lr ≤ {learning_rate} ≤ max_lr, got {low} and {high}");
        Err(Error::input(at, what).hint("the learning rate must lie between its bounds"))
    }

    fn scale(&self, now: &Now) -> f64 {
        now.memory.scale
    }

    fn observe(&self, memory: &mut Memory, metric: f64, learning_rate: f64) {
        let metric = if self.smooth { self.mean(memory, metric) } else { metric };
        if memory.pause > 0 {
            memory.pause -= 1;
            (memory.bad, memory.good) = (0, 0);
            return;
        }
        if self.mode.better(metric, memory.best, self.threshold_mode, self.threshold) {
            memory.best = Some(metric);
            (memory.bad, memory.good) = (0, memory.good + 1);
        } else {
            (memory.bad, memory.good) = (memory.bad + 1, 0);
        }
        let (low, high) = self.bounds(learning_rate);
        let old = learning_rate * memory.scale;
        if memory.good > self.patience {
            let new = (old / self.factor).min(high);
            if new - old > self.eps {
                memory.scale = new / learning_rate;
            }
            (memory.pause, memory.good, memory.at_floor) = (self.warmup, 0, 0);
        } else if memory.bad > self.patience {
            let new = (old * self.factor).max(low);
            if old - new > self.eps {
                memory.scale = new / learning_rate;
            }
            // The floor is reached by this very division, so the comparison is exact.
            if memory.scale <= low / learning_rate {
                memory.at_floor += 1;
            }
            if memory.at_floor >= self.reset_start.max(1) {
                *memory = Memory::default();
            }
            (memory.pause, memory.bad) = (self.cooldown, 0);
        }
    }
}

impl Greedy {
    fn bounds(&self, learning_rate: f64) -> (f64, f64) {
        (self.min_lr.unwrap_or(learning_rate / 100.0), self.max_lr.unwrap_or(learning_rate * 10.0))
    }

    fn mean(&self, memory: &mut Memory, metric: f64) -> f64 {
        memory.window.push(metric);
        if memory.window.len() > self.window_size {
            memory.window.remove(0);
        }
        memory.window.iter().sum::<f64>() / memory.window.len() as f64
    }
}
