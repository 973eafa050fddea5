//! A cosine wave, half of it by default, down to 0.
//!
//! `½ (1 + cos(2π · num_cycles · progress))` after a linear warm-up.
//! **Departures**: none.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{Now, Schedule, Warmup, check_positive, wave};

/// `[train.update.schedule.cosine]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cosine {
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// The same as a share of the run.
    pub warmup_ratio: f64,
    /// Waves over the run; one half goes down once.
    pub num_cycles: f64,
}

impl Default for Cosine {
    fn default() -> Self {
        Cosine { warmup_steps: 0, warmup_ratio: 0.0, num_cycles: 0.5 }
    }
}

impl Cosine {
    fn warmup(&self) -> Warmup {
        Warmup { steps: self.warmup_steps, ratio: self.warmup_ratio }
    }
}

impl Schedule for Cosine {
    fn check(&self, at: &str, _learning_rate: f64) -> Result<()> {
        self.warmup().check(at)?;
        check_positive(at, "num_cycles", self.num_cycles)
    }

    fn scale(&self, now: &Now) -> f64 {
        if let Some(scale) = self.warmup().rise(now) {
            return scale;
        }
        wave(self.num_cycles, self.warmup().progress(now)).max(0.0)
    }
}
