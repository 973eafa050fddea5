#![doc = include_str!("../../../docs/seams/update.md")]

use luthier_core::{Error, Result};
use serde::{Deserialize, Serialize};

pub mod average;
mod clip;
mod groups;
pub mod optimizer;
mod pass;
mod sam;
pub mod schedule;
mod stepper;
pub mod transform;

pub use average::{Average, Ema, Swa};
pub use clip::Clip;
pub use groups::{Group, Rates};
pub use optimizer::{
    Adafactor, Adam, AdamW, AdamW8Bit, Lion, Move, Muon, Optimizer, Plan, ScheduleFree, Sgd,
};
pub use sam::Sam;
pub use schedule::{Memory, Now, Schedule, Schedules};
pub use stepper::{Start, StepInfo, Stepper};
pub use transform::{Ewc, L1, L2Sp, Noise, Nuclear, Transform};

pub use luthier_core::Method;

/// Every optimizer, schedule, transform, average and rule that a recipe can name, by its key below
/// `train.update`.
pub const METHODS: &[Method] = &[
    Method::usual("adamw", "Adam with decoupled weight decay"),
    Method::usual("adam", "Adam with the decay in the gradient, with or without bias correction"),
    Method::usual("sgd", "gradient descent with momentum, dampening, Nesterov"),
    Method::usual("adafactor", "mean squares by row and column: memory for the edges of a matrix"),
    Method::usual("lion", "the sign of a mean: half of Adam's memory"),
    Method::usual("muon", "orthogonal steps for matrices"),
    Method::usual("schedule_free_adamw", "AdamW with a running average in place of a schedule"),
    Method::usual("adamw_8bit", "AdamW with a byte per number of its memory"),
    of_paper(7, "l1", "a pull of constant strength to where a weight began"),
    Method::usual("l2_sp", "a spring to where a weight began"),
    Method::usual("ewc", "a spring to where a weight began, as stiff as it mattered there"),
    of_paper(29, "nuclear", "the nuclear norm of what learns, so that it stays of low rank"),
    Method::usual("noise", "gradient noise that fades"),
    Method::usual("clip", "max_grad_norm for all, by group, by layer; or a limit for each number"),
    of_paper(22, "layer_decay", "lower layers learn more slowly"),
    Method::usual("loraplus_lr_ratio", "LoRA+: the second factor learns faster"),
    Method::usual("sam", "two passes a step, away from sharp valleys (SAM, ASAM)"),
    Method::usual("ema", "the exponential moving average of the weights is kept"),
    Method::usual("swa", "the mean of the weights along the end of the run is kept"),
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

const fn of_paper(paper: u32, name: &'static str, about: &'static str) -> Method {
    Method { paper: Some(paper), name, about }
}

/// `[train.update]`: how a gradient becomes a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Update {
    /// Gradients with a larger norm are scaled down to it; 0 switches this off.
    pub max_grad_norm: f64,
    /// What that is the norm of.
    pub clip: Clip,
    /// With `clip = "value"`, every gradient is held between plus and minus this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_grad_value: Option<f64>,
    /// Every block learns at this share of the rate of the block above it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_decay: Option<f64>,
    /// 1 puts the highest block below the head in rate, 0 level with it.
    #[serde(skip_serializing_if = "is_zero")]
    pub layer_decay_head_offset: usize,
    /// LoRA+: `lora_B` and vectors learn at so many times the learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loraplus_lr_ratio: Option<f64>,
    /// LoRA+: the learning rate of the factors of an embedding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loraplus_lr_embedding: Option<f64>,
    /// Whether weight decay is for biases, the weights of norms and the like too.
    pub decay_norms_and_biases: bool,
    /// Adam with decoupled weight decay; the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adamw: Option<AdamW>,
    /// Adam.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adam: Option<Adam>,
    /// Gradient descent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sgd: Option<Sgd>,
    /// One mean square per row and per column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adafactor: Option<Adafactor>,
    /// Signs alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lion: Option<Lion>,
    /// Orthogonal steps for matrices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub muon: Option<Muon>,
    /// A running average in place of a schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule_free_adamw: Option<ScheduleFree>,
    /// AdamW with a byte per number of its memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adamw_8bit: Option<AdamW8Bit>,
    /// A pull of constant strength to the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l1: Option<L1>,
    /// A spring to the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l2_sp: Option<L2Sp>,
    /// A spring to the beginning, as stiff as each number mattered there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ewc: Option<Ewc>,
    /// A pull to matrices of low rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nuclear: Option<Nuclear>,
    /// Noise that fades.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<Noise>,
    /// Two passes a step, the second from above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sam: Option<Sam>,
    /// The exponential moving average of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<Ema>,
    /// The plain mean of the weights along the end of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swa: Option<Swa>,
    /// How the learning rate moves.
    pub schedule: Schedules,
    /// Other rates for some variables; the first match wins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
}

fn is_zero(offset: &usize) -> bool {
    *offset == 0
}

