//! A power of the remaining share, down to `lr_end`.
//!
//! `((lr − lr_end) · (1 − progress)^power + lr_end) / lr` after a linear warm-up.
//! **Departures**: none.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Now, Schedule, Warmup, check_positive};

/// `[train.update.schedule.polynomial]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Polynomial {
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// The same as a share of the run.
    pub warmup_ratio: f64,
    /// The learning rate at the end.
    pub lr_end: f64,
    /// 1 is a straight line.
    pub power: f64,
}

impl Default for Polynomial {
    fn default() -> Self {
        Polynomial { warmup_steps: 0, warmup_ratio: 0.0, lr_end: 1e-7, power: 1.0 }
    }
}

impl Polynomial {
    fn warmup(&self) -> Warmup {
        Warmup { steps: self.warmup_steps, ratio: self.warmup_ratio }
    }
}

impl Schedule for Polynomial {
    fn check(&self, at: &str, learning_rate: f64) -> Result<()> {
        self.warmup().check(at)?;
        check_positive(at, "power", self.power)?;
        if (0.0..learning_rate).contains(&self.lr_end) {
            return Ok(());
        }
        let what = format!(
            "expected at least 0 and below the learning rate {learning_rate}, got {}",
            self.lr_end
        );
        Err(Error::input(format!("{at}.lr_end"), what))
    }

    fn scale(&self, now: &Now) -> f64 {
        if let Some(scale) = self.warmup().rise(now) {
            return scale;
        }
        let (lr, left) = (now.learning_rate, 1.0 - self.warmup().progress(now));
        if left < 0.0 {
            return self.lr_end / lr;
        }
        ((lr - self.lr_end) * left.powf(self.power) + self.lr_end) / lr
    }
}
