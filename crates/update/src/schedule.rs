//! How the learning rate moves over a run: twelve schedules under the names transformers uses.
//!
//! A schedule is a factor on the learning rate. Step 0 is the first update, so a linear warm-up
//! begins at exactly 0, as it does in transformers. Two schedules also listen to a metric; what they
//! remember is [`Memory`], which is saved and loaded with the optimizer's state.

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

pub mod constant;
pub mod constant_with_warmup;
pub mod cosine;
pub mod cosine_warmup_with_min_lr;
pub mod cosine_with_min_lr;
pub mod cosine_with_restarts;
pub mod greedy;
pub mod inverse_sqrt;
pub mod linear;
pub mod polynomial;
pub mod reduce_lr_on_plateau;
pub mod warmup_stable_decay;

pub use constant::Constant;
pub use constant_with_warmup::ConstantWithWarmup;
pub use cosine::Cosine;
pub use cosine_warmup_with_min_lr::CosineWarmupWithMinLr;
pub use cosine_with_min_lr::CosineWithMinLr;
pub use cosine_with_restarts::CosineWithRestarts;
pub use greedy::Greedy;
pub use inverse_sqrt::InverseSqrt;
pub use linear::Linear;
pub use polynomial::Polynomial;
pub use reduce_lr_on_plateau::ReduceLrOnPlateau;
pub use warmup_stable_decay::WarmupStableDecay;

/// A factor on the learning rate at every step.
pub trait Schedule: Send + Sync {
    /// Refuses settings without a meaning; `at` is the recipe key of the schedule's table.
    fn check(&self, at: &str, learning_rate: f64) -> Result<()>;

    /// The factor of the update that comes next.
    fn scale(&self, now: &Now) -> f64;

    /// Takes note of a metric (usually the evaluation loss). Most schedules do not listen.
    fn observe(&self, _memory: &mut Memory, _metric: f64, _learning_rate: f64) {}
}

/// Where a run stands when a schedule is asked.
#[derive(Clone, Copy, Debug)]
pub struct Now<'a> {
    /// Updates already made.
    pub step: u64,
    /// Updates the whole run will make.
    pub total: u64,
    /// The optimizer's learning rate, for settings that are given as one.
    pub learning_rate: f64,
    /// What the schedule was told so far.
    pub memory: &'a Memory,
}

/// What a listening schedule remembers between steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// The current factor.
    pub scale: f64,
    /// The best metric so far.
    pub best: Option<f64>,
    /// Observations in a row without an improvement.
    pub bad: u64,
    /// Observations in a row with an improvement.
    pub good: u64,
    /// Observations still to be ignored.
    pub pause: u64,
    /// Reductions made in vain at the lowest rate.
    pub at_floor: u64,
    /// The latest metrics, for a running mean.
    pub window: Vec<f64>,
}

impl Default for Memory {
    fn default() -> Self {
        let (best, window) = (None, Vec::new());
        Memory { scale: 1.0, best, bad: 0, good: 0, pause: 0, at_floor: 0, window }
    }
}

/// Whether a lower or a higher metric is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Lower is better (a loss).
    #[default]
    Min,
    /// Higher is better (an accuracy).
    Max,
}

/// How a threshold counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdMode {
    /// As a share of the best metric.
    Rel,
    /// As a plain difference.
    Abs,
}

impl Mode {
    /// Whether `metric` improves on `best` by more than `threshold`; a NaN never does.
    pub fn better(self, metric: f64, best: Option<f64>, by: ThresholdMode, threshold: f64) -> bool {
        match (self, by) {
            (Mode::Min, ThresholdMode::Rel) => {
                metric < best.unwrap_or(f64::INFINITY) * (1.0 - threshold)
            }
            (Mode::Min, ThresholdMode::Abs) => metric < best.unwrap_or(f64::INFINITY) - threshold,
            (Mode::Max, ThresholdMode::Rel) => {
                metric > best.unwrap_or(f64::NEG_INFINITY) * (1.0 + threshold)
            }
            (Mode::Max, ThresholdMode::Abs) => {
                metric > best.unwrap_or(f64::NEG_INFINITY) + threshold
            }
        }
    }
}

/// The shape of a rise or fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Curve {
    /// A straight line.
    #[serde(rename = "linear")]
    Linear,
    /// Half a cosine wave.
    #[serde(rename = "cosine")]
    Cosine,
    /// One minus a square root.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// `[train.update.schedule]`: exactly one of the twelve, `linear` when none is named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedules {
    /// Straight down to 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linear: Option<Linear>,
    /// Half a cosine wave down to 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<Cosine>,
    /// Several half waves, each from the top.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine_with_restarts: Option<CosineWithRestarts>,
    /// A power of the remaining share, down to `lr_end`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub polynomial: Option<Polynomial>,
    /// No change, no warm-up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constant: Option<Constant>,
    /// Warm-up, then no change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constant_with_warmup: Option<ConstantWithWarmup>,
    /// One over the square root of the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inverse_sqrt: Option<InverseSqrt>,
    /// Down when a metric stops improving.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduce_lr_on_plateau: Option<ReduceLrOnPlateau>,
    /// Half a cosine wave down to a floor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine_with_min_lr: Option<CosineWithMinLr>,
    /// The same with a warm-up that does not begin at 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine_warmup_with_min_lr: Option<CosineWarmupWithMinLr>,
    /// Up, level, down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_stable_decay: Option<WarmupStableDecay>,
    /// Up while a metric improves, down while it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub greedy: Option<Greedy>,
}

