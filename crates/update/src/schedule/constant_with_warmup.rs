//! A linear warm-up, then no change.
//!
//! `1` after the warm-up.
//! **Departures**: none.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{Now, Schedule, Warmup};

/// `[train.update.schedule.constant_with_warmup]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConstantWithWarmup {
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// The same as a share of the run.
    pub warmup_ratio: f64,
}

impl ConstantWithWarmup {
    fn warmup(&self) -> Warmup {
        Warmup { steps: self.warmup_steps, ratio: self.warmup_ratio }
    }
}

impl Schedule for ConstantWithWarmup {
    fn check(&self, at: &str, _learning_rate: f64) -> Result<()> {
        self.warmup().check(at)
    }

    fn scale(&self, now: &Now) -> f64 {
        self.warmup().rise(now).unwrap_or(1.0)
    }
}
