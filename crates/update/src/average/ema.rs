//! The exponential moving average of the weights (Polyak and Juditsky 1992; as torch and TensorFlow
//! have it).
//!
//! `a ← d a + (1 − d) θ` after every step, from the weights of step `update_after_step` (0: the
//! beginning). `d = decay`, or `min(decay, (1 + t) / (10 + t))` with `warmup`, `t` being the number
//! of earlier averagings. **Departures**: none.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::Average;
use crate::optimizer::check_share;

/// `[train.update.ema]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ema {
    /// Share of the average that is kept.
    pub decay: f64,
    /// Steps before it begins; until then the average is the weights.
    pub update_after_step: u64,
    /// Keeps less at first, so that a short run is not held back by the weights it began with.
    pub warmup: bool,
}

impl Default for Ema {
    fn default() -> Self {
        Ema { decay: 0.999, update_after_step: 0, warmup: true }
    }
}

impl Average for Ema {
    fn check(&self, at: &str) -> Result<()> {
        check_share(at, "decay", self.decay)
    }

    fn share(&self, step: u64, _total: u64) -> f64 {
        let Some(t) = step.checked_sub(self.update_after_step + 1) else { return 1.0 };
        let rise = (1.0 + t as f64) / (10.0 + t as f64);
        1.0 - if self.warmup { self.decay.min(rise) } else { self.decay }
    }
}
