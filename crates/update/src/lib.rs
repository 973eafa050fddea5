#![doc = include_str!("../../../docs/seams/update.md")]

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

mod groups;
pub mod optimizer;
mod pass;
pub mod schedule;
mod stepper;

pub use groups::Group;
pub use optimizer::{AdamW, Move, Optimizer, Plan, Sgd};
pub use schedule::{Memory, Now, Schedule, Schedules};
pub use stepper::{StepInfo, Stepper};

pub use luthier_core::Method;

/// Every optimizer and schedule that a recipe can name, by its key below `train.update`.
pub const METHODS: &[Method] = &[
    Method::usual("adamw", "Adam with decoupled weight decay"),
    Method::usual("sgd", "gradient descent with momentum, dampening, Nesterov"),
    Method::usual("schedule.linear", "straight down to 0"),
    Method::usual("schedule.cosine", "a cosine wave down to 0"),
    Method::usual("schedule.cosine_with_restarts", "several cosine falls, each from the top"),
    Method::usual("schedule.polynomial", "a power of the remaining share, down to lr_end"),
    Method::usual("schedule.constant", "no change"),
    Method::usual("schedule.constant_with_warmup", "warm-up, then no change"),
    Method::usual("schedule.inverse_sqrt", "one over the square root of the step"),
    Method::usual("schedule.reduce_lr_on_plateau", "down when a metric stops improving"),
    Method::usual("schedule.cosine_with_min_lr", "a cosine wave down to a floor"),
    Method::usual(
        "schedule.cosine_warmup_with_min_lr",
        "the same, with a warm-up that begins above 0",
    ),
    Method::usual("schedule.warmup_stable_decay", "up, level, down"),
    Method::usual("schedule.greedy", "up while a metric improves, down while it does not"),
];

/// `[train.update]`: how a gradient becomes a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Update {
    /// Gradients with a larger global norm are scaled down to it; 0 switches this off.
    pub max_grad_norm: f64,
    /// Adam with decoupled weight decay; the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adamw: Option<AdamW>,
    /// Gradient descent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sgd: Option<Sgd>,
    /// How the learning rate moves.
    pub schedule: Schedules,
    /// Other rates for some variables; the first match wins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
}

impl Default for Update {
    fn default() -> Self {
        let (schedule, groups) = (Schedules::default(), Vec::new());
        Update { max_grad_norm: 1.0, adamw: None, sgd: None, schedule, groups }
    }
}

impl Update {
    /// The optimizer that is named with its key, or the default.
    pub fn optimizer(&self) -> Result<(&'static str, &dyn Optimizer)> {
        match (&self.adamw, &self.sgd) {
            (None, None) => Ok(("adamw", &optimizer::adamw::DEFAULT)),
            (Some(adamw), None) => Ok(("adamw", adamw)),
            (None, Some(sgd)) => Ok(("sgd", sgd)),
            (Some(_), Some(_)) => {
                let what = "names 2 optimizers (adamw, sgd)";
                Err(Error::input("train.update", what).hint("keep one of them"))
            }
        }
    }

    /// The same with every default written out, as a plan prints it.
    pub fn with_defaults(mut self) -> Self {
        if self.adamw.is_none() && self.sgd.is_none() {
            self.adamw = Some(AdamW::default());
        }
        self.schedule = self.schedule.with_defaults();
        self
    }

    /// Refuses settings without a meaning; [`Stepper::new`] does so too, but needs the variables.
    pub fn check(&self) -> Result<Plan> {
        let (name, optimizer) = self.optimizer()?;
        let plan = optimizer.plan(&format!("train.update.{name}"))?;
        optimizer::check_rate("train.update", "max_grad_norm", self.max_grad_norm)?;
        let (name, schedule) = self.schedule.chosen()?;
        schedule.check(&format!("train.update.schedule.{name}"), plan.learning_rate)?;
        Ok(plan)
    }
}