impl Schedules {
    /// The schedule that is named with its key, or the default.
    pub fn chosen(&self) -> Result<(&'static str, &dyn Schedule)> {
        static DEFAULT: Linear = Linear { warmup_steps: 0, warmup_ratio: 0.0 };
        match self.named().as_slice() {
            [] => Ok(("linear", &DEFAULT)),
            [one] => Ok(*one),
            several => {
                let names: Vec<&str> = several.iter().map(|(name, _)| *name).collect();
                let what = format!("names {} schedules ({})", names.len(), names.join(", "));
                Err(Error::input("train.update.schedule", what).hint("keep one of them"))
            }
        }
    }

    /// The same with the default written out.
    pub fn with_defaults(mut self) -> Self {
        if self.named().is_empty() {
            self.linear = Some(Linear::default());
        }
        self
    }

    fn named(&self) -> Vec<(&'static str, &dyn Schedule)> {
        fn of<S: Schedule>(schedule: &Option<S>) -> Option<&dyn Schedule> {
            schedule.as_ref().map(|s| s as &dyn Schedule)
        }
        let all = [
            ("linear", of(&self.linear)),
            ("cosine", of(&self.cosine)),
            ("cosine_with_restarts", of(&self.cosine_with_restarts)),
            ("polynomial", of(&self.polynomial)),
            ("constant", of(&self.constant)),
            ("constant_with_warmup", of(&self.constant_with_warmup)),
            ("inverse_sqrt", of(&self.inverse_sqrt)),
            ("reduce_lr_on_plateau", of(&self.reduce_lr_on_plateau)),
            ("cosine_with_min_lr", of(&self.cosine_with_min_lr)),
            ("cosine_warmup_with_min_lr", of(&self.cosine_warmup_with_min_lr)),
            ("warmup_stable_decay", of(&self.warmup_stable_decay)),
            ("greedy", of(&self.greedy)),
        ];
        all.into_iter().filter_map(|(name, schedule)| Some((name, schedule?))).collect()
    }
}

/// Linear warm-up as two settings of which at most one is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Warmup {
    pub steps: u64,
    pub ratio: f64,
}

impl Warmup {
    /// Number of warm-up steps in a run of `total`.
    pub fn resolve(self, total: u64) -> f64 {
        if self.steps > 0 { self.steps as f64 } else { (total as f64 * self.ratio).ceil() }
    }

    /// The factor during warm-up, `None` after it.
    pub fn rise(self, now: &Now) -> Option<f64> {
        let (step, warmup) = (now.step as f64, self.resolve(now.total));
        (step < warmup).then(|| step / warmup.max(1.0))
    }

    /// The share of the steps after warm-up that is done; above 1 when the run goes on.
    pub fn progress(self, now: &Now) -> f64 {
        let warmup = self.resolve(now.total);
        (now.step as f64 - warmup) / (now.total as f64 - warmup).max(1.0)
    }

    pub fn check(self, at: &str) -> Result<()> {
        if !(0.0..=1.0).contains(&self.ratio) {
            let what = format!("expected a share between 0 and 1, got {}", self.ratio);
            return Err(Error::input(format!("{at}.warmup_ratio"), what));
        }
        if self.steps > 0 && self.ratio > 0.0 {
            let what = "both warmup_steps and warmup_ratio are given";
            return Err(Error::input(at, what).hint("keep one of them"));
        }
        Ok(())
    }
}

/// `0.5 · (1 + cos(2π · cycles · progress))`.
pub(crate) fn wave(cycles: f64, progress: f64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * cycles * 2.0 * progress).cos())
}

/// A lowest learning rate given as a rate or as a share, as a share.
pub(crate) fn floor(min_lr: Option<f64>, min_lr_rate: Option<f64>, learning_rate: f64) -> f64 {
    match (min_lr, min_lr_rate) {
        (Some(rate), _) => rate / learning_rate,
        (None, share) => share.unwrap_or(0.0),
    }
}

pub(crate) fn check_floor(
    at: &str,
    min_lr: Option<f64>,
    min_lr_rate: Option<f64>,
    learning_rate: f64,
) -> Result<()> {
    match (min_lr, min_lr_rate) {
        (Some(rate), None) if !(0.0..learning_rate).contains(&rate) => Err(Error::input(
            format!("{at}.min_lr"),
            format!("expected at least 0 and below the learning rate {learning_rate}, got {rate}"),
        )),
        (None, Some(share)) if !(0.0..=1.0).contains(&share) => Err(Error::input(
            format!("{at}.min_lr_rate"),
            format!("expected a share between 0 and 1, got {share}"),
        )),
        (Some(_), None) | (None, Some(_)) => Ok(()),
        _ => Err(Error::input(at, "expected exactly one of min_lr and min_lr_rate")
            .hint("min_lr_rate = 0.1 ends at a tenth of the learning rate")),
    }
}

pub(crate) fn check_positive(at: &str, key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::input(format!("{at}.{key}"), format!("expected a number above 0, got {value}")))
}
