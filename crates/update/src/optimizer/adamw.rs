//! Adam with decoupled weight decay (Loshchilov and Hutter 2019), rounded as torch rounds it.
//!
//! `m ← m + (1 − β₁)(g − m)`, `v ← β₂ v + (1 − β₂) g²`,
//! `p ← (1 − lr · decay) p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + eps)`; without
//! `bias_correction` both corrections are 1.
//! **Departures**: (1) a learning rate of 0 leaves parameters bit-equal, also the sign of a zero.

use luthier_core::Result;
use serde::{Deserialize, Serialize};

use super::{
    Data, Move, Optimizer, Plan,
    adam::{self, Moments},
};
use crate::pass;

/// `[train.update.adamw]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Step size before the schedule.
    pub learning_rate: f64,
    /// Memory of the mean and of the mean square.
    pub betas: [f64; 2],
    /// Added to the root, outside of it.
    pub eps: f64,
    /// Decoupled: a share of the parameter per unit of learning rate.
    pub weight_decay: f64,
    /// Whether the averages, which begin at 0, are scaled up to what they would be without.
    pub bias_correction: bool,
}

/// What `[train.update]` means when it names no optimizer.
pub(crate) const DEFAULT: AdamW = AdamW {
    learning_rate: 2e-4,
    betas: [0.9, 0.999],
    eps: 1e-8,
    weight_decay: 0.0,
    bias_correction: true,
};

impl Default for AdamW {
    fn default() -> Self {
        DEFAULT
    }
}

impl Optimizer for AdamW {
    fn plan(&self, at: &str) -> Result<Plan> {
        adam::plan(at, self.learning_rate, self.weight_decay, self.betas, self.eps)
    }

    fn apply(&self, now: &Move, _: &[usize], param: &mut [f32], grad: &[f32], state: &mut [Data]) {
        let moments = Moments::new(self.betas, self.eps, self.bias_correction, now);
        let keep = (1.0 - now.learning_rate * now.weight_decay) as f32;
        let still = now.learning_rate == 0.0;
        pass::elementwise(param, grad, state, |param, grad, state| {
            let [m, v] = state else { unreachable!("two buffers are planned") };
            for (((p, g), m), v) in param.iter_mut().zip(grad).zip(m.iter_mut()).zip(v.iter_mut()) {
                let moved = *p * keep - moments.step(g * now.grad_scale, m, v);
                *p = if still { *p } else { moved };
            }
        });
    }
}
