//! One over the square root of the step.
//!
//! `1 / √((step + timescale − warmup) / timescale)` after a linear warm-up.
//! **Departures**: none. Without `timescale` it is the number of warm-up steps, or 10 000 without those.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{Now, Schedule, Warmup, check_positive};

/// `[train.update.schedule.inverse_sqrt]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InverseSqrt {
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// The same as a share of the run.
    pub warmup_ratio: f64,
    /// Steps after which the rate has fallen to 1/√2 of its height.
    pub timescale: Option<u64>,
}

impl InverseSqrt {
    fn warmup(&self) -> Warmup {
        Warmup { steps: self.warmup_steps, ratio: self.warmup_ratio }
    }
}

impl Schedule for InverseSqrt {
    fn check(&self, at: &str, _learning_rate: f64) -> Result<()> {
        self.warmup().check(at)?;
        check_positive(at, "timescale", self.timescale.unwrap_or(1) as f64)
    }

    fn scale(&self, now: &Now) -> f64 {
        if let Some(scale) = self.warmup().rise(now) {
            return scale;
        }
        let warmup = self.warmup().resolve(now.total);
        let default = if warmup > 0.0 { warmup } else { 10_000.0 };
        let timescale = self.timescale.map_or(default, |t| t as f64);
        1.0 / ((now.step as f64 + timescale - warmup) / timescale).sqrt()
    }
}
