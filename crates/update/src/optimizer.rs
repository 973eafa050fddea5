//! How a gradient becomes a step.

use luthier_core::{Error, Result};

pub mod adamw;
pub mod sgd;

pub use adamw::AdamW;
pub use sgd::Sgd;

/// An elementwise rule from (parameter, gradient, state) to the next parameter and state.
///
/// Being elementwise is part of the contract: the pass hands over arbitrary chunks in any order and
/// from any thread, and the result must not depend on that.
pub trait Optimizer: Send + Sync {
    /// Refuses settings without a meaning, and says what the rule needs; `at` is its recipe key.
    fn plan(&self, at: &str) -> Result<Plan>;

    /// One step on one chunk; `state` holds the chunk's part of each buffer that `plan` named.
    fn apply(&self, now: &Move, param: &mut [f32], grad: &[f32], state: &mut [&mut [f32]]);
}

/// What an optimizer needs from the pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Learning rate of variables without a group.
    pub learning_rate: f64,
    /// Weight decay of variables without a group.
    pub weight_decay: f64,
    /// Buffers as large as the variable, by torch's names; all begin at 0.
    pub state: &'static [&'static str],
}

/// The numbers of one step for one variable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    /// 1 for the first step.
    pub t: u64,
    /// After schedule and group.
    pub learning_rate: f64,
    /// After group.
    pub weight_decay: f64,
    /// What every gradient is multiplied by (clipping).
    pub grad_scale: f32,
}

pub(crate) fn check_rate(at: &str, key: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::input(
        format!("{at}.{key}"),
        format!("expected a number of at least 0, got {value}"),
    ))
}

pub(crate) fn check_share(at: &str, key: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    let what = format!("expected at least 0 and below 1, got {value}");
    Err(Error::input(format!("{at}.{key}"), what))
}