impl Default for Update {
    fn default() -> Self {
        Update {
            max_grad_norm: 1.0,
            clip: Clip::Global,
            max_grad_value: None,
            layer_decay: None,
            layer_decay_head_offset: 0,
            loraplus_lr_ratio: None,
            loraplus_lr_embedding: None,
            decay_norms_and_biases: false,
            adamw: None,
            adam: None,
            sgd: None,
            adafactor: None,
            lion: None,
            muon: None,
            schedule_free_adamw: None,
            adamw_8bit: None,
            l1: None,
            l2_sp: None,
            ewc: None,
            nuclear: None,
            noise: None,
            sam: None,
            ema: None,
            swa: None,
            schedule: Schedules::default(),
            groups: Vec::new(),
        }
    }
}

impl Update {
    /// The optimizer that is named with its key, or the default.
    pub fn optimizer(&self) -> Result<(&'static str, &dyn Optimizer)> {
        let one = at_most_one(self.optimizers(), "optimizers")?;
        Ok(one.unwrap_or(("adamw", &optimizer::adamw::DEFAULT)))
    }

    /// The running average that is named, with its key.
    pub fn average(&self) -> Result<Option<(&'static str, &dyn Average)>> {
        at_most_one(self.averages(), "averages")
    }

    /// The transforms that are named with their keys, in the order in which they are applied.
    pub fn transforms(&self) -> Vec<(&'static str, &dyn Transform)> {
        fn of<T: Transform>(transform: &Option<T>) -> Option<&dyn Transform> {
            transform.as_ref().map(|t| t as &dyn Transform)
        }
        named([
            ("l1", of(&self.l1)),
            ("l2_sp", of(&self.l2_sp)),
            ("ewc", of(&self.ewc)),
            ("nuclear", of(&self.nuclear)),
            ("noise", of(&self.noise)),
        ])
    }

    /// The same with every default written out, as a plan prints it.
    pub fn with_defaults(mut self) -> Self {
        if self.optimizers().is_empty() {
            self.adamw = Some(AdamW::default());
        }
        // A rule that is there to make do without one.
        if self.schedule_free_adamw.is_some() && self.schedule == Schedules::default() {
            self.schedule.constant = Some(schedule::Constant::default());
        }
        self.schedule = self.schedule.with_defaults();
        self
    }

    /// Refuses settings without a meaning; [`Stepper::new`] does so too, but needs the variables.
    pub fn check(&self) -> Result<Plan> {
        let (name, optimizer) = self.optimizer()?;
        let plan = optimizer.plan(&format!("train.update.{name}"))?;
        clip::check(self)?;
        groups::check(self)?;
        let (name, schedule) = self.schedule.chosen()?;
        schedule.check(&format!("train.update.schedule.{name}"), plan.learning_rate)?;
        self.need()?;
        if let Some(sam) = &self.sam {
            sam.check("train.update.sam")?;
        }
        if let Some((name, average)) = self.average()? {
            let at = format!("train.update.{name}");
            average.check(&at)?;
            if self.schedule_free_adamw.is_some() {
                let what = "schedule_free_adamw keeps a running average of its own";
                return Err(Error::input(at, what).hint("keep one of them"));
            }
        }
        Ok(plan)
    }

    /// What the transforms need, after a look at their settings.
    pub(crate) fn need(&self) -> Result<transform::Need> {
        let mut need = transform::Need::default();
        for (name, transform) in self.transforms() {
            need = need.and(transform.check(&format!("train.update.{name}"))?);
        }
        Ok(need)
    }

    fn optimizers(&self) -> Vec<(&'static str, &dyn Optimizer)> {
        fn of<O: Optimizer>(optimizer: &Option<O>) -> Option<&dyn Optimizer> {
            optimizer.as_ref().map(|o| o as &dyn Optimizer)
        }
        named([
            ("adamw", of(&self.adamw)),
            ("adam", of(&self.adam)),
            ("sgd", of(&self.sgd)),
            ("adafactor", of(&self.adafactor)),
            ("lion", of(&self.lion)),
            ("muon", of(&self.muon)),
            ("schedule_free_adamw", of(&self.schedule_free_adamw)),
            ("adamw_8bit", of(&self.adamw_8bit)),
        ])
    }

    fn averages(&self) -> Vec<(&'static str, &dyn Average)> {
        let ema = self.ema.as_ref().map(|a| a as &dyn Average);
        let swa = self.swa.as_ref().map(|a| a as &dyn Average);
        named([("ema", ema), ("swa", swa)])
    }
}

/// Those that are there.
fn named<T, const N: usize>(all: [(&'static str, Option<T>); N]) -> Vec<(&'static str, T)> {
    all.into_iter().filter_map(|(name, one)| Some((name, one?))).collect()
}

fn at_most_one<T>(
    mut named: Vec<(&'static str, T)>,
    kind: &str,
) -> Result<Option<(&'static str, T)>> {
    if named.len() < 2 {
        return Ok(named.pop());
    }
    let names: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
    let what = format!("names {} {kind} ({})", names.len(), names.join(", "));
    Err(Error::input("train.update", what).hint("keep one of them"))
}
