//! Several half cosine waves, each from the top.
//!
//! `½ (1 + cos(π · frac(num_cycles · progress)))` after a linear warm-up, 0 at the end.
//! **Departures**: none.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{Now, Schedule, Warmup, check_positive, wave};

/// `[train.update.schedule.cosine_with_restarts]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CosineWithRestarts {
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// The same as a share of the run.
    pub warmup_ratio: f64,
    /// Number of falls from the top to 0.
    pub num_cycles: u64,
}

impl Default for CosineWithRestarts {
    fn default() -> Self {
        CosineWithRestarts { warmup_steps: 0, warmup_ratio: 0.0, num_cycles: 1 }
    }
}

impl CosineWithRestarts {
    fn warmup(&self) -> Warmup {
        Warmup { steps: self.warmup_steps, ratio: self.warmup_ratio }
    }
}

impl Schedule for CosineWithRestarts {
    fn check(&self, at: &str, _learning_rate: f64) -> Result<()> {
        self.warmup().check(at)?;
        check_positive(at, "num_cycles", self.num_cycles as f64)
    }

    fn scale(&self, now: &Now) -> f64 {
        if let Some(scale) = self.warmup().rise(now) {
            return scale;
        }
        let progress = self.warmup().progress(now);
        if progress >= 1.0 {
            return 0.0;
        }
        wave(0.5, (self.num_cycles as f64 * progress) % 1.0).max(0.0)
    }
}
