//! Down when a metric stops improving.
//!
//! After more than `patience` observations in a row without an improvement: `lr ← max(lr · factor, min_lr)`.
//! **Departures**: (1) one factor for all groups: `min_lr` bounds the optimizer's learning rate, groups keep
//! their proportion to it.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Memory, Mode, Now, Schedule, ThresholdMode};

/// `[train.update.schedule.reduce_lr_on_plateau]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReduceLrOnPlateau {
    /// Whether lower or higher is better.
    pub mode: Mode,
    /// What the rate is multiplied by.
    pub factor: f64,
    /// Observations without an improvement that are borne.
    pub patience: u64,
    /// How much better an improvement must be.
    pub threshold: f64,
    /// Whether the threshold is a share or a difference.
    pub threshold_mode: ThresholdMode,
    /// Observations after a reduction that do not count.
    pub cooldown: u64,
    /// The lowest learning rate.
    pub min_lr: f64,
    /// Changes of the learning rate up to this size are not made.
    pub eps: f64,
}

impl Default for ReduceLrOnPlateau {
    fn default() -> Self {
        ReduceLrOnPlateau {
            mode: Mode::Min,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            threshold_mode: ThresholdMode::Rel,
            cooldown: 0,
            min_lr: 0.0,
            eps: 1e-8,
        }
    }
}

impl Schedule for ReduceLrOnPlateau {
    fn check(&self, at: &str, _learning_rate: f64) -> Result<()> {
        if !(0.0..1.0).contains(&self.factor) || self.factor == 0.0 {
            let what = format!("expected above 0 and below 1, got {}", self.factor);
            return Err(Error::input(format!("{at}.factor"), what));
        }
        if self.min_lr.is_finite() && self.min_lr >= 0.0 {
            return Ok(());
        }
        let what = format!("expected at least 0, got {}", self.min_lr);
        Err(Error::input(format!("{at}.min_lr"), what))
    }

    fn scale(&self, now: &Now) -> f64 {
        now.memory.scale
    }

    fn observe(&self, memory: &mut Memory, metric: f64, learning_rate: f64) {
        if self.mode.better(metric, memory.best, self.threshold_mode, self.threshold) {
            memory.best = Some(metric);
            memory.bad = 0;
        } else {
            memory.bad += 1;
        }
        if memory.pause > 0 {
            memory.pause -= 1;
            memory.bad = 0;
        }
        if memory.bad > self.patience {
            let old = learning_rate * memory.scale;
            let new = (old * self.factor).max(self.min_lr);
            if old - new > self.eps {
                memory.scale = new / learning_rate;
            }
            memory.pause = self.cooldown;
            memory.bad = 0;
        }
    }
}
