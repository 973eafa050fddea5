//! Up, level, down.
//!
//! Each part has its own number of steps; rise and fall have a shape and a floor.
//! **Departures**: (1) transformers asks for `num_decay_steps`; here it defaults to a tenth of the run.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::{Curve, Now, Schedule, Warmup, check_positive, wave};

/// `[train.update.schedule.warmup_stable_decay]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WarmupStableDecay {
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// The same as a share of the run.
    pub warmup_ratio: f64,
    /// Steps at full rate; what warm-up and decay leave over when not given.
    pub num_stable_steps: Option<u64>,
    /// Steps of the fall; a tenth of the run when not given.
    pub num_decay_steps: Option<u64>,
    /// Shape of the rise.
    pub warmup_type: Curve,
    /// Shape of the fall.
    pub decay_type: Curve,
    /// The lowest rate as a share of the learning rate, at both ends.
    pub min_lr_ratio: f64,
    /// Waves of a cosine fall.
    pub num_cycles: f64,
}

impl Default for WarmupStableDecay {
    fn default() -> Self {
        WarmupStableDecay {
            warmup_steps: 0,
            warmup_ratio: 0.0,
            num_stable_steps: None,
            num_decay_steps: None,
            warmup_type: Curve::Linear,
            decay_type: Curve::Cosine,
            min_lr_ratio: 0.0,
            num_cycles: 0.5,
        }
    }
}

impl WarmupStableDecay {
    fn warmup(&self) -> Warmup {
        Warmup { steps: self.warmup_steps, ratio: self.warmup_ratio }
    }
}

impl Schedule for WarmupStableDecay {
    fn check(&self, at: &str, _learning_rate: f64) -> Result<()> {
        self.warmup().check(at)?;
        check_positive(at, "num_cycles", self.num_cycles)?;
        if (0.0..=1.0).contains(&self.min_lr_ratio) {
            return Ok(());
        }
        let what = format!("expected a share between 0 and 1, got {}", self.min_lr_ratio);
        Err(Error::input(format!("{at}.min_lr_ratio"), what))
    }

    fn scale(&self, now: &Now) -> f64 {
        let (step, total) = (now.step as f64, now.total as f64);
        let warmup = self.warmup().resolve(now.total);
        let decay = self.num_decay_steps.map_or((total / 10.0).ceil(), |n| n as f64);
        let stable = self.num_stable_steps.map_or(total - warmup - decay, |n| n as f64);
        let above_floor = |x: f64| (x * (1.0 - self.min_lr_ratio) + self.min_lr_ratio).max(0.0);
        if step < warmup {
            let progress = step / warmup.max(1.0);
            return above_floor(match self.warmup_type {
                Curve::Linear => progress,
                Curve::Cosine => 1.0 - wave(0.5, progress),
                Curve::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
            });
        }
        if step < warmup + stable {
            return 1.0;
        }
        if step < warmup + stable + decay {
            let progress = (step - warmup - stable) / decay.max(1.0);
            return above_floor(match self.decay_type {
                Curve::Linear => 1.0 - progress,
                Curve::Cosine => wave(self.num_cycles, progress),
                Curve::OneMinusSqrt => 1.0 - progress.sqrt(),
            });
        }
        self.min_lr_ratio
    }
}
