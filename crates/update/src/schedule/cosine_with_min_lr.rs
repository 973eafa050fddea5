//! Half a cosine wave down to a floor.
//!
//! `wave · (1 − floor) + floor` with the wave of [`super::Cosine`].
//! **Departures**: none.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{Now, Schedule, Warmup, check_floor, check_positive, floor, wave};

/// `[train.update.schedule.cosine_with_min_lr]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CosineWithMinLr {
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// The same as a share of the run.
    pub warmup_ratio: f64,
    /// Waves over the run; one half goes down once.
    pub num_cycles: f64,
    /// The lowest learning rate.
    pub min_lr: Option<f64>,
    /// The same as a share of the learning rate.
    pub min_lr_rate: Option<f64>,
}

impl Default for CosineWithMinLr {
    fn default() -> Self {
        CosineWithMinLr {
            warmup_steps: 0,
            warmup_ratio: 0.0,
            num_cycles: 0.5,
            min_lr: None,
            min_lr_rate: None,
        }
    }
}

impl CosineWithMinLr {
    fn warmup(&self) -> Warmup {
        Warmup { steps: self.warmup_steps, ratio: self.warmup_ratio }
    }
}

impl Schedule for CosineWithMinLr {
    fn check(&self, at: &str, learning_rate: f64) -> Result<()> {
        self.warmup().check(at)?;
        check_positive(at, "num_cycles", self.num_cycles)?;
        check_floor(at, self.min_lr, self.min_lr_rate, learning_rate)
    }

    fn scale(&self, now: &Now) -> f64 {
        if let Some(scale) = self.warmup().rise(now) {
            return scale;
        }
        let floor = floor(self.min_lr, self.min_lr_rate, now.learning_rate);
        let wave = wave(self.num_cycles, self.warmup().progress(now));
        (wave * (1.0 - floor) + floor).max(0.0)
    }
}
