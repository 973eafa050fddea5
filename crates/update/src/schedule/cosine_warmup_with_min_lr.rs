//! Half a cosine wave down to a floor, after a warm-up that does not begin at 0.
//!
//! Warm-up `(step + 1) / warmup`, or from `warmup_lr_rate` to 1; then the wave of
//! [`super::CosineWithMinLr`] one step ahead.
//! **Departures**: none.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Now, Schedule, Warmup, check_floor, check_positive, floor, wave};

/// `[train.update.schedule.cosine_warmup_with_min_lr]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CosineWarmupWithMinLr {
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
    /// Where the warm-up begins, as a share of the learning rate.
    pub warmup_lr_rate: Option<f64>,
}

impl Default for CosineWarmupWithMinLr {
    fn default() -> Self {
        CosineWarmupWithMinLr {
            warmup_steps: 0,
            warmup_ratio: 0.0,
            num_cycles: 0.5,
            min_lr: None,
            min_lr_rate: None,
            warmup_lr_rate: None,
        }
    }
}

impl CosineWarmupWithMinLr {
    fn warmup(&self) -> Warmup {
        Warmup { steps: self.warmup_steps, ratio: self.warmup_ratio }
    }
}

impl Schedule for CosineWarmupWithMinLr {
    fn check(&self, at: &str, learning_rate: f64) -> Result<()> {
        self.warmup().check(at)?;
        check_positive(at, "num_cycles", self.num_cycles)?;
        if let Some(share) = self.warmup_lr_rate.filter(|s| !(0.0..=1.0).contains(s)) {
            let what = format!("expected a share between 0 and 1, got {share}");
            return Err(Error::input(format!("{at}.warmup_lr_rate"), what));
        }
        check_floor(at, self.min_lr, self.min_lr_rate, learning_rate)
    }

    fn scale(&self, now: &Now) -> f64 {
        let (step, warmup) = (now.step as f64, self.warmup().resolve(now.total));
        if step < warmup {
            return match self.warmup_lr_rate {
                None => (step + 1.0) / warmup.max(1.0),
                Some(from) => from + (1.0 - from) * step / (warmup - 1.0).max(1.0),
            };
        }
        let floor = floor(self.min_lr, self.min_lr_rate, now.learning_rate);
        let progress = (step - warmup + 1.0) / (now.total as f64 - warmup).max(1.0);
        (wave(self.num_cycles, progress) * (1.0 - floor) + floor).max(0.0)
    }
}
